"""Turn pictures and what is said about them into model inputs, for any family of models.

Two decisions are made here. The model's own processor writes the text and makes the pixels: we put
ourselves between it and its tokenizer, and see the text it hands over. And which tokens the
assistant spoke is worked out from the chat template: rendered without the answer, and with it; what
was added is the answer. Those tokens are decoded again and compared with what was said, so a wrong
span is an error and never a score.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from consomme.base.errors import CheckpointError, DataError
from consomme.base.sample import Turn
from consomme.models.encoded import EncodedChat, EncodedPrompt, PictureRefusedError, Pixels

# Shapes: T token positions, S spoken tokens.

_TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels"}


@contextlib.contextmanager
def taking(image: Image.Image) -> Iterator[None]:
    """Say of which picture a processor speaks.

    Raises:
        PictureRefusedError: It raised about it, as Qwen's do at extreme shapes; or it would have to
            make something of no pixels, which some do.
    """
    if not (image.width and image.height):
        raise PictureRefusedError(
            f"a picture of {image.width} x {image.height} has no pixels to look at"
        )
    try:
        yield
    except (ValueError, ZeroDivisionError) as error:
        raise PictureRefusedError(
            f"the model's processor does not take a picture of {image.width} x {image.height}:"
            f" {error}"
        ) from error


class ChatEncoder:
    """Encodes conversations for one model, as its own processor and chat template have it."""

    def __init__(self, config: Any, processor: Any) -> None:
        """Look at a model's config and processor.

        Args:
            config: For which token stands for a piece of a picture.
            processor: A processor with a chat template; or a tokenizer, for a model without eyes.

        Raises:
            CheckpointError: There is no chat template.
        """
        self.has_vision = hasattr(processor, "image_processor")
        self.tokenizer = processor.tokenizer if self.has_vision else processor
        if not (getattr(processor, "chat_template", None) or self.tokenizer.chat_template):
            raise CheckpointError(
                "there is no chat template beside the model, so consomme cannot know how it wants"
                " to be asked; put chat_template.jinja into its folder"
            )
        self.template_owner = processor
        if self.has_vision and not getattr(processor, "chat_template", None):
            processor.chat_template = self.tokenizer.chat_template
        self.image_token: str = getattr(processor, "image_token", "")
        self.special: tuple[str, ...] = tuple(
            dict.fromkeys([*self.tokenizer.all_special_tokens, self.image_token])
        )
        self._special_ids = frozenset(self.tokenizer.all_special_ids)
        self._text = RecordingTokenizer(self.tokenizer)
        if self.has_vision:
            self._images = CachedImageProcessor(processor.image_processor)
            self._processor = copy.copy(processor)
            self._processor.tokenizer = self._text
            self._processor.image_processor = self._images
            # In Gemma 3 the processor's token is the mark before a picture.
            self.image_token_id: int = getattr(config, "image_token_id", None) or (
                config.image_token_index
            )

    def encode(
        self, turns: Sequence[Turn], image: Image.Image | None, key: object = None
    ) -> EncodedChat:
        """Encode one conversation that ends with the assistant.

        Args:
            turns: Alternating user and assistant.
            image: The picture, shown in the first user turn; None for the text alone.
            key: Names the picture; the same key the next time saves preparing it again.

        Raises:
            DataError: The text holds a special token, or does not come through template and
                tokenizer as it was.
            PictureRefusedError: The processor does not take the picture.
        """
        turns = [_trimmed(turn) for turn in turns]
        check_text(turns, self.special)
        rendered = self._render(turns, has_image=image is not None)
        marks = self._marks(turns, rendered, has_image=image is not None)
        types, pixels = self._prepare(rendered, image, key)
        shift = self._shift(rendered, marks)
        spans = [
            self._span(begin + shift, end + shift, turn)
            for (begin, end), turn in zip(marks, _assistant(turns), strict=True)
        ]
        return EncodedChat(
            input_ids=list(self._text.ids), spans=spans, token_types=types, pixels=pixels
        )

    def ask(
        self, turns: Sequence[Turn], image: Image.Image | None, key: object = None
    ) -> EncodedPrompt:
        """Encode a conversation that ends with a question, ready for its answer.

        Args:
            turns: Alternating; the last one is a user's.
            image: The picture, shown in the first user turn; None for the text alone.
            key: Names the picture; the same key the next time saves preparing it again.

        Raises:
            DataError: The text holds a special token.
            PictureRefusedError: The processor does not take the picture.
        """
        check_text(turns, self.special)
        rendered = self._render(turns, has_image=image is not None, asks=True)
        types, pixels = self._prepare(rendered, image, key)
        return EncodedPrompt(input_ids=list(self._text.ids), token_types=types, pixels=pixels)

    def ask_short(self, turns: Sequence[Turn], *, has_image: bool) -> list[int]:
        """Return the tokens of a question with one placeholder for its picture, however large.

        Raises:
            DataError: The text holds a special token.
        """
        check_text(turns, self.special)
        return self._short(self._render(turns, has_image=has_image, asks=True))

    def short_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Return the tokens of a conversation with one placeholder for its picture, however large.

        Engines that prepare pictures themselves want it so.
        """
        return self._short(self._render(turns, has_image=True))

    def _short(self, rendered: str) -> list[int]:
        special = not self._begins_itself(rendered)
        ids: list[int] = self.tokenizer(rendered, add_special_tokens=special)["input_ids"]
        return ids

    def _prepare(
        self, rendered: str, image: Image.Image | None, key: object
    ) -> tuple[list[int], Pixels | None]:
        """Tokenise a text and make the pixels of its picture; the tokens are in `self._text`."""
        special = not self._begins_itself(rendered)
        if image is None:
            self._text([rendered], add_special_tokens=special)
            return [0] * len(self._text.ids), None
        self._images.key = key
        with taking(image):
            output = self._processor(
                text=[rendered], images=[[image]], add_special_tokens=special, return_tensors="pt"
            )
        inputs = {name: value for name, value in output.items() if name not in _TEXT_INPUTS}
        num = sum(token == self.image_token_id for token in self._text.ids)
        return self._types(output), Pixels(inputs=inputs, num_tokens=num)

    def _render(self, turns: Sequence[Turn], *, has_image: bool, asks: bool = False) -> str:
        text: str = self.template_owner.apply_chat_template(
            messages(turns, has_image=has_image, has_parts=self.has_vision),
            tokenize=False,
            add_generation_prompt=asks,
        )
        if has_image and self.image_token not in text:
            raise CheckpointError(
                f"the chat template drops the picture: {self.image_token!r} is not in"
                f" {text[:120]!r}; mend chat_template.jinja beside the model, so that content of"
                " type image is written as this token"
            )
        return text

    def _marks(
        self, turns: Sequence[Turn], rendered: str, *, has_image: bool
    ) -> list[tuple[int, int]]:
        """Find the characters of each assistant turn in the rendered conversation."""
        found = []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._render(turns[:number], has_image=has_image, asks=True)
            said = turn.content.strip()
            begin = len(before)
            while begin < len(rendered) and rendered[begin].isspace():
                begin += 1
            if not rendered.startswith(before) or not rendered.startswith(said, begin):
                raise DataError(
                    "the chat template does not put the assistant's text after its own prompt as"
                    f" it is: expected {said[:60]!r}, found {rendered[begin : begin + 60]!r}"
                )
            found.append((begin, begin + len(said)))
        if not found:
            raise DataError("the conversation has no assistant turn, so there is nothing to score")
        return found

    def _begins_itself(self, rendered: str) -> bool:
        """Whether the template writes the token that begins a text."""
        begin = self.tokenizer.bos_token
        return bool(begin) and rendered.startswith(begin)

    def _shift(self, rendered: str, marks: Sequence[tuple[int, int]]) -> int:
        """By how many characters the processor moved everything from the first answer on."""
        tail = rendered[marks[0][0] :]
        if not self._text.text.endswith(tail):
            raise DataError(
                "the processor changes the text after the picture: expected it to end with"
                f" {tail[:60]!r}, found {self._text.text[-60:]!r}"
            )
        return len(self._text.text) - len(rendered)

    def _span(self, begin: int, end: int, turn: Turn) -> tuple[int, int]:
        """Find the tokens of some characters, and check that they say what the turn says."""
        inside = [
            number
            for number, (first, last) in enumerate(self._text.offsets)
            if first < end and last > begin and last > first
        ]
        said = turn.content.strip()
        if not inside or inside != list(range(inside[0], inside[-1] + 1)):
            raise DataError(f"no tokens say {said[:60]!r}: the tokenizer drops this text")
        ids = self._text.ids[inside[0] : inside[-1] + 1]
        read = self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if read.strip() != said:
            raise DataError(
                f"labelled tokens read {read[:80]!r} but the assistant says {said[:80]!r}:"
                " the tokenizer changes the text, or joins it with what stands beside it"
            )
        stop = inside[-1] + 1
        if stop < len(self._text.ids) and self._text.ids[stop] in self._special_ids:
            stop += 1
        return inside[0], stop

    def _types(self, output: Mapping[str, Any]) -> list[int]:
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in output:
                types: list[int] = output[name][0].tolist()
                return types
        return [int(token == self.image_token_id) for token in self._text.ids]


