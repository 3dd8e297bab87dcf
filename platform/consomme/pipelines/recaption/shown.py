"""Which images of a sample the model is shown, in which requests, and what canaries see instead."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from consomme.base.sample import Sample
from consomme.curate.caption.canary import choose_partners
from consomme.execution.stage import DecodedSample

# Shapes: N samples.

ImageRule = Literal["all", "first", "each"]


def groups_of(sample: Sample, rule: ImageRule) -> list[tuple[int, ...]]:
    """Return the images of each request about a sample: their indices, in the order of its text.

    Args:
        sample: One without images has one request.
        rule: `images` of the recipe.
    """
    placed = [index for turn in sample.turns for index in turn.image_indices]
    order = tuple(dict.fromkeys(placed or range(len(sample.images))))
    if rule == "each" and order:
        return [(index,) for index in order]
    return [order[:1] if rule == "first" else order]


def blank(images: Sequence[Image.Image]) -> tuple[Image.Image, ...]:
    """Return grey images of the same sizes."""
    return tuple(Image.new("RGB", image.size, (127, 127, 127)) for image in images)


def swap_partners(
    samples: Sequence[DecodedSample],
    shown: Sequence[Sequence[int]],
    hash_N: NDArray[np.uint64],
    canaries: Sequence[int],
) -> dict[int, int]:
    """Choose the sample whose images each canary is shown: one with as many of them.

    Args:
        samples: Of a unit.
        shown: Indices of the images that the first request about each sample shows.
        hash_N: Hashes of the sample ids.
        canaries: Indices of the canaries.

    Returns:
        Index of the canary -> index of its partner; canaries without a possible partner are left
        out.
    """
    numbers = [len(indices) for indices in shown]
    partners: dict[int, int] = {}
    for number in sorted({numbers[n] for n in canaries}):
        alike = [n for n in range(len(samples)) if numbers[n] == number]
        place = {n: at for at, n in enumerate(alike)}
        hashes_A = _image_hashes([(samples[n].sample, shown[n]) for n in alike])
        ring = [place[n] for n in canaries if n in place]
        found = choose_partners(hash_N[alike], ring, hashes_A)
        partners |= {alike[canary]: alike[other] for canary, other in found.items()}
    return {n: partners[n] for n in canaries if n in partners}


def _image_hashes(samples: Sequence[tuple[Sample, Sequence[int]]]) -> NDArray[np.uint64]:
    """Hash the images, so that a canary is not shown its own image under another id."""
    digests = []
    for sample, indices in samples:
        digest = blake2b(digest_size=8)
        for index in indices:
            digest.update(sample.images[index].data)
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), np.uint64)
