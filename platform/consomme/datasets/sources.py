"""Strategies that make samples out of the embedded data, for the `prepare` verb.

One decision is made here: what a sample made of embedded data carries in `meta`, so that later
stages can judge it (`scene_seed` and `style` for scenes, `keywords` and `names` for emoji).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from consomme.base.errors import RecipeError
from consomme.base.registry import Registry
from consomme.base.sample import Sample, caption_turns
from consomme.base.suggest import did_you_mean
from consomme.datasets import emoji, scene_tasks, scenes
from consomme.datasets.scene_claims import Claims, check_caption


class SampleSource(Protocol):
    """Makes good pairs."""

    def __call__(self) -> Iterator[Sample]:
        """Yield samples, always the same ones in the same order."""


SAMPLE_SOURCES: Registry[SampleSource] = Registry("sample source", "consomme/datasets/sources.py")


@SAMPLE_SOURCES.register("emoji")
@dataclass(frozen=True, kw_only=True)
class EmojiSource:
    """Emoji pictures with their English CLDR names as captions."""

    styles: tuple[str, ...] = ("noto",)
    """Picture styles: one of `consomme.datasets.emoji`; `twemoji` is the held-out one."""

    every: int = 1
    """Take each n-th emoji; 1 takes all."""

    def __post_init__(self) -> None:
        """Check the styles and the step."""
        known = (*emoji.TRAIN_STYLES, emoji.HELD_OUT_STYLE)
        for style in self.styles:
            if style not in known:
                raise RecipeError(f"unknown emoji style {style!r}{did_you_mean(style, known)}")
        if self.every < 1:
            raise RecipeError(f"every: found {self.every}, expected 1 or more")

    def __call__(self) -> Iterator[Sample]:
        """Yield one sample per picture, style by style."""
        for style in self.styles:
            for entry in emoji.load(style)[:: self.every]:
                yield Sample(
                    sample_id=entry.sample_id,
                    image=entry.image,
                    image_name=f"{entry.sample_id}.webp",
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
class SceneSource:
    """Rendered scenes with complete, true captions."""

    num: int = 1000
    """How many."""

    first_seed: int = 0
    """Seed of the first scene; the others follow. From 1,000,000 on they trained the nano VLM."""

    style: Literal["filled", "outline"] = "filled"
    """`outline` is a way of drawing that the nano VLM has never seen."""

    def __call__(self) -> Iterator[Sample]:
        """Yield the scenes in the order of their seeds."""
        for seed in range(self.first_seed, self.first_seed + self.num):
            scene = scenes.make_scene(seed, self.style)
            key = f"scene-{self.style}-{seed:07d}"
            yield Sample(
                sample_id=key,
                image=scenes.encode(scenes.render(scene)),
                image_name=f"{key}.png",
                turns=caption_turns(scenes.caption(scene)),
                source="scenes",
                meta={"scene_seed": seed, "style": self.style},
            )


@dataclass(frozen=True, kw_only=True)
class _Conversations:
    """What the sources for specialists have in common."""

    num: int = 1000
    """How many."""

    style: Literal["filled", "outline"] = "filled"
    """`outline` is a way of drawing that the nano VLM has never seen."""

    num_turns: int = 3
    """Most questions per picture. More than one can teach a small model to copy from earlier
    answers: the nano VLM was right in 69 % when asked alone after that, and in 99 % without it."""

    narrate_fraction: float = 0.25
    """Share of samples that hold the task's prompt and the whole answer instead of questions."""

    first_seed: int
    """Seed of the first scene; the others follow."""

    task: ClassVar[str]

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.num_turns < 1:
            raise RecipeError(f"num_turns: found {self.num_turns}, expected 1 or more")
        if not 0 <= self.narrate_fraction <= 1:
            raise RecipeError(
                f"narrate_fraction: found {self.narrate_fraction}, expected a share in [0, 1]"
            )

    def __call__(self) -> Iterator[Sample]:
        """Yield the scenes that suit the task, in the order of their seeds."""
        task = scene_tasks.TASKS[self.task]
        for seed, scene in scene_tasks.scenes_for(task, self.first_seed, self.num, self.style):
            key = f"scene-{self.task}-{self.style}-{seed:07d}"
            yield Sample(
                sample_id=key,
                image=scenes.encode(scenes.render(scene)),
                image_name=f"{key}.png",
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
    """Seed of the first scene; the others follow. Benchmarks begin at 500,000."""

    task: ClassVar[str] = "spatial"


@SAMPLE_SOURCES.register("scene_grounding")
@dataclass(frozen=True, kw_only=True)
class GroundingSource(_Conversations):
    """Conversations about boxes (`[xmin,ymin,xmax,ymax]`, 0 to 999), for a grounding specialist."""

    first_seed: int = 300_000
    """Seed of the first scene; the others follow. Benchmarks begin at 500,000."""

    task: ClassVar[str] = "grounding"


@SAMPLE_SOURCES.register("scene_talk")
@dataclass(frozen=True, kw_only=True)
class TalkSource(_Conversations):
    """Captions, and questions of every kind: what a model is instruction-tuned on."""

    first_seed: int = 350_000
    """Seed of the first scene; the others follow. Benchmarks begin at 500,000."""

    task: ClassVar[str] = "talk"


@SAMPLE_SOURCES.register("scene_ocr")
@dataclass(frozen=True, kw_only=True)
class OcrSource(_Conversations):
    """Conversations about the drawn word, for a reading specialist; one scene in four has none."""

    first_seed: int = 400_000
    """Scenes are looked for from this seed on; half of them are used. Benchmarks begin at
    500,000."""

    task: ClassVar[str] = "ocr"


def judge_caption(sample: Sample, caption: str) -> tuple[int, int, int] | None:
    """Count a caption's claims against the scene a sample was made from.

    Returns:
        Numbers of true, false and missing claims; None where no truth is known.
    """
    if "scene_seed" not in sample.meta:
        return None
    scene = scenes.make_scene(int(sample.meta["scene_seed"]), str(sample.meta["style"]))
    claims: Claims = check_caption(scene, caption)
    return len(claims.true), len(claims.false), len(claims.missing)