def check_text(turns: Sequence[Turn], special: Sequence[str]) -> None:
    """Refuse text that holds a special token.

    Raises:
        DataError: It does.
    """
    for turn in turns:
        for token in special:
            if token and token in turn.content:
                raise DataError(
                    f"the {turn.role}'s text holds the special token {token!r}, which would"
                    " break the conversation's form; remove it from the text"
                )


def _trimmed(turn: Turn) -> Turn:
    """Take the space around an answer away, as most templates do.

    The token that ends the turn has to follow the last word, or nobody learns to stop there.
    """
    if turn.role != "assistant":
        return turn
    return dataclasses.replace(turn, content=turn.content.strip())


def _assistant(turns: Sequence[Turn]) -> list[Turn]:
    return [turn for turn in turns if turn.role == "assistant"]


def messages(
    turns: Sequence[Turn], *, has_image: bool, has_parts: bool = True
) -> list[dict[str, Any]]:
    """Write turns as chat messages; the picture goes first in the first user turn."""
    found: list[dict[str, Any]] = []
    for turn in turns:
        if not has_parts:
            found.append({"role": turn.role, "content": turn.content})
            continue
        parts: list[dict[str, str]] = [{"type": "text", "text": turn.content}]
        if has_image and turn.role == "user" and not any(m["role"] == "user" for m in found):
            parts.insert(0, {"type": "image"})
        found.append({"role": turn.role, "content": parts})
    return found


