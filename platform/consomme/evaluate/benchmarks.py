"""Benchmarks on the embedded data: questions, captions and names with exact ground truth.

`blank=true` shows a grey picture instead, which gives the accuracy of guessing. `series` has those
with several images per question; `benchmark` defines the interface.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar, Literal

from PIL import Image

from consomme.base.bounds import NonNegativeInt, PositiveInt
from consomme.base.checked import rule
from consomme.base.suggest import did_you_mean
from consomme.datasets import emoji, scene_tasks, scenes
from consomme.datasets.augment import plain_view
from consomme.datasets.boxes import iou, parse_boxes
from consomme.datasets.scene_claims import check_caption
from consomme.datasets.scene_regions import named_regions
from consomme.evaluate import (
    captions,
    compositional,
    file_kinds,
    grounding,
    judging,
    language,
    likelihoods,
    open_kind,
    presets,
    scene_pairs,
    series,
    weighted,
)
from consomme.evaluate.benchmark import (
    BENCHMARKS,
    Benchmark,
    BenchmarkItem,
    Guidable,
    accuracy_by_kind,
    accuracy_figures,
    data_inputs,
    describe,
    mean,
    portable_node,
    shown,
)
from consomme.evaluate.disjoint import name_of, scene_names
from consomme.evaluate.metrics import exact_match

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkItem",
    "captions",
    "compositional",
    "data_inputs",
    "describe",
    "file_kinds",
    "grounding",
    "judging",
    "language",
    "likelihoods",
    "open_kind",
    "portable_node",
    "presets",
    "scene_pairs",
    "series",
    "weighted",
]

CAPTION_PROMPT = "describe the image."
NAME_PROMPT = "what emoji is this?"
RIGHT_IOU = 0.5
"""Minimum IoU of a correct box."""


@cache
def _scene_pictures(first_seed: int, num: int, style: str) -> tuple[Image.Image, ...]:
    return tuple(
        scenes.render(scenes.make_scene(seed, style))
        for seed in range(first_seed, first_seed + num)
    )


@BENCHMARKS.register("scene_questions")
@dataclass(frozen=True, kw_only=True)
class SceneQuestions(Guidable):
    """Questions on rendered scenes, scored by exact match."""

    num: PositiveInt = 100
    """Scenes; each has about eight questions."""

    kinds: tuple[str, ...] = ()
    """Kinds of questions, such as [relation, position] or [word]; empty means all."""

    first_seed: int = 500_000
    """Seed of the first scene."""

    style: Literal["filled", "outline"] = "filled"
    """How the scenes are drawn."""

    blank: bool = False
    """Show a grey picture."""

    max_tokens: PositiveInt = 6
    """Maximum answer length in tokens."""

    @rule
    def _known_kinds(self) -> Iterator[str]:
        for kind in self.kinds:
            if kind not in scenes.QUESTION_KINDS:
                yield (
                    f"kinds: unknown kind of question {kind!r}"
                    f"{did_you_mean(kind, scenes.QUESTION_KINDS)}; expected some of"
                    f" {', '.join(scenes.QUESTION_KINDS)}"
                )

    def _scene(self, number: int) -> scenes.Scene:
        return scenes.make_scene(self.first_seed + number, self.style)

    def _questions(self) -> list[tuple[int, scenes.Question]]:
        return [
            (number, question)
            for number in range(self.num)
            for question in scenes.questions(
                scenes.make_scene(self.first_seed + number, self.style), self.first_seed + number
            )
            if not self.kinds or question.kind in self.kinds
        ]

    def question_names(self) -> list[frozenset[str]]:
        """Name the scene of each question; see `consomme.evaluate.disjoint`."""
        return [scene_names([self.first_seed + number]) for number, _ in self._questions()]

    def items(self) -> list[BenchmarkItem]:
        """All questions."""
        pictures = _scene_pictures(self.first_seed, self.num, self.style)
        return [
            BenchmarkItem.of_prompt(
                question.question,
                shown(pictures[number], self.blank),
                truth=question.answer,
                meta={"boxes": named_regions(self._scene(number), question.question)},
            )
            for number, question in self._questions()
        ]

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """1 where the answer is correct."""
        return [
            float(exact_match(answer, question.answer))
            for answer, (_, question) in zip(answers, self._questions(), strict=True)
        ]

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Accuracy, overall and by kind of question."""
        right = self.verdicts(answers)
        kinds = [question.kind for _, question in self._questions()]
        return accuracy_figures(right) | accuracy_by_kind(right, kinds)


