"""Compositional tests on rendered scenes: which caption is true, by likelihood."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from consomme.base.bounds import PositiveInt
from consomme.base.checked import rule
from consomme.datasets import scenes
from consomme.datasets.negatives import rule_name_problems
from consomme.datasets.scene_pairs import ScenePair, negative_pairs, place_sets
from consomme.datasets.scene_regions import named_regions
from consomme.evaluate.benchmark import (
    BENCHMARKS,
    BenchmarkItem,
    Guidable,
    accuracy_by_kind,
    accuracy_figures,
    mean,
    shown,
)
from consomme.evaluate.compositional import set_figures


@dataclass(frozen=True, kw_only=True)
class _ScenePairs(Guidable, ABC):
    """Base of tests whose captions compete by likelihood."""

    not_identity: ClassVar[tuple[str, ...]] = ()
    max_tokens: ClassVar[int] = 0
    candidates_name_regions: ClassVar[bool] = True

    num: PositiveInt = 100
    """Scenes with captions; or sets of four scenes."""

    first_seed: int = 850_000
    """Seed of the first scene."""

    style: Literal["filled", "outline"] = "filled"
    """How the scenes are drawn."""

    prompt: str = "describe the image."
    """What is asked; captions are answers to it."""

    blank: bool = False
    """Show a grey picture, which gives what the language model knows by itself."""

    @abstractmethod
    def _made(self) -> Iterator[ScenePair]:
        """Yield the pairs."""

    @cached_property
    def _pairs(self) -> list[ScenePair]:
        return list(self._made())

    def data_version(self) -> str:
        """Return a hash of scenes and captions."""
        return hashlib.sha256(repr(self._pairs).encode()).hexdigest()

    def items(self) -> list[BenchmarkItem]:
        """A request for each scene."""
        return [
            BenchmarkItem.of_prompt(
                self.prompt,
                shown(scenes.render(one.scene), self.blank),
                truth=one.captions[0],
                meta={"boxes": named_regions(one.scene, one.captions[0])},
            )
            for one in self._pairs
        ]

    def candidates(self, number: int) -> Mapping[str, str]:
        """Return all captions of a scene."""
        return {str(k): text for k, text in enumerate(self._pairs[number].captions)}

    def choose(self, nlls: Mapping[str, float], number: int) -> str:
        """Return all likelihoods."""
        del number
        return json.dumps(nlls)

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """1 where the true caption is the most likely one."""
        found = []
        for answer in answers:
            nlls = json.loads(answer) if answer else {}
            others = [nll for name, nll in nlls.items() if name != "0"]
            found.append(float(bool(others) and nlls["0"] < min(others)))
        return found

    def outcomes(self, answers: Sequence[str]) -> list[float]:
        """1 where a scene is right."""
        return self.verdicts(answers)

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Accuracy with its interval, overall and by kind, and by chance."""
        right = self.verdicts(answers)
        kinds = [one.kind for one in self._pairs]
        chance = mean([1 / len(one.captions) for one in self._pairs])
        return (
            accuracy_figures(right) | {"chance_fraction": chance} | accuracy_by_kind(right, kinds)
        )


@BENCHMARKS.register("scene_negatives")
@dataclass(frozen=True, kw_only=True)
class SceneNegatives(_ScenePairs):
    """Captions of scenes against a hard negative each, which is false for certain (SugarCrepe)."""

    kinds: tuple[str, ...] = ("swap_obj", "swap_att", "replace_obj", "replace_att", "replace_rel")
    """Rules by which negatives are made, in turn; see consomme/datasets/negatives.py."""

    @rule
    def _known_rules(self) -> Iterator[str]:
        yield from rule_name_problems(self.kinds)

    def _made(self) -> Iterator[ScenePair]:
        return negative_pairs(self.kinds, self.first_seed, self.num, self.style)


@BENCHMARKS.register("scene_places")
@dataclass(frozen=True, kw_only=True)
class ScenePlaces(_ScenePairs):
    """Where one of two objects is: left, right, above or below, in sets of four (What'sUp)."""

    num: PositiveInt = 50
    """Sets of four scenes."""

    def _made(self) -> Iterator[ScenePair]:
        return place_sets(self.first_seed, self.num, self.style)

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Accuracy of single scenes, of pairs of opposite places, and of sets of four."""
        places = [(one.group, one.kind) for one in self._pairs]
        return super().measure(answers) | set_figures(self.verdicts(answers), places)
