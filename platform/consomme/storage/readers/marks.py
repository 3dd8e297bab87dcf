"""Bind the image marks of a text to the images of its sample, in order.

`<image>` is the mark of LLaVA, LLaMA-Factory, ms-swift and most others; MMMU numbers them
(`<image 1>`), Mantis and Phi write `<|image_1|>`, InternLM-XComposer `<ImageHere>`. Marks bind to
images wherever they stand; a count that differs from the number of images is an error of the
sample. Without images, a mark is text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from consomme.base.sample import IMAGE_MARK, ImageRef, Turn, content_of
from consomme.storage.readers.row import RowError


def bind_marks(
    turns: Sequence[Turn], num_images: int, *, has_marks: bool = True
) -> tuple[Turn, ...]:
    """Replace image marks by references to images.

    Images whose marks all begin the first user turn, and images without any mark, stand before its
    text; then no turn holds a reference, as `consomme.base.sample` says.

    Args:
        turns: With text, or with references to images already, which are complete then.
        num_images: Images of the sample.
        has_marks: Whether marks in the text stand for images.

    Raises:
        RowError: There are more or fewer marks than images.
    """
    if has_marks and num_images and not any(turn.image_indices for turn in turns):
        turns = _bind(turns, num_images)
    _check_bound(turns, num_images)
    return _without_leading(turns, num_images)


def _bind(turns: Sequence[Turn], num_images: int) -> tuple[Turn, ...]:
    marks = [match for turn in turns for match in IMAGE_MARK.finditer(turn.text)]
    if not marks:
        return tuple(turns)
    numbers = [int(match[1] or match[2] or 0) for match in marks]
    if any(numbers) and not all(numbers):
        detail = f"found {marks[numbers.index(0)][0]} beside numbered marks of images"
        raise RowError("conversation_malformed", detail)
    if not any(numbers):
        if len(marks) != num_images:
            detail = f"found {len(marks)} marks of images ({marks[0][0]}) for {num_images} images"
            raise RowError("conversation_malformed", detail)
        numbers = list(range(1, num_images + 1))
    indices = iter(numbers)
    return tuple(replace(turn, content=content_of(_parts(turn, indices))) for turn in turns)


def _parts(turn: Turn, numbers: Iterator[int]) -> list[str | ImageRef]:
    """Split a text at its marks; white space between a mark and the turn's edge goes."""
    text, begin = turn.text, 0
    parts: list[str | ImageRef] = []
    for match in IMAGE_MARK.finditer(text):
        parts += [text[begin : match.start()], ImageRef(next(numbers) - 1)]
        begin = match.end()
    parts.append(text[begin:])
    # At the edges, and between marks there, white space only separates the mark from the text.
    for order in (range(len(parts)), range(len(parts) - 1, -1, -1)):
        is_from_left = order.step > 0
        for at in order:
            part = parts[at]
            if isinstance(part, str) and len(parts) > 1:
                stripped = part.lstrip() if is_from_left else part.rstrip()
                parts[at] = stripped
                if stripped:
                    break
    return parts


def _check_bound(turns: Sequence[Turn], num_images: int) -> None:
    """Check that each image has a place, if any has one, and that there are no others."""
    used = {index for turn in turns for index in turn.image_indices}
    if used and used != set(range(num_images)):
        missing = sorted(set(range(num_images)) - used)
        found = f"image {missing[0] + 1} has no place in the text" if missing else ""
        found = found or f"the text refers to image {max(used) + 1}"
        detail = f"{found}; the sample has {num_images} images"
        raise RowError("conversation_malformed", detail)


def _without_leading(turns: Sequence[Turn], num_images: int) -> tuple[Turn, ...]:
    """Drop the references if all images begin the first user turn, in order."""
    first = next((n for n, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None or not num_images:
        return tuple(turns)
    refs = tuple(ImageRef(index) for index in range(num_images))
    parts = turns[first].parts
    if parts[:num_images] != refs or any(
        turn.image_indices for n, turn in enumerate(turns) if n != first
    ):
        return tuple(turns)
    rest = content_of(parts[num_images:])
    if not isinstance(rest, str):
        return tuple(turns)
    return (*turns[:first], replace(turns[first], content=rest), *turns[first + 1 :])