class RecordingTokenizer:
    """A tokenizer that remembers the one text it was given last, its tokens and where they are."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.text = ""
        self.ids: list[int] = []
        self.offsets: list[tuple[int, int]] = []

    def __call__(self, text: Any, **options: Any) -> Any:
        """Tokenize one text, and keep it with its ids and offsets."""
        is_many = not isinstance(text, str)
        (self.text,) = text if is_many else [text]
        # Tensors are made when offsets are out of the way, which are most of the numbers.
        tensors = options.pop("return_tensors", None)
        output = self._inner(text, **(options | {"return_offsets_mapping": True}))
        offsets, ids = output.pop("offset_mapping"), output["input_ids"]
        self.ids = list(ids[0] if is_many else ids)
        self.offsets = list(offsets[0] if is_many else offsets)
        return output.convert_to_tensors(tensors, prepend_batch_axis=not is_many)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the tokenizer's own."""
        return getattr(self._inner, name)


class CachedImageProcessor:
    """An image processor that remembers the picture it prepared last."""

    def __init__(self, inner: Any) -> None:
        """Stand before another image processor."""
        self._inner = inner
        self.key: object = None
        self._last: tuple[object, Any] | None = None

    def __call__(self, images: Any, **options: Any) -> Any:
        """Prepare a picture, or return what was made of it the last time."""
        if self.key is not None and self._last is not None and self._last[0] == self.key:
            return copy.copy(self._last[1])
        output = self._inner(images, **options)
        self._last = (self.key, copy.copy(output))
        return output

    def __getattr__(self, name: str) -> Any:
        """Pass everything else on."""
        return getattr(self._inner, name)
