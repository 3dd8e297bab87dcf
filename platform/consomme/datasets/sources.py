"""Strategies that create samples from the embedded data, for the `prepare` verb.

The `meta` of each sample has what is needed to check captions of it later: `scene_seed` and `style`
for a scene, `keywords` and `names` for emoji. Samples of several scenes have `first_scene_seed`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from consomme.base.bounds import Fraction, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.registry import Registry
from consomme.base.sample import ImageFile, Sample, caption_turns
from consomme.base.schema import added
from consomme.base.suggest import did_you_mean
from consomme.datasets import emoji, scene_series, scene_tasks, scenes


class SampleSource(Protocol):
    """Creates samples with correct captions."""

    def __call__(self) -> Iterator[Sample]:
        """Yield samples; every call yields the same ones in the same order."""


SAMPLE_SOURCES: Registry[SampleSource] = Registry("sample source", "consomme/datasets/sources.py")


@SAMPLE_SOURCES.register("emoji")
@dataclass(frozen=True, kw_only=True)
class EmojiSource(Checked):
    """Emoji pictures with their English CLDR names as captions."""

    styles: tuple[str, ...] = ("noto",)
    """Picture styles, see `consomme.datasets.emoji`; `twemoji` is the held-out one."""

    every: PositiveInt = 1
    """Take every n-th emoji; 1 takes all."""

    @rule
    def _known_styles(self) -> Iterator[str]:
        known = (*emoji.TRAIN_STYLES, emoji.HELD_OUT_STYLE)
        for style in self.styles:
            if style not in known:
                yield f"unknown emoji style {style!r}{did_you_mean(style, known)}"

    def __call__(self) -> Iterator[Sample]:
        """Yield one sample per picture, style by style."""
        for style in self.styles:
            for entry in emoji.load(style)[:: self.every]:
                yield Sample(
                    sample_id=entry.sample_id,
                    images=(ImageFile(data=entry.image, name=f"{entry.sample_id}.webp"),),
                    turns=caption_turns(entry.name),
                    source="emoji",
                    meta={
                        "style": style,
                        "keywords": list(entry.keywords),
                        "names": entry.names,
                    },
                )


@SAMPLE_SOURCES.register("scenes")
@dataclass(frozen=True, kw_only=True)
class SceneSource(Checked):
    """Rendered scenes with complete, true captions."""

    num: PositiveInt = 1000
    """Number of scenes."""

    first_seed: int = 0
    """Seed of the first scene; the next ones follow. The nano VLM trained on 1,000,000 and up."""

    style: Literal["filled", "outline"] = "filled"
    """`outline` is a style that the nano VLM was not trained on."""

    def __call__(self) -> Iterator[Sample]:
        """Yield the scenes in the order of their seeds."""
        for seed in range(self.first_seed, self.first_seed + self.num):
            scene = scenes.make_scene(seed, self.style)
            key = f"scene-{self.style}-{seed:07d}"
            yield Sample(
                sample_id=key,
                images=(ImageFile(data=scenes.encode(scenes.render(scene)), name=f"{key}.png"),),
                turns=caption_turns(scenes.caption(scene)),
                source="scenes",
                meta={"scene_seed": seed, "style": self.style},
            )


@dataclass(frozen=True, kw_only=True)
class _Conversations(Checked):
    """Base of the sources for specialists."""

    num: PositiveInt = 1000
    """Number of scenes."""

    style: Literal["filled", "outline"] = "filled"
    """`outline` is a style that the nano VLM was not trained on."""

    num_turns: PositiveInt = 3
    """Maximum questions per picture. More than one can teach a small model to copy from earlier
    answers: the nano VLM then answered 69 % of single questions correctly, otherwise 99 %."""

    narrate_fraction: Fraction = 0.25
    """Fraction of samples with the task's prompt and its whole answer instead of questions."""

    prompt: str | None = added(None)
    """Prompt of those samples, in your own words, which the specialist is then asked with; None:
    the task's."""

    first_seed: int
    """Seed of the first scene; the next ones follow."""

    task: ClassVar[str]

    def __call__(self) -> Iterator[Sample]:
        """Yield the scenes that suit the task, in the order of their seeds."""
        task = scene_tasks.TASKS[self.task]
        if self.prompt is not None:
            task = dataclasses.replace(task, prompt=self.prompt)
        for seed, scene in scene_tasks.scenes_for(task, self.first_seed, self.num, self.style):
            key = f"scene-{self.task}-{self.style}-{seed:07d}"
            yield Sample(
                sample_id=key,
                images=(ImageFile(data=scenes.encode(scenes.render(scene)), name=f"{key}.png"),),
                turns=scene_tasks.conversation(
                    task,
                    scene,
                    seed,
                    num_turns=self.num_turns,
                    narrate_fraction=self.narrate_fraction,
                ),
                source="scenes",
                meta={"scene_seed": seed, "style": self.style, "task": self.task},
            )


