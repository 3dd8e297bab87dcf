"""Show answers to the judges that benchmarks name: each judge answers in a run of its own.

What a judge is asked about the answers of one model to one benchmark is a file of prompts in the
run folder, and its replies are cached by its content as all answers are. So another model in the
recipe costs no more than its own answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from consomme.base.manifest import Manifest
from consomme.evaluate.benchmark import Benchmark, parts_of
from consomme.evaluate.judging import HasJudge, Judge, judge_node, with_reply
from consomme.pipelines.evaluate.answers import AskedBenchmark
from consomme.pipelines.evaluate.kept import read_answers
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.stores.store import join_url

FOLDER = "judge"
"""Folder of a run with what its judges were asked."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The answers of a model to a benchmark, and what was said about them."""

    texts: Sequence[str]
    """What the benchmark takes; see `consomme.evaluate.judging`."""

    replies: Mapping[int, str] = field(default_factory=dict)
    """Number of a request -> what its judge wrote."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What one judge is asked about one model and one part of a benchmark."""

    judge: Judge
    label: str
    """Names it among what the judge is asked."""

    question: int
    """Index of the model and benchmark."""

    first: int
    """Number of the part's first request."""

    prompts: Mapping[int, str]
    """Number of the request in the part -> prompt."""


def judges_of(benchmark: Benchmark) -> list[Judge]:
    """Return the judges that a benchmark names, of all its parts."""
    return [one.judge for one in parts_of(benchmark) if isinstance(one, HasJudge) and one.judge]


def judge_all(
    folder: RunFolder,
    recipe: EvaluateRecipe,
    questions: Sequence[AskedBenchmark],
    answers: Sequence[Sequence[str]],
    evaluate: Callable[[EvaluateRecipe], Manifest],
) -> tuple[list[Judged], list[dict[str, Any]]]:
    """Let judges read answers.

    Args:
        folder: Of the run.
        recipe: Of the run.
        questions: Models and benchmarks.
        answers: Aligned with them.
        evaluate: Runs a recipe.

    Returns:
        Answers for the benchmarks, aligned with `questions`; and who judged what.
    """
    asked = [
        one
        for number, (question, given) in enumerate(zip(questions, answers, strict=True))
        for one in _asked(number, question, given)
    ]
    replies: dict[tuple[int, int], str] = {}
    told = []
    by_judge: dict[str, list[_Asked]] = {}
    for one in asked:
        by_judge.setdefault(_key(one.judge), []).append(one)
    for number, some in enumerate(by_judge.values()):
        with_prompts = [one for one in some if one.prompts]
        manifest = _ask(folder, recipe, number, with_prompts, replies, evaluate)
        told.append(
            {
                "model": manifest.inputs["models.judge"] if manifest else some[0].judge.model,
                "engine": some[0].judge.engine,
                "run": "/".join(manifest.url.rsplit("/", 2)[1:]) if manifest else None,
                "asked": {one.label: len(one.prompts) for one in some},
            }
        )
    judged = []
    for number, (question, given) in enumerate(zip(questions, answers, strict=True)):
        own = {at: reply for (index, at), reply in replies.items() if index == number}
        judged.append(Judged(texts=_texts(question.benchmark, given, own), replies=own))
    return judged, told


def _key(judge: Judge) -> str:
    return json.dumps([judge.model, judge.engine, judge.template], sort_keys=True)


def _asked(number: int, question: AskedBenchmark, answers: Sequence[str]) -> Iterator[_Asked]:
    first = 0
    parts = parts_of(question.benchmark)
    for k, part in enumerate(parts):
        size = len(part.items())
        if isinstance(part, HasJudge) and part.judge:
            name = f"{question.source}/{k}" if len(parts) > 1 else question.source
            yield _Asked(
                judge=part.judge,
                label=name,
                question=number,
                first=first,
                prompts=part.to_judge(answers[first : first + size]),
            )
        first += size


def _ask(
    folder: RunFolder,
    recipe: EvaluateRecipe,
    number: int,
    asked: Sequence[_Asked],
    replies: dict[tuple[int, int], str],
    evaluate: Callable[[EvaluateRecipe], Manifest],
) -> Manifest | None:
    """Ask one judge, and add its replies by model and benchmark and number of the request."""
    if not asked:
        return None
    judge, nodes, files = asked[0].judge, [], []
    for k, one in enumerate(asked):
        path = f"{FOLDER}/{number}-{k:03d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', one.label)[:80]}.jsonl"
        # What is asked twice is answered once.
        prompts = list(dict.fromkeys(one.prompts.values()))
        lines = [json.dumps({"question": prompt}, ensure_ascii=False) for prompt in prompts]
        folder.store.write(path, ("\n".join(lines) + "\n").encode())
        nodes.append(judge_node(one.judge, join_url(folder.url, path), f"{k}-{one.label}"))
        files.append(prompts)
    manifest = evaluate(
        EvaluateRecipe(
            name=f"{recipe.name}-judge{number}",
            models={"judge": judge.model},
            benchmarks=tuple(dict(node) for node in nodes),
            engine=judge.engine,
            template=judge.template,
            root=recipe.root,
            storage=recipe.storage,
            unit_items=recipe.unit_items,
            num_actors=recipe.num_actors,
            min_actors=recipe.min_actors,
        )
    )
    rows = read_answers(RunFolder.at(manifest.url).store).to_pylist()
    said = {(row["benchmark"], row["number"]): row["answer"] or "" for row in rows}
    for one, node, prompts in zip(asked, nodes, files, strict=True):
        name = str(node["label"]).replace("/", "-")
        numbers = {prompt: at for at, prompt in enumerate(prompts)}
        for at, prompt in one.prompts.items():
            replies[one.question, one.first + at] = said[name, numbers[prompt]]
    return manifest


def _texts(
    benchmark: Benchmark, answers: Sequence[str], replies: Mapping[int, str]
) -> Sequence[str]:
    """Return what a benchmark takes: answers of parts with a judge have its replies with them."""
    texts: list[str] = []
    for part in parts_of(benchmark):
        some = range(len(texts), len(texts) + len(part.items()))
        has_judge = isinstance(part, HasJudge) and part.judge is not None
        texts += [
            with_reply(answers[at], replies.get(at)) if has_judge else answers[at] for at in some
        ]
    return texts