@BENCHMARKS.register("scene_choices")
@dataclass(frozen=True, kw_only=True)
class SceneChoices(SceneQuestions):
    """The questions of `scene_questions`, each with all answers that its kind has as options.

    The answer is the option that is most likely by character; the model writes nothing.
    """

    not_identity: ClassVar[tuple[str, ...]] = ()

    @cached_property
    def _asked(self) -> list[tuple[str, str]]:
        """Kind and answer of each question."""
        return [(question.kind, question.answer) for _, question in self._questions()]

    @cached_property
    def _options(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, dict[str, None]] = {}
        for kind, answer in self._asked:
            found.setdefault(kind, {})[answer] = None
        return {kind: tuple(sorted(answers)) for kind, answers in found.items()}

    def data_version(self) -> str:
        """Return a hash of questions and options."""
        return hashlib.sha256(repr(self._asked).encode()).hexdigest()

    def candidates(self, number: int) -> Mapping[str, str]:
        """Return all answers to this kind of question."""
        return {answer: answer for answer in self._options[self._asked[number][0]]}

    def choose(self, nlls: Mapping[str, float], number: int) -> str:
        """Return the answer that is most likely by character."""
        del number
        return min(nlls, key=lambda answer: nlls[answer] / len(answer))

    def outcomes(self, answers: Sequence[str]) -> list[float]:
        """1 where the answer is correct; each question is asked once."""
        return self.verdicts(answers)

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Accuracy, overall and by kind; of guessing, and of the most frequent answer to each."""
        right = self.verdicts(answers)
        kinds = [kind for kind, _ in self._asked]
        most = {kind: Counter(a for k, a in self._asked if k == kind) for kind in self._options}
        fixed = sum(max(counts.values()) for counts in most.values()) / len(self._asked)
        guessed = {
            "chance_fraction": mean([1 / len(self._options[kind]) for kind in kinds]),
            "accuracy_of_fixed_answers_fraction": fixed,
        }
        return accuracy_figures(right) | guessed | accuracy_by_kind(right, kinds)


@BENCHMARKS.register("scene_captions")
@dataclass(frozen=True, kw_only=True)
class SceneCaptions(Guidable):
    """Captions of rendered scenes, checked claim by claim."""

    num: PositiveInt = 100
    """Scenes."""

    first_seed: int = 600_000
    """Seed of the first scene."""

    style: Literal["filled", "outline"] = "filled"
    """How the scenes are drawn."""

    blank: bool = False
    """Show a grey picture."""

    max_tokens: PositiveInt = 64
    """Maximum caption length in tokens."""

    def question_names(self) -> list[frozenset[str]]:
        """Name the scenes; see `consomme.evaluate.disjoint`."""
        return [scene_names([self.first_seed + number]) for number in range(self.num)]

    def items(self) -> list[BenchmarkItem]:
        """One request per scene."""
        pictures = _scene_pictures(self.first_seed, self.num, self.style)
        return [
            BenchmarkItem.of_prompt(
                CAPTION_PROMPT,
                shown(picture, self.blank),
                truth=scenes.caption(self._scene(number)),
                meta={"boxes": named_regions(self._scene(number), CAPTION_PROMPT)},
            )
            for number, picture in enumerate(pictures)
        ]

    def _scene(self, number: int) -> scenes.Scene:
        return scenes.make_scene(self.first_seed + number, self.style)

    def _claims(self, answers: Sequence[str]) -> list[tuple[int, int, int]]:
        counts = []
        for number, answer in enumerate(answers):
            claims = check_caption(self._scene(number), answer)
            counts.append((len(claims.true), len(claims.false), len(claims.missing)))
        return counts

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """Share of true claims per caption; 0 for a caption without claims."""
        return [true / (true + false) if true else 0.0 for true, false, _ in self._claims(answers)]

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Share of true claims, and claims per caption."""
        claims = self._claims(answers)
        true, false, missing = (sum(row[k] for row in claims) for k in range(3))
        return {
            "true_claims_fraction": true / max(true + false, 1),
            "true_claims_per_caption": true / len(claims),
            "false_claims_per_caption": false / len(claims),
            "missing_per_caption": missing / len(claims),
        }


