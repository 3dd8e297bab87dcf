"""What chooses a model must not report it: questions that two benchmarks have in common.

A model looks good on whatever chose it. So the questions that choose (an ingredient, a trial, a
checkpoint, a round) and those that report are compared before anything runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from consomme.base.errors import RecipeError
from consomme.evaluate.benchmark import BENCHMARKS, Benchmark, HasParts, parts_of

ALLOWED = "reports_what_it_chose_by"
"""Key of a recipe that allows it."""


@runtime_checkable
class HasNames(Protocol):
    """A benchmark that can name its questions without making their images."""

    def question_names(self) -> Sequence[frozenset[str]]:
        """Return names of each question; two questions that share a name are the same.

        Names say what is asked, never where it lies. What has other names for other versions of a
        question, such as another drawing of a scene, gives the name that they share.
        """


@dataclass(frozen=True, kw_only=True)
class NamedBenchmark:
    """A benchmark of a recipe, and the key that names it there."""

    key: str
    node: Mapping[str, Any]


def question_names(benchmark: Benchmark) -> list[frozenset[str]]:
    """Return the names of all questions of a benchmark; see `HasNames`."""
    if isinstance(benchmark, HasParts):
        return [name for part in parts_of(benchmark) for name in question_names(part)]
    if isinstance(benchmark, HasNames):
        return list(benchmark.question_names())
    return [frozenset([_item_name(item)]) for item in benchmark.items()]


def shared_problems(
    choosing: Iterable[NamedBenchmark], reporting: Iterable[NamedBenchmark]
) -> Iterator[str]:
    """Yield a sentence for each pair of benchmarks that have questions in common.

    Raises:
        DataError: A benchmark's data cannot be read.
    """
    reports = [(one, question_names(BENCHMARKS.build(one.node, one.key))) for one in reporting]
    for chooser in choosing if reports else ():
        names = question_names(BENCHMARKS.build(chooser.node, chooser.key))
        known = {name for some in names for name in some}
        for reporter, asked in reports:
            shared = sum(not known.isdisjoint(some) for some in asked)
            if shared:
                yield (
                    f"{reporter.key}: {shared} of its {len(asked)} questions are among those of"
                    f" {chooser.key}, which chooses; a model looks good on what chose it. Report"
                    " other rows (where, max_rows, another file, first_seed), or say"
                    f" {ALLOWED}=true"
                )


def check_disjoint(
    choosing: Iterable[NamedBenchmark], reporting: Iterable[NamedBenchmark], *, where: str
) -> None:
    """Check that no question both chooses and reports.

    Args:
        choosing: Benchmarks that choose.
        reporting: Benchmarks whose figures are shown as the result.
        where: What is checked, for the message.

    Raises:
        RecipeError: Some do; all pairs at once.
        DataError: A benchmark's data cannot be read.
    """
    problems = list(shared_problems(choosing, reporting))
    if problems:
        raise RecipeError.from_problems(where, problems)


def name_of(kind: str, *parts: str | bytes) -> str:
    """Return a name of a question from what is asked."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else " ".join(part.split()).casefold().encode()
        digest.update(hashlib.sha256(data).digest())
    return f"{kind} {digest.hexdigest()}"


def scene_names(seeds: Iterable[int]) -> frozenset[str]:
    """Return the names of the scenes of some seeds, however they are drawn."""
    return frozenset(f"scene {seed}" for seed in seeds)


def _item_name(item: Any) -> str:
    images = [
        part
        for image in item.images
        for part in (f"{image.mode} {image.size}", hashlib.sha256(image.tobytes()).digest())
    ]
    return name_of("item", *(turn.text for turn in item.turns), item.truth, *images)
