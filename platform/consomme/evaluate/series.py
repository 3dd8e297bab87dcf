"""Benchmarks with several images per question: which of them, what changed, documents.

Two controls: `blank` shows grey images; `shuffled` shows the right number of wrong ones, or the
right ones in the wrong order. A model that uses the images answers neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from consomme.base.bounds import PositiveInt
from consomme.base.checked import rule
from consomme.base.suggest import did_you_mean
from consomme.datasets import scene_series, scenes
from consomme.datasets.scene_regions import named_regions
from consomme.evaluate.benchmark import (
    BENCHMARKS,
    BenchmarkItem,
    Guidable,
    accuracy_by_kind,
    accuracy_figures,
    shown,
)
from consomme.evaluate.disjoint import scene_names
from consomme.evaluate.metrics import exact_match

Shuffled = Literal["items", "order"]
"""`items` shows each question the images of the next one; `order` shows its own, the first one
last."""


@dataclass(frozen=True, kw_only=True)
class _SceneSeries(Guidable):
    """Base of the benchmarks on several scenes."""

    num: PositiveInt = 300
    """Questions."""

    kinds: tuple[str, ...] = ()
    """Kinds of questions; empty means all. Others are left out, so fewer than `num` are asked."""

    style: Literal["filled", "outline"] = "filled"
    """How the scenes are drawn."""

    blank: bool = False
    """Show grey images."""

    shuffled: Shuffled | None = None
    """Show wrong images: `items` those of the next question, `order` the question's own with the
    first one last. With `order`, a model that uses the images is worse than by chance."""

    first_seed: int
    """Seed of the first scene."""

    max_tokens: PositiveInt
    """Maximum answer length in tokens."""

    task: ClassVar[str]
    known_kinds: ClassVar[tuple[str, ...]]

    @property
    def num_scenes(self) -> int:
        """Images per question."""
        return 2

    @rule
    def _known_kinds(self) -> Iterator[str]:
        for kind in self.kinds:
            if kind not in self.known_kinds:
                yield (
                    f"kinds: unknown kind of question {kind!r}"
                    f"{did_you_mean(kind, self.known_kinds)}; expected some of"
                    f" {', '.join(self.known_kinds)}"
                )

    @rule
    def _one_control(self) -> Iterator[str]:
        if self.blank and self.shuffled:
            yield (
                f"found blank=true and shuffled={self.shuffled}, but grey images in another order"
                " are the same; set one of them"
            )

    @cached_property
    def _series(self) -> list[scene_series.SceneSeries]:
        found = scene_series.series_from(
            self.task, self.first_seed, self.num, self.style, self.num_scenes
        )
        return [one for _, one in found if not self.kinds or one.kind in self.kinds]

    def question_names(self) -> list[frozenset[str]]:
        """Name the scenes of each question; see `consomme.evaluate.disjoint`."""
        return [
            scene_names(range(seed, seed + self.num_scenes))
            for seed, one in scene_series.series_from(
                self.task, self.first_seed, self.num, self.style, self.num_scenes
            )
            if not self.kinds or one.kind in self.kinds
        ]

    def items(self) -> list[BenchmarkItem]:
        """All questions."""
        shown_scenes = [one.scenes for one in self._series]
        if self.shuffled == "items":
            shown_scenes = [*shown_scenes[1:], *shown_scenes[:1]]
        elif self.shuffled == "order":
            shown_scenes = [(*own[1:], *own[:1]) for own in shown_scenes]
        return [
            BenchmarkItem(
                turns=one.prompt,
                images=tuple(shown(scenes.render(scene), self.blank) for scene in own),
                truth=one.answer,
                meta={"boxes": [named_regions(scene, one.prompt[-1].text) for scene in own]},
            )
            for one, own in zip(self._series, shown_scenes, strict=True)
        ]

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """1 where the answer is correct, word for word."""
        return [
            float(exact_match(answer, one.answer))
            for answer, one in zip(answers, self._series, strict=True)
        ]

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Accuracy, overall and by kind of question, and that of the best fixed answers."""
        right = self.verdicts(answers)
        kinds = [one.kind for one in self._series]
        by_chance = {"accuracy_of_fixed_answers_fraction": self.chance()}
        return accuracy_figures(right) | by_chance | accuracy_by_kind(right, kinds)

    def chance(self) -> float:
        """Return the accuracy without looking: of the most frequent answer to each kind."""
        answers: dict[str, Counter[str]] = {}
        for one in self._series:
            answers.setdefault(one.kind, Counter())[one.answer] += 1
        return sum(max(counts.values()) for counts in answers.values()) / len(self._series)


@BENCHMARKS.register("scene_which")
@dataclass(frozen=True, kw_only=True)
class SceneWhich(_SceneSeries):
    """Which of several images has an object, a color, a shape or a word; and captions of one."""

    num_images: scene_series.NumScenes = 3
    """Images per question."""

    first_seed: int = 650_000
    """Seed of the first scene."""

    max_tokens: PositiveInt = 64
    """Maximum answer length in tokens; a caption takes most of it."""

    task: ClassVar[str] = "which"
    known_kinds: ClassVar[tuple[str, ...]] = scene_series.WHICH_KINDS

    @property
    def num_scenes(self) -> int:
        """Images per question."""
        return self.num_images


@BENCHMARKS.register("scene_changes")
@dataclass(frozen=True, kw_only=True)
class SceneChanges(_SceneSeries):
    """What is different between two images; one object is."""

    first_seed: int = 700_000
    """Seed of the first scene."""

    max_tokens: PositiveInt = 24
    """Maximum answer length in tokens."""

    task: ClassVar[str] = "changes"
    known_kinds: ClassVar[tuple[str, ...]] = scene_series.CHANGE_KINDS


@BENCHMARKS.register("scene_documents")
@dataclass(frozen=True, kw_only=True)
class SceneDocuments(_SceneSeries):
    """The text after the last image of a document, which continues what stands before it."""

    num_images: scene_series.NumScenes = 3
    """Images per document."""

    first_seed: int = 750_000
    """Seed of the first scene."""

    max_tokens: PositiveInt = 64
    """Maximum length of the text in tokens."""

    task: ClassVar[str] = "documents"
    known_kinds: ClassVar[tuple[str, ...]] = (
        scene_series.CAPTION_KIND,
        *scene_series.CHANGE_KINDS,
    )

    @property
    def num_scenes(self) -> int:
        """Images per document."""
        return self.num_images
