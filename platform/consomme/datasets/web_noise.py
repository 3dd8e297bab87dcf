"""Corrupt correct captions in the ways of web data, and label each corruption.

The labels are the ground truth for filters: `meta.noise` is `clean` or the kind of noise, and
`meta.clean_caption` has the original caption, so that detection can be measured exactly.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from PIL import Image

from consomme.base.errors import RecipeError
from consomme.base.sample import ImageFile, Sample
from consomme.base.suggest import did_you_mean

CLEAN = "clean"
"""Value of `meta.noise` of a sample whose caption was not damaged."""

_SPAM = (
    "Buy {name} online! Free shipping, 50% OFF today only. Order now",
    "{name} - best price guaranteed | shop.example.com | add to cart",
    "NEW 2024 {name} sticker pack, 100 pcs, $3.99, fast delivery!!!",
    "SALE!!! {name} t-shirt, size S-XXL, 5 stars, click here to order",
)
_BOILERPLATE = (
    "Click to enlarge image",
    "Stock photo. All rights reserved. Do not copy without permission.",
    "This website uses cookies to improve your experience.",
    "Image may be subject to copyright. Learn more",
    "No description available.",
    "Advertisement - continue reading below",
)
_TAGS = ("png", "vector", "clipart", "icon", "free download", "hd", "wallpaper", "sticker", "set")


def _mismatched(sample: Sample, others: Sequence[Sample], rng: random.Random) -> str:
    choices = [o.caption for o in rng.sample(others, min(8, len(others)))]
    different = [text for text in choices if text != sample.caption]
    return different[0] if different else f"not {sample.caption}"


def _file_name(sample: Sample, others: Sequence[Sample], rng: random.Random) -> str:
    number = rng.randrange(10_000)
    base_name = "-".join(sample.caption.lower().split()[:2]).strip(".,")
    return rng.choice(
        (
            f"IMG_{number:04d}.JPG",
            f"DSC{number:05d}.jpg",
            f"wp-content/uploads/2019/{rng.randint(1, 12):02d}/{base_name}-{number}.jpeg",
            f"Screenshot_{number}-final-v2.png",
        )
    )


def _spam(sample: Sample, others: Sequence[Sample], rng: random.Random) -> str:
    return rng.choice(_SPAM).format(name=" ".join(sample.caption.split()[:4]).strip(".,"))


def _truncated(sample: Sample, others: Sequence[Sample], rng: random.Random) -> str:
    text = sample.caption
    return text[: max(1, int(len(text) * rng.uniform(0.25, 0.6)))].rstrip() + "..."


def _boilerplate(sample: Sample, others: Sequence[Sample], rng: random.Random) -> str:
    return rng.choice(_BOILERPLATE)


def _keyword_list(sample: Sample, others: Sequence[Sample], rng: random.Random) -> str:
    words = [w.strip('.,"') for w in sample.caption.split() if len(w) > 3]
    words = [*sample.meta.get("keywords", [])[:4], *words[:3], *rng.sample(_TAGS, 4)]
    rng.shuffle(words)
    return ", ".join(words)


_GERMAN = {
    "a": "ein", "and": "und", "at": "am", "the": "dem", "large": "großer", "small": "kleiner",
    "red": "roter", "green": "grüner", "blue": "blauer", "yellow": "gelber", "purple": "lila",
    "orange": "oranger", "pink": "rosa", "black": "schwarzer", "circle": "Kreis",
    "square": "Quadrat", "triangle": "Dreieck", "star": "Stern", "heart": "Herz", "cross": "Kreuz",
    "top": "oberen", "bottom": "unteren", "left": "linken Rand", "right": "rechten Rand",
    "word": "Wort",
}  # fmt: skip


def _other_language(sample: Sample, others: Sequence[Sample], rng: random.Random) -> str:
    names: Mapping[str, str] = sample.meta.get("names", {})
    foreign = {code: name for code, name in names.items() if name.lower() != sample.caption.lower()}
    if foreign:
        return foreign[rng.choice(sorted(foreign))]
    words = []
    for word in sample.caption.split():
        bare = word.strip(".,")
        words.append(_GERMAN.get(bare, bare) + word[len(bare) :])
    return " ".join(words)


_KINDS: dict[str, Callable[[Sample, Sequence[Sample], random.Random], str]] = {
    "mismatched": _mismatched,
    "file_name": _file_name,
    "spam": _spam,
    "truncated": _truncated,
    "boilerplate": _boilerplate,
    "keyword_list": _keyword_list,
    "other_language": _other_language,
}
NEAR_DUPLICATE = "near_duplicate"
KINDS = (*_KINDS, NEAR_DUPLICATE)
"""All kinds of noise, by label."""


def near_duplicate(sample: Sample, rng: random.Random) -> Sample:
    """Copy a sample like a re-upload: pictures resized and recompressed, caption barely changed."""
    images = tuple(_recompressed(image, rng) for image in sample.images)
    edited = rng.choice((sample.caption.capitalize(), sample.caption.rstrip(".") + "!"))
    copy = replace(
        sample,
        sample_id=f"{sample.sample_id}-copy",
        images=images,
    )
    return copy.with_caption(
        edited,
        noise=NEAR_DUPLICATE,
        clean_caption=sample.caption,
        duplicate_of=sample.sample_id,
    )


def _recompressed(image: ImageFile, rng: random.Random) -> ImageFile:
    with Image.open(io.BytesIO(image.data)) as picture:
        flat = Image.new("RGB", picture.size, (255, 255, 255))
        rgba = picture.convert("RGBA")
        flat.paste(rgba, mask=rgba.getchannel("A"))
    side = max(8, int(flat.width * rng.uniform(0.85, 0.95)))
    out = io.BytesIO()
    flat.resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=80)
    base_name = image.name.rsplit(".", 1)[0]
    return ImageFile(data=out.getvalue(), name=f"{base_name}-copy.jpg")


def add_noise(
    samples: Sequence[Sample],
    *,
    fraction: float,
    seed: int,
    kinds: Sequence[str] = KINDS,
) -> list[Sample]:
    """Corrupt a fraction of the captions, all kinds equally likely, and label every sample.

    A near duplicate is an additional sample after its original; every other kind replaces the
    caption. The noise of a sample depends on its id and the seed, for `mismatched` also on the set
    of the other samples, but never on their order. Noise that does not change the caption (a name
    that is the same in all languages) does not count: the sample is labelled clean.

    Args:
        samples: Samples with correct captions.
        fraction: Fraction of samples to corrupt, in [0, 1].
        seed: Seed of all random choices.
        kinds: Kinds to use; see `KINDS`.

    Raises:
        RecipeError: A kind is unknown, or a sample is a document, which has no caption.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise RecipeError(f"unknown kind of noise {kind!r}{did_you_mean(kind, KINDS)}")
    if fraction and (documents := [one for one in samples if one.is_document]):
        raise RecipeError(
            f"noise_fraction: found {fraction}, but {documents[0].sample_id} is a document, text"
            " with images in it, and noise is for captions; set noise_fraction=0"
        )
    noisy: list[Sample] = []
    others = sorted(samples, key=lambda sample: sample.sample_id)
    for sample in samples:
        rng = random.Random(f"noise-{seed}-{sample.sample_id}")
        if not kinds or rng.random() >= fraction:
            noisy.append(_clean(sample))
            continue
        kind = rng.choice(tuple(kinds))
        if kind == NEAR_DUPLICATE:
            noisy.append(_clean(sample))
            noisy.append(near_duplicate(sample, rng))
            continue
        text = _KINDS[kind](sample, others, rng)
        if text == sample.caption:
            noisy.append(_clean(sample))
            continue
        noisy.append(sample.with_caption(text, noise=kind, clean_caption=sample.caption))
    return noisy


def _clean(sample: Sample) -> Sample:
    return replace(sample, meta={**sample.meta, "noise": CLEAN})
