"""Samples of no, one and three pictures, conversations and documents, of rendered scenes."""

from __future__ import annotations

from functools import cache

from consomme.base.sample import ImageFile, ImageRef, Sample, Turn
from consomme.datasets import scenes


@cache
def picture(seed: int) -> bytes:
    """A rendered scene as PNG."""
    return scenes.encode(scenes.render(scenes.make_scene(seed)))


def sample_of(name: str, turns: tuple[Turn, ...], *pictures: bytes) -> Sample:
    """A sample of encoded pictures."""
    files = tuple(
        ImageFile(data=data, name=f"{name}.png" if len(pictures) == 1 else f"{name}.{k}.png")
        for k, data in enumerate(pictures)
    )
    return Sample(sample_id=name, images=files, turns=turns, source="many")


def says(text: str) -> Turn:
    return Turn(role="assistant", content=text)


def asks(*parts: str | int) -> Turn:
    """A user turn of texts and indices of pictures."""
    if all(isinstance(part, str) for part in parts):
        return Turn(role="user", content="".join(map(str, parts)))
    content = tuple(ImageRef(part) if isinstance(part, int) else part for part in parts)
    return Turn(role="user", content=content)


def caption(name: str, seed: int) -> Sample:
    return sample_of(name, (says(f"a scene, {name}"),), picture(seed))


def text(name: str) -> Sample:
    turns = (asks("how many sides has a triangle?"), says("a triangle has three sides"))
    return sample_of(name, turns)


def three(name: str, *seeds: int) -> Sample:
    """Pictures of one turn, in mid-sentence, and an answer."""
    first, second, third = (picture(seed) for seed in seeds)
    turns = (
        asks("is it in ", 0, " or in ", 1, " and not in ", 2, "?"),
        says("in the second of them"),
    )
    return sample_of(name, turns, first, second, third)


def dialogue(name: str, *seeds: int) -> Sample:
    """A picture in each user turn."""
    turns: list[Turn] = [Turn(role="system", content="answer in one word.")]
    for k, _ in enumerate(seeds):
        turns += [asks(k, "what color is it?"), says("red" if k % 2 else "blue")]
    return sample_of(name, tuple(turns), *(picture(seed) for seed in seeds))


def document(name: str, *seeds: int) -> Sample:
    """An interleaved document."""
    parts: list[str | ImageRef] = ["this is about some shapes. "]
    for k, seed in enumerate(seeds):
        parts += [ImageRef(k), f" a scene with the number {seed}. "]
    turn = Turn(role="assistant", content=tuple(parts))
    return sample_of(name, (turn,), *(picture(seed) for seed in seeds))


def mixed() -> list[Sample]:
    """Samples of each kind without a picture in common."""
    samples = [
        *(caption(f"caption-{k}", k) for k in range(6)),
        *(text(f"text-{k}") for k in range(4)),
        *(three(f"three-{k}", 10 + 3 * k, 11 + 3 * k, 12 + 3 * k) for k in range(4)),
        *(dialogue(f"dialogue-{k}", 30 + 2 * k, 31 + 2 * k) for k in range(4)),
        *(document(f"document-{k}", 50 + 3 * k, 51 + 3 * k, 52 + 3 * k) for k in range(4)),
    ]
    # In another order, so that every unit has several kinds.
    return [samples[(7 * k) % len(samples)] for k in range(len(samples))]
