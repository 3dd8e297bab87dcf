"""Measure models on benchmarks, one answering actor per worker, every result cached by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consomme.base.manifest import Manifest
from consomme.base.schema import runtime, strategy
from consomme.base.telemetry import Progress
from consomme.evaluate.cache import ResultCache, model_content_hash, result_key
from consomme.pipelines.checkpoints import model_folder
from consomme.pipelines.runs import begin
from consomme.pipelines.session import num_cpus, ray_session
from consomme.storage.files import join_url, open_store


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe:
    """Which models are measured on what."""

    name: str
    """Name of the run."""

    models: dict[str, str]
    """Label -> model: a Hugging Face folder, a run folder, or `package://models/nano`."""

    benchmarks: tuple[dict[str, Any], ...] = strategy("consomme.evaluate.benchmarks:BENCHMARKS")
    """What they are measured on; see consomme/evaluate/benchmarks.py."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    num_actors: int | None = runtime(None)
    """Actors; None takes one per GPU, or one per CPU."""


class Answerer:
    """An actor that holds one model at a time and answers benchmarks."""

    def __init__(self) -> None:
        """Start without a model."""
        self.model = ""
        self.engine: Any = None

    def answer(self, number: int, model: str, benchmark: dict[str, Any]) -> tuple[int, list[str]]:
        """Answer every request of a benchmark with one model; `number` comes back with them."""
        from consomme.engines.transformers_writer import TransformersWriter
        from consomme.evaluate.benchmarks import BENCHMARKS

        if model != self.model:
            self.engine, self.model = TransformersWriter(model, dtype="float32"), model
        built = BENCHMARKS.build(benchmark)
        items = built.items()
        answers: list[str] = self.engine.answer(
            [item.image for item in items], [item.prompt for item in items], built.max_tokens
        )
        return number, answers


def run(recipe: EvaluateRecipe) -> Manifest:
    """Measure every model on every benchmark."""
    from consomme.evaluate.benchmarks import BENCHMARKS

    folders = {label: model_folder(model) for label, model in recipe.models.items()}
    prints = {label: model_content_hash(folder) for label, folder in folders.items()}
    attempt = begin("evaluate", recipe, inputs=prints, reads=list(folders.values()))
    if attempt.folder.is_done:
        return attempt.folder.manifest()
    benchmarks = [BENCHMARKS.build(node, "benchmarks") for node in recipe.benchmarks]
    wanted = [(label, number) for label in folders for number in range(len(benchmarks))]
    answers = answer_all(
        recipe.root,
        [(folders[label], prints[label], recipe.benchmarks[number]) for label, number in wanted],
        recipe.num_actors,
    )
    table: dict[str, dict[str, dict[str, float]]] = {label: {} for label in folders}
    metrics: dict[str, float] = {}
    for (label, number), given in zip(wanted, answers, strict=True):
        name = benchmark_name(recipe.benchmarks[number])
        table[label][name] = benchmarks[number].measure(given)
        for figure, value in table[label][name].items():
            metrics[f"evaluate/{label}/{name}/{figure}"] = value
    return attempt.finish(
        counts={"models": len(folders), "benchmarks": len(benchmarks)},
        decisions={"results": table, "table": _main_figures(table)},
        metrics=metrics,
    )


def _main_figures(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """The first figure of every benchmark, one row per model, for the command line."""
    labels = list(table)
    names = list(table[labels[0]])
    rows = []
    for name in names:
        figure = next(iter(table[labels[0]][name]))
        shown = f"{name}: {figure.removesuffix('_fraction').replace('_', ' ')}"
        rows.append([shown, *(table[label][name][figure] for label in labels)])
    return {"title": "main figure of each benchmark", "columns": ["", *labels], "rows": rows}


def benchmark_name(node: Mapping[str, Any]) -> str:
    """Name a benchmark in tables: its registered name and what tells it from others."""
    marks = [str(node[key]) for key in ("style",) if key in node]
    if node.get("kinds"):
        marks.append("+".join(node["kinds"]))
    return "_".join([str(node["name"]), *marks, *(["blank"] if node.get("blank") else [])])


def answer_all(
    root: str, requests: Sequence[tuple[str, str, Mapping[str, Any]]], num_actors: int | None
) -> list[list[str]]:
    """Answer (model folder, model fingerprint, benchmark) requests, if possible from the cache.

    The cache lies in `<root>/cache/answers`, keyed by the content of the model and the benchmark: a
    new checkpoint written to an old path is a new key.
    """
    from consomme.evaluate.benchmarks import BENCHMARKS, describe

    cache = ResultCache(open_store(join_url(root, "cache")), "answers")
    keys = [
        result_key(
            model_hash=print_,
            benchmark=str(node["name"]),
            benchmark_hash=describe(BENCHMARKS.build(node)),
            decoding={"engine": "transformers", "temperature": 0},
        )
        for _, print_, node in requests
    ]
    known = {key: found for key in dict.fromkeys(keys) if (found := cache.get(key)) is not None}
    missing = [n for n, key in enumerate(keys) if key not in known]
    if missing:
        with ray_session(), Progress(len(missing), "evaluate", "benchmarks") as progress:
            import ray

            gpus = int(ray.cluster_resources().get("GPU", 0))
            size = min(len(missing), num_actors or gpus or num_cpus())
            # "DEFAULT" because a trial of a sweep claims nothing that its actors could share.
            actor = ray.remote(
                num_cpus=0.9, num_gpus=1 if gpus else 0, scheduling_strategy="DEFAULT"
            )(Answerer)
            pool = ray.util.ActorPool([actor.remote() for _ in range(size)])
            for number in missing:
                folder, _, node = requests[number]
                pool.submit(
                    lambda member, given: member.answer.remote(*given), (number, folder, dict(node))
                )
            while pool.has_next():
                number, given = pool.get_next_unordered()
                known[keys[number]] = {"answers": given}
                cache.put(keys[number], known[keys[number]])
                progress.advance()
    return [known[key]["answers"] for key in keys]
