"""Samples as cards of a gallery: texts and pictures in their places.

A caption of one picture is a picture with a text below, as ever. Any other sample is shown turn by
turn: `MAX_PICTURES` pictures at most, small, each where it stands; long texts are cut. What is left
out is said in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from consomme.base.sample import Content, ImageRef, Sample, Turn, place_images
from consomme.report.model import GalleryItem, Omitted, ShownPicture, ShownTurn, Tone
from consomme.vision.thumbnail import thumbnail

MAX_PICTURES = 8
MAX_TURNS = 8
MAX_PARTS = 24
"""Texts and pictures of one turn."""

MAX_CHARS = 400
"""Of each text between pictures."""


def sample_card(
    sample: Sample,
    *,
    lines: Sequence[str] = (),
    badge: str = "",
    badge_kind: Tone = "neutral",
    marked: int | None = None,
) -> GalleryItem:
    """Show a sample.

    Args:
        sample: The sample.
        lines: Facts about it.
        badge: What happened to it.
        badge_kind: Colour of the badge.
        marked: Index of the picture that the card is about, if it is about one.
    """
    is_simple = is_caption(sample)
    return GalleryItem(
        title=sample.caption,
        image_bytes=thumbnail(sample.images[0].data) if is_simple else b"",
        turns=() if is_simple else shown_turns(sample, marked=marked),
        lines=lines,
        badge=badge,
        badge_kind=badge_kind,
    )


def is_caption(sample: Sample) -> bool:
    """Whether a sample is one picture with a text below."""
    return len(sample.images) == 1 and len(sample.turns) == 1 and not sample.is_document


def shown_turns(
    sample: Sample, turns: Sequence[Turn] | None = None, *, marked: int | None = None
) -> list[ShownTurn]:
    """Show the turns of a sample with its pictures in their places.

    Args:
        sample: The sample.
        turns: Other turns about the same pictures, such as recaptioned ones.
        marked: Index of the picture that is framed, and is shown in any case.
    """
    turns = _placed(sample, sample.turns if turns is None else turns)
    places = [index for turn in turns for index in turn.image_indices]
    visible = set(_visible_places(places, marked))
    shown: list[ShownTurn] = []
    left_out: list[Turn] = []
    at = 0
    for number, turn in enumerate(turns):
        size = len(turn.image_indices)
        if number < MAX_TURNS or marked in turn.image_indices:
            parts = _cut(list(_parts(sample, turn.content, at, visible, marked)))
            shown.append(ShownTurn(role=_role(turn, len(turns)), parts=parts))
        else:
            left_out.append(turn)
        at += size
    if left_out:
        number = sum(len(turn.image_indices) for turn in left_out)
        pictures = f" with {_pictures(number)}" if number else ""
        remark = Omitted(text=f"+ {_number(len(left_out), 'more turn')}{pictures}")
        shown.append(ShownTurn(role="", parts=[remark]))
    return shown


def _placed(sample: Sample, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Put every picture into its place; those of a caption stand before it."""
    has_places = any(turn.image_indices for turn in turns)
    if has_places or not sample.images or any(turn.role == "user" for turn in turns):
        return place_images(turns, len(sample.images))
    refs = tuple(ImageRef(index) for index in range(len(sample.images)))
    first, *rest = turns
    return (Turn(role=first.role, content=(*refs, first.text)), *rest)


def _visible_places(places: Sequence[int], marked: int | None) -> list[int]:
    """Return the numbers of the places whose pictures are shown."""
    first = list(range(min(MAX_PICTURES, len(places))))
    if marked is not None and marked in places and marked not in places[: len(first)]:
        first[-1] = places.index(marked)
    return first


def _cut(parts: list[str | ShownPicture | Omitted]) -> list[str | ShownPicture | Omitted]:
    """Leave out the end of a long turn, but for the picture that is marked."""
    end = parts[MAX_PARTS:]
    if not end:
        return parts
    marked = [part for part in end if isinstance(part, ShownPicture) and part.is_marked]
    more = Omitted(text=f"+ {len(end) - len(marked[:1])} more texts and pictures")
    return [*parts[:MAX_PARTS], more, *marked[:1]]


def _parts(
    sample: Sample, content: Content, at: int, visible: set[int], marked: int | None
) -> Iterator[str | ShownPicture | Omitted]:
    """Yield the parts of a turn; pictures in a row that are not shown become one remark."""
    total = len(sample.images)
    numbered: list[tuple[int | None, str | ImageRef]] = []
    for part in (content,) if isinstance(content, str) else content:
        numbered.append((at if isinstance(part, ImageRef) else None, part))
        at += isinstance(part, ImageRef)
    for is_hidden, group in groupby(numbered, lambda n: n[0] is not None and n[0] not in visible):
        several = list(group)
        if is_hidden:
            yield Omitted(text=f"+ {_number(len(several), 'more picture')}")
            continue
        for _, part in several:
            if isinstance(part, str):
                yield part if len(part) <= MAX_CHARS else f"{part[:MAX_CHARS]} …"
                continue
            number = part.index + 1
            yield ShownPicture(
                image_bytes=thumbnail(sample.images[part.index].data),
                title=f"picture {number} of {total}" if total > 1 else "the picture",
                label=str(number) if total > 1 else "",
                is_marked=part.index == marked,
            )


def _number(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _pictures(number: int) -> str:
    return _number(number, "picture")


def _role(turn: Turn, num_turns: int) -> str:
    if num_turns == 1 and turn.role == "assistant":
        return ""
    return turn.role if turn.is_labelled else f"{turn.role} (not learned)"