@SAMPLE_SOURCES.register("scene_spatial")
@dataclass(frozen=True, kw_only=True)
class SpatialSource(_Conversations):
    """Conversations about where things are in relation to each other, for a spatial specialist."""

    first_seed: int = 200_000
    """Seed of the first scene; the next ones follow. Benchmarks start at 500,000."""

    task: ClassVar[str] = "spatial"


@SAMPLE_SOURCES.register("scene_grounding")
@dataclass(frozen=True, kw_only=True)
class GroundingSource(_Conversations):
    """Conversations about boxes (`[xmin,ymin,xmax,ymax]`, 0 to 999), for a grounding specialist."""

    first_seed: int = 300_000
    """Seed of the first scene; the next ones follow. Benchmarks start at 500,000."""

    task: ClassVar[str] = "grounding"


@SAMPLE_SOURCES.register("scene_talk")
@dataclass(frozen=True, kw_only=True)
class TalkSource(_Conversations):
    """Captions and questions of every kind, for instruction tuning."""

    first_seed: int = 350_000
    """Seed of the first scene; the next ones follow. Benchmarks start at 500,000."""

    task: ClassVar[str] = "talk"


@SAMPLE_SOURCES.register("scene_ocr")
@dataclass(frozen=True, kw_only=True)
class OcrSource(_Conversations):
    """Conversations about the drawn word, for an OCR specialist; one scene in four has none."""

    first_seed: int = 400_000
    """First seed to consider; half of the scenes are used. Benchmarks start at 500,000."""

    task: ClassVar[str] = "ocr"


@dataclass(frozen=True, kw_only=True)
class _Series(Checked):
    """Base of the sources with several scenes per sample."""

    num: PositiveInt = 1000
    """Number of samples."""

    style: Literal["filled", "outline"] = "filled"
    """`outline` is a style that the nano VLM was not trained on."""

    first_seed: int
    """Seed of the first scene; a sample takes as many seeds as it has images."""

    task: ClassVar[str]

    @property
    def num_scenes(self) -> int:
        """Images per sample."""
        return 2

    def __call__(self) -> Iterator[Sample]:
        """Yield the samples in the order of their seeds."""
        found = scene_series.series_from(
            self.task, self.first_seed, self.num, self.style, self.num_scenes
        )
        for seed, series in found:
            key = f"scene-{self.task}-{self.style}-{seed:07d}"
            yield Sample(
                sample_id=key,
                images=tuple(
                    ImageFile(data=scenes.encode(scenes.render(scene)), name=f"{key}.{number}.png")
                    for number, scene in enumerate(series.scenes)
                ),
                turns=series.turns,
                source="scenes",
                # Not `scene_seed`, which says that the sample is one scene.
                meta={
                    "first_scene_seed": seed,
                    "style": self.style,
                    "task": self.task,
                    "kind": series.kind,
                },
            )


@SAMPLE_SOURCES.register("scene_which")
@dataclass(frozen=True, kw_only=True)
class WhichSource(_Series):
    """Which of several scenes has what no other has; and captions of one of them."""

    num_images: scene_series.NumScenes = 3
    """Images per question."""

    first_seed: int = 50_000
    """Seed of the first scene; a sample takes as many seeds as it has images. Benchmarks start at
    500,000."""

    task: ClassVar[str] = "which"

    @property
    def num_scenes(self) -> int:
        """Images per sample."""
        return self.num_images


@SAMPLE_SOURCES.register("scene_changes")
@dataclass(frozen=True, kw_only=True)
class ChangesSource(_Series):
    """What is different between two scenes: a color, a size, a position, or an object."""

    first_seed: int = 100_000
    """Seed of the first scene; a sample takes two. Benchmarks start at 500,000."""

    task: ClassVar[str] = "changes"


@SAMPLE_SOURCES.register("scene_documents")
@dataclass(frozen=True, kw_only=True)
class DocumentsSource(_Series):
    """Text and scenes in turn; a text describes the scene before it, or says what is different."""

    num_images: scene_series.NumScenes = 3
    """Images per document."""

    first_seed: int = 150_000
    """Seed of the first scene; a document takes as many seeds as it has images. Benchmarks start at
    500,000."""

    task: ClassVar[str] = "documents"

    @property
    def num_scenes(self) -> int:
        """Images per sample."""
        return self.num_images
