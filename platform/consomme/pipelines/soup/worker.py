"""Ask candidate soups in a Ray actor: mix in memory, then answer benchmarks.

Ingredients are read from their files for each candidate, whose pages the kernel keeps once for all
actors of a node: mixing three models of 135 million weights takes 2.1 s of a core that way, and 1.8
mapped into memory, where a file that is cut off would end the process instead of being reported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from consomme.evaluate.early_stop import EarlyStop
from consomme.evaluate.engine_rules import DEFAULT_ENGINE
from consomme.pipelines.evaluate.answers import Answers
from consomme.pipelines.evaluate.in_memory import InMemoryAnswerer
from consomme.pipelines.evaluate.stage import Answer, Refusal
from consomme.pipelines.soup.exchange_check import check_exchange
from consomme.pipelines.soup.racing import CHOICE, Race
from consomme.soup.blends import Candidate, Grouping, TensorGroups, from_plain
from consomme.soup.methods import METHODS
from consomme.soup.opening import open_models
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder

ANSWERS = "answers"
"""Key of a report: the answers to each benchmark that was asked, by its number, as JSON."""

STOPPED = "stopped"
"""Key of a report of a candidate that was not asked to the end: how many questions it was asked,
and its answers, as JSON."""

BEAT = "beat"
"""Key of a trial: the weighted score of each question of the candidate to beat."""


class CandidateRunner:
    """Asks one candidate soup per trial; the engines stay loaded between trials."""

    def __init__(
        self,
        models: Mapping[str, str],
        benchmarks: Sequence[Mapping[str, Any]],
        *,
        model_hash: str,
        run_folder: RunFolder,
        base: str | None = None,
        base_hash: str | None = None,
        method: Mapping[str, Any] | None = None,
        dtype: str | None = None,
        groups: Mapping[Grouping, TensorGroups] | None = None,
        early_stop: EarlyStop | None = None,
        engine: Mapping[str, Any] = DEFAULT_ENGINE,
    ) -> None:
        """Open the ingredients; all have the architecture of the first one.

        Args:
            models: All ingredients by label, as `model_folder` takes them on any machine.
            benchmarks: Registry nodes, by number.
            model_hash: Of the content of the first ingredient.
            run_folder: Of the run; the first actor writes the results of self-checks there.
            base: The model that guards compare with and differences are taken from, as `models`.
            base_hash: Of its content.
            method: Registry node of how weights are mixed; None: averaged.
            dtype: Of the mixed weights, in notation of safetensors; None: as they are stored.
            groups: What the groupings of blends mean for these models.
            early_stop: When a candidate is asked no more; None: never.
            engine: Registry node of the engine that answers.
        """
        # Labels decide the order of sums and what is drawn, here as where a soup is written.
        opened = open_models(models, base)
        self.ingredients = opened.ingredients
        self.run_folder = run_folder
        self.engine = engine
        self.answerer = self._answerer(str(self.ingredients[0].folder), model_hash)
        self.dtype, self.groups = dtype, dict(groups or {})
        self.method = METHODS.build(method or {"name": "average"})
        self.origin = opened.base_of(self.method)
        self.nodes, self.base, self.base_hash = benchmarks, base, base_hash
        self.candidate: Candidate = ()
        self.numbers: list[int] = []
        self.beat: list[float] | None = None
        self.early_stop = early_stop
        self._is_checked = engine["name"] == "transformers"
        """Whether the engine is known to exchange all that it holds of the weights."""

    @cached_property
    def race(self) -> Race:
        """Compares candidates by the benchmark that chooses."""
        assert self.early_stop is not None
        return Race(self.benchmarks[CHOICE], self.early_stop)

    @cached_property
    def benchmarks(self) -> list[Any]:
        """The benchmarks by number."""
        from consomme.evaluate.benchmarks import BENCHMARKS

        return [BENCHMARKS.build(node) for node in self.nodes]

    def start(self, config: dict[str, Any]) -> None:
        """Take the candidate from `config`, as `plain` wrote it, and `numbers` of benchmarks.

        With `BEAT` it is asked the benchmark that chooses first, and no more if it is hopeless.
        """
        self.candidate, self.numbers = from_plain(config), config["numbers"]
        self.beat = config.get(BEAT)

    def step(self) -> dict[str, Any]:
        """Mix the candidate and let it answer."""
        answerer = self._opened()
        try:
            return self._answered(answerer)
        finally:
            if answerer is not self.answerer:
                answerer.close()

    def _answered(self, answerer: InMemoryAnswerer) -> dict[str, Any]:
        answers: dict[int, Answers] = {}
        if self.beat is not None:
            raced = self._raced(answerer, self.beat)
            if not isinstance(raced, Answers):
                return {STOPPED: json.dumps(raced), "done": True}
            answers[CHOICE] = raced
        for number in self.numbers:
            if number not in answers:
                answers[number] = answerer.answer(self.benchmarks[number])
        plain = {number: given.to_dict() for number, given in answers.items()}
        return {ANSWERS: json.dumps(plain), "done": True}

    def _raced(self, answerer: InMemoryAnswerer, beat: list[float]) -> Answers | dict[str, Any]:
        """Return all answers, or what a candidate was asked that is hopeless."""
        benchmark = self.benchmarks[CHOICE]
        found: dict[int, Answer | Refusal] = {}

        def ask(numbers: Sequence[int]) -> dict[int, str]:
            some = answerer.answer_some(benchmark, numbers)
            found.update(some)
            return {k: one.text if isinstance(one, Answer) else "" for k, one in some.items()}

        stopped = self.race.run(ask, beat)
        total = sum(map(len, self.race.questions.requests))
        if stopped is None:
            ask([number for number in range(total) if number not in found])
            return answerer.answers_of(benchmark, [found[number] for number in range(total)])
        texts = [
            one.text if isinstance(one := found.get(number), Answer) else ""
            for number in range(total)
        ]
        return {"num_questions": stopped.num_questions, "texts": texts}

    def _answerer(self, folder: str, model_hash: str) -> InMemoryAnswerer:
        return InMemoryAnswerer(
            folder, model_hash=model_hash, template={}, run=self.run_folder, engine=self.engine
        )

    def _opened(self) -> InMemoryAnswerer:
        from consomme.soup.mixing import ModelMix, mixed_tensors

        if self.candidate == (len(self.ingredients),):
            assert self.base is not None
            assert self.base_hash is not None
            # It may have another dtype, tokenizer or template than what was made of it. It is asked
            # once; on a GPU, engines leave no room for another one.
            self.answerer.close()
            return self._answerer(model_folder(self.base), self.base_hash)
        if not self._is_checked:
            check_exchange(
                self.answerer,
                self.ingredients[1],
                lambda folder: self._answerer(folder, self.answerer.model_hash),
                self.run_folder,
            )
            self._is_checked = True
        mix = ModelMix.of_candidate(
            self.ingredients,
            self.candidate,
            self.groups,
            method=self.method,
            base=self.origin,
            dtype=self.dtype,
        )
        self.answerer.load_weights(lambda: dict(mixed_tensors(mix)))
        return self.answerer

    def stop(self) -> None:
        """Keep the engines for the next trial."""
