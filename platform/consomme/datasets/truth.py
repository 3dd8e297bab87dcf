"""Check captions against what is known to be true of their images, claim by claim.

A recaption recipe names a strategy, `truth: {name: scenes}`. Real data has no such truth, so the
default is `none`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from consomme.base.registry import Registry
from consomme.base.sample import Sample
from consomme.datasets import scenes
from consomme.datasets.scene_claims import check_caption


class CaptionTruth(Protocol):
    """A strategy that counts the claims of a caption."""

    def __call__(self, sample: Sample, caption: str) -> tuple[int, int, int] | None:
        """Return the number of true, false and missing claims; None if the truth is unknown."""


CAPTION_TRUTHS: Registry[CaptionTruth] = Registry("caption truth", "consomme/datasets/truth.py")


@CAPTION_TRUTHS.register("none")
@dataclass(frozen=True, kw_only=True)
class UnknownTruth:
    """Nothing is known about the images: claims are not counted."""

    def __call__(self, sample: Sample, caption: str) -> None:
        """Count nothing."""


@CAPTION_TRUTHS.register("scenes")
@dataclass(frozen=True, kw_only=True)
class SceneTruth:
    """Samples are rendered scenes of `prepare`, whose metadata says how to make them again."""

    def __call__(self, sample: Sample, caption: str) -> tuple[int, int, int] | None:
        """Count the claims against the scene; None for samples of another kind."""
        if "scene_seed" not in sample.meta or len(sample.images) != 1:
            return None
        scene = scenes.make_scene(int(sample.meta["scene_seed"]), str(sample.meta["style"]))
        claims = check_caption(scene, caption)
        return len(claims.true), len(claims.false), len(claims.missing)