@dataclass(frozen=True, kw_only=True)
class _SceneTask(Guidable):
    """Base of the benchmarks on the specialists' tasks."""

    num: PositiveInt = 100
    """Scenes; each has two to five questions."""

    first_seed: int = 800_000
    """Seed of the first scene."""

    style: Literal["filled", "outline"] = "filled"
    """How the scenes are drawn."""

    blank: bool = False
    """Show a grey picture."""

    max_tokens: PositiveInt = 24
    """Maximum answer length in tokens; a box takes about twenty if each digit is a token."""

    task: ClassVar[str]

    def _seeds(self) -> list[tuple[int, scenes.Scene]]:
        task = scene_tasks.TASKS[self.task]
        return list(scene_tasks.scenes_for(task, self.first_seed, self.num, self.style))

    def _questions(self) -> list[tuple[scenes.Scene, scenes.Question]]:
        task = scene_tasks.TASKS[self.task]
        return [
            (scene, question) for seed, scene in self._seeds() for question in task.ask(scene, seed)
        ]

    def question_names(self) -> list[frozenset[str]]:
        """Name the scenes; see `consomme.evaluate.disjoint`."""
        return [scene_names([seed]) for seed, _ in self._seeds()]

    def items(self) -> list[BenchmarkItem]:
        """All questions."""
        pictures: dict[scenes.Scene, Image.Image] = {}
        items = []
        for scene, question in self._questions():
            if scene not in pictures:
                pictures[scene] = shown(scenes.render(scene), self.blank)
            items.append(
                BenchmarkItem.of_prompt(
                    question.question,
                    pictures[scene],
                    truth=question.answer,
                    meta={"boxes": named_regions(scene, question.question)},
                )
            )
        return items

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """1 where the answer is correct; for a box, where its IoU is at least `RIGHT_IOU`."""
        questions = [question for _, question in self._questions()]
        return [
            float(_is_right(answer, question.answer))
            for answer, question in zip(answers, questions, strict=True)
        ]

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Accuracy, overall and by kind of question; for boxes also the mean IoU."""
        questions = [question for _, question in self._questions()]
        right = self.verdicts(answers)
        overlaps = [
            _overlap(answer, question.answer)
            for answer, question in zip(answers, questions, strict=True)
            if parse_boxes(question.answer)
        ]
        boxes = {"mean_iou_fraction": mean(overlaps)} if overlaps else {}
        kinds = [question.kind for question in questions]
        return accuracy_figures(right) | accuracy_by_kind(right, kinds) | boxes


@BENCHMARKS.register("scene_spatial")
@dataclass(frozen=True, kw_only=True)
class SceneSpatial(_SceneTask):
    """Spatial relations of objects, answered by name, by box, or with yes or no."""

    task: ClassVar[str] = "spatial"


@BENCHMARKS.register("scene_grounding")
@dataclass(frozen=True, kw_only=True)
class SceneGrounding(_SceneTask):
    """Boxes of objects, and objects in boxes; a box is correct from an IoU of a half."""

    task: ClassVar[str] = "grounding"


@BENCHMARKS.register("scene_ocr")
@dataclass(frozen=True, kw_only=True)
class SceneOcr(_SceneTask):
    """Reading the drawn word; three in four scenes have one."""

    task: ClassVar[str] = "ocr"


def _overlap(answer: str, truth: str) -> float:
    """Return the IoU of the first box in an answer with the true one; 0 without a box."""
    boxes = parse_boxes(answer)
    return iou(boxes[0], parse_boxes(truth)[0]) if boxes else 0.0


def _is_right(answer: str, truth: str) -> bool:
    if parse_boxes(truth):
        return _overlap(answer, truth) >= RIGHT_IOU
    return exact_match(answer, truth)


@BENCHMARKS.register("emoji_names")
@dataclass(frozen=True, kw_only=True)
class EmojiNames(Guidable):
    """Naming emoji pictures, scored by exact match."""

    style: str = emoji.HELD_OUT_STYLE
    """Emoji style; the default is held out from the nano VLM's training data."""

    every: PositiveInt = 1
    """Take each n-th emoji."""

    first: NonNegativeInt = 0
    """Index of the first emoji: with `every: 2`, 1 takes those that 0 leaves out."""

    blank: bool = False
    """Show a grey picture."""

    max_tokens: PositiveInt = 16
    """Maximum name length in tokens."""

    def _entries(self) -> tuple[emoji.Emoji, ...]:
        return emoji.load(self.style)[self.first :: self.every]

    def question_names(self) -> list[frozenset[str]]:
        """Name the pictures; see `consomme.evaluate.disjoint`."""
        return [frozenset([name_of("emoji", one.sample_id)]) for one in self._entries()]

    def items(self) -> list[BenchmarkItem]:
        """One request per emoji."""
        entries = self._entries()
        pictures = [Image.fromarray(plain_view(p, 60)) for p in emoji.pixels(entries)]
        return [
            BenchmarkItem.of_prompt(NAME_PROMPT, shown(picture, self.blank), truth=entry.name)
            for picture, entry in zip(pictures, entries, strict=True)
        ]

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """1 where the name is correct."""
        return [
            float(exact_match(answer, entry.name))
            for answer, entry in zip(answers, self._entries(), strict=True)
        ]

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Share of correct names."""
        return accuracy_figures(self.verdicts(answers))
