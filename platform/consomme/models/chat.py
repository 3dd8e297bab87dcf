"""Encode conversations about images as model inputs, for any family of models.

The model's own processor writes the text and prepares the pixels; a recording tokenizer between the
processor and its tokenizer keeps the final text and its token offsets. Labelled tokens come from
the chat template: it is rendered without an answer and with it, and the difference is the answer.
Its tokens are decoded again and compared with the answer, so a wrong span is an error and never a
score.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image
from torch import OutOfMemoryError, Tensor, int64, tensor, zeros

from consomme.base.errors import CheckpointError, DataError
from consomme.base.sample import Turn
from consomme.models.encoded import EncodedChat, EncodedPrompt, ImageRefusedError, Pixels
from consomme.models.recording import CachedImageProcessor, RecordingTokenizer
from consomme.models.thoughts import answer_start, template_options
from consomme.models.turn_end import TurnEnd, extend_over_end, find_turn_end

_TEXT_INPUTS = {"input_ids", "attention_mask", "labels"}
"""Inputs that are built for every model."""


IMAGE_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What processors raise about an image: Qwen's at extreme shapes, torchvision's at no pixels. That
a processor takes images at all is tried when a model is opened (`chat_check`)."""


@contextlib.contextmanager
def image_errors(image: Image.Image) -> Iterator[None]:
    """Raise what a processor raises about an image as `ImageRefusedError`.

    Raises:
        ImageRefusedError: The processor raised, as Qwen's do at extreme shapes; or the image has no
            pixels, which some processors accept.
    """
    if not (image.width and image.height):
        raise ImageRefusedError(f"an image of {image.width} x {image.height} has no pixels")
    try:
        yield
    except OutOfMemoryError:
        raise
    except IMAGE_FAULTS as error:
        raise ImageRefusedError(
            f"the model's processor does not take an image of {image.width} x {image.height}:"
            f" {error}"
        ) from error


class ChatEncoder:
    """Encodes conversations for one model, with its own processor and chat template."""

    def __init__(
        self, config: Any, processor: Any, template: Mapping[str, Any] | None = None
    ) -> None:
        """Wrap a model's processor.

        Args:
            config: Gives the id of the image token.
            processor: A processor with a chat template; or a tokenizer, for a model without a
                vision encoder.
            template: Options of the chat template; see `thoughts.template_options`.

        Raises:
            CheckpointError: There is no chat template, it does not know an option, or it ends the
                assistant's turns with no token and the tokenizer has none to append.
        """
        self.has_vision = hasattr(processor, "image_processor")
        self.tokenizer = processor.tokenizer if self.has_vision else processor
        if not (getattr(processor, "chat_template", None) or self.tokenizer.chat_template):
            raise CheckpointError(
                "found no chat template beside the model, so consomme cannot know its prompt"
                " format; put chat_template.jinja into its folder"
            )
        self.template_owner = processor
        if self.has_vision and not getattr(processor, "chat_template", None):
            processor.chat_template = self.tokenizer.chat_template
        self.template_options = template_options(processor.chat_template, template or {})
        # BLIP-2's is a token object.
        self.image_token = str(getattr(processor, "image_token", None) or "")
        self.special: tuple[str, ...] = tuple(
            dict.fromkeys([*self.tokenizer.all_special_tokens, self.image_token])
        )
        self.turn_end: TurnEnd = find_turn_end(config, self.tokenizer, self._render_template)
        self._recorder = RecordingTokenizer(self.tokenizer)
        if self.has_vision:
            if self._marker and self.image_token not in self._marker:
                # A placeholder that the processor replaces by image tokens.
                self.special = tuple(dict.fromkeys([*self.special, self._marker]))
            self._image_processor = CachedImageProcessor(processor.image_processor)
            self._processor = copy.copy(processor)
            self._processor.tokenizer = self._recorder
            self._processor.image_processor = self._image_processor
            self.image_token_id = _image_token_id(config, processor)
        self._nests_images = True
        self._zero_inputs: tuple[str, ...] | None = None
        self._needs_processor = False

    def encode(
        self,
        turns: Sequence[Turn],
        image: Image.Image | None,
        key: object = None,
        *,
        skip_rewritten: bool = False,
    ) -> EncodedChat:
        """Encode one conversation that ends with the assistant.

        Args:
            turns: Alternating user and assistant.
            image: Shown in the first user turn; None encodes the text alone.
            key: Names the image; the same key in the next call reuses its pixels.
            skip_rewritten: Leave answers before the last one unlabelled if the template writes them
                without their reasoning; `spans` then has no entry for them.

        Raises:
            DataError: The text holds a special token, or the template or the tokenizer changes it.
            ImageRefusedError: The processor does not accept the image.
        """
        turns = [_strip_answer(turn) for turn in turns]
        check_special_tokens(turns, self.special)
        rendered = self._render(turns, has_image=image is not None)
        answers = self._answer_chars(
            turns, rendered, has_image=image is not None, skip_rewritten=skip_rewritten
        )
        types, token_inputs, pixels = self._process(rendered, image, key)
        offset = self._char_offset(rendered, answers)
        spans = [
            self._token_span(begin + offset, begin + offset + len(answer), answer)
            for begin, answer in answers
        ]
        return EncodedChat(
            input_ids=list(self._recorder.ids),
            spans=spans,
            token_types=types,
            token_inputs=token_inputs,
            pixels=pixels,
        )

    def encode_prompt(
        self, turns: Sequence[Turn], image: Image.Image | None, key: object = None
    ) -> EncodedPrompt:
        """Encode a conversation that ends with the user, with the generation prompt after it.

        Args:
            turns: Alternating; the last one is a user's.
            image: Shown in the first user turn; None encodes the text alone.
            key: Names the image; the same key in the next call reuses its pixels.

        Raises:
            DataError: The text holds a special token.
            ImageRefusedError: The processor does not accept the image.
        """
        check_special_tokens(turns, self.special)
        rendered = self._render(turns, has_image=image is not None, add_generation_prompt=True)
        types, token_inputs, pixels = self._process(rendered, image, key)
        return EncodedPrompt(
            input_ids=list(self._recorder.ids),
            token_types=types,
            token_inputs=token_inputs,
            pixels=pixels,
        )

    def unexpanded_prompt_ids(self, turns: Sequence[Turn], *, has_image: bool) -> list[int]:
        """Return the tokens of a prompt with one placeholder for its image, whatever its size.

        vLLM prepares images itself and expands the placeholder.

        Raises:
            DataError: The text holds a special token.
        """
        check_special_tokens(turns, self.special)
        rendered = self._render(turns, has_image=has_image, add_generation_prompt=True)
        if has_image:
            self._check_shows_image(rendered)
        return self._tokenize(rendered)

    def unexpanded_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Return the tokens of a conversation with one placeholder for its image."""
        return self._tokenize(self._render(turns, has_image=True))

    def _tokenize(self, rendered: str) -> list[int]:
        special = not self._starts_with_bos(rendered)
        ids: list[int] = self.tokenizer(rendered, add_special_tokens=special)["input_ids"]
        return ids

    def _process(
        self, rendered: str, image: Image.Image | None, key: object
    ) -> tuple[list[int], dict[str, Tensor], Pixels | None]:
        """Tokenize a text and prepare its image; `self._recorder` holds the tokens.

        Returns:
            Token types, all inputs with a value for each token, and the image.
        """
        special = not self._starts_with_bos(rendered)
        if image is None:
            return self._without_image(rendered, special)
        self._image_processor.key = key
        try:
            with image_errors(image):
                output = self._with_image(rendered, image, special)
        except Exception as error:
            self._check_shows_image(rendered, error)
            raise
        self._check_ids(output)
        token_inputs, inputs = self._divide(output)
        num_tokens = sum(token == self.image_token_id for token in self._recorder.ids)
        if not num_tokens:
            self._check_shows_image(rendered)
            raise DataError(
                f"the model's processor writes no image token: found none of id"
                f" {self.image_token_id} in {self._recorder.text[:120]!r}; a model of this family"
                " would not see the image, so use another family"
            )
        types = self._token_types(token_inputs)
        return types, token_inputs, Pixels(inputs=inputs, num_tokens=num_tokens)

    def _without_image(
        self, rendered: str, special: bool
    ) -> tuple[list[int], dict[str, Tensor], None]:
        """Tokenize a text as the processor does, without calling it where that makes no difference.

        A processor takes several times as long as its tokenizer.
        """
        if self.has_vision and self._zero_inputs is None:
            self._zero_inputs, self._needs_processor = self._inputs_without_image()
        if self._needs_processor:
            output = self._processor(
                text=[rendered], add_special_tokens=special, return_tensors="pt"
            )
            self._check_ids(output)
            token_inputs, _ = self._divide(output)
        else:
            output = self._recorder([rendered], add_special_tokens=special)
            token_inputs = {n: tensor(v[0]) for n, v in output.items() if n not in _TEXT_INPUTS}
        length = len(self._recorder.ids)
        for name in self._zero_inputs or ():
            token_inputs.setdefault(name, zeros(length, dtype=int64))
        return [0] * length, token_inputs, None

    def _with_image(self, rendered: str, image: Image.Image, special: bool) -> Mapping[str, Any]:
        """Call the processor with one image; most take a list of images for each text."""
        options = {"add_special_tokens": special, "return_tensors": "pt"}
        forms = [[[image]], [image]] if self._nests_images else [[image]]
        try:
            output: Mapping[str, Any] = self._processor(text=[rendered], images=forms[0], **options)
        except IMAGE_FAULTS:
            if len(forms) == 1:
                raise
            try:
                output = self._processor(text=[rendered], images=forms[1], **options)
            except IMAGE_FAULTS:
                output = {}
            if not output:
                raise
            self._nests_images = False
        return output

    def _check_ids(self, output: Mapping[str, Any]) -> None:
        """Check that a processor's tokens are those that its tokenizer made of one text.

        Some families put tokens together afterwards, as BLIP-2, Kosmos-2 and Fuyu do for images;
        which of them are the answer's cannot be told from the text then.
        """
        found = output.get("input_ids")
        ids = found[0] if found is not None else None
        if ids is None or [int(token) for token in ids] != self._recorder.ids:
            raise DataError(
                "the processor of this family changes the tokens of a conversation after its"
                f" tokenizer: found {0 if ids is None else len(ids)} tokens, expected the"
                f" {len(self._recorder.ids)} of its text, so which ones are the answer's cannot be"
                " told; use another family"
            )

    def _divide(self, output: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Divide what a processor returned into inputs of tokens (T, ...), and of images.

        An input belongs to tokens if it is not from the image processor and is as long as the text.
        """
        of_images = self._image_processor.names if self.has_vision else frozenset()
        token_inputs, inputs = {}, {}
        for name, value in output.items():
            if name in _TEXT_INPUTS:
                continue
            is_of_tokens = (
                name not in of_images
                and isinstance(value, Tensor)
                and tuple(value.shape[:2]) == (1, len(self._recorder.ids))
            )
            if is_of_tokens:
                token_inputs[name] = value[0]
            else:
                inputs[name] = value
        return token_inputs, inputs

    def _inputs_without_image(self) -> tuple[tuple[str, ...], bool]:
        """Return what the processor adds to the tokens of a text without an image.

        Returns:
            Names of inputs of tokens that are zero; and whether there is more, so that only the
            processor can prepare texts: it changes them, as Llama 3.2's does, or has other inputs.
        """
        try:
            output = self._processor(text=["a"], add_special_tokens=False, return_tensors="pt")
        except IMAGE_FAULTS:
            # It takes no text without an image.
            return (), False
        token_inputs, others = self._divide(output)
        names = tuple(name for name, value in token_inputs.items() if not value.any())
        has_more = bool(others) or len(names) < len(token_inputs) or self._recorder.text != "a"
        return names, has_more

    def _render(
        self, turns: Sequence[Turn], *, has_image: bool, add_generation_prompt: bool = False
    ) -> str:
        end = self.turn_end.after_every_turn
        text = self._render_template(
            [_with_end(turn, end) for turn in turns] if end else turns,
            has_image=has_image,
            add_generation_prompt=add_generation_prompt,
        )
        if turns and turns[-1].role == "assistant" and not add_generation_prompt:
            text += self.turn_end.after_last_turn
        return text

    def _check_shows_image(self, rendered: str, error: Exception | None = None) -> None:
        """Refuse a template that writes nothing for an image, and say what the processor said."""
        if self.image_token not in rendered and not self._marker:
            said = f" (the processor fails: {error})" if error else ""
            raise CheckpointError(
                f"the chat template drops the image: found no {self.image_token!r} in"
                f" {rendered[:120]!r}{said}; change chat_template.jinja beside the model, so that"
                " it writes content of type image as this token"
            ) from error

    @functools.cached_property
    def _marker(self) -> str:
        """What the template writes for an image; empty if it writes nothing or fails."""
        probe = [Turn(role="user", content="question")]
        try:
            without = self._render_template(probe, add_generation_prompt=True)
            text = self._render_template(probe, has_image=True, add_generation_prompt=True)
        # A template is a program of the model's author and may raise anything.
        except Exception:  # noqa: BLE001
            return ""
        begin = _num_common(text, without)
        end = _num_common(text[begin:][::-1], without[::-1])
        return text[begin : len(text) - end].strip()

    def _render_template(
        self,
        turns: Sequence[Turn],
        *,
        has_image: bool = False,
        add_generation_prompt: bool = False,
    ) -> str:
        text: str = self.template_owner.apply_chat_template(
            to_messages(turns, has_image=has_image, has_parts=self.has_vision),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **self.template_options,
        )
        return text

    def _answer_chars(
        self, turns: Sequence[Turn], rendered: str, *, has_image: bool, skip_rewritten: bool
    ) -> list[tuple[int, str]]:
        """Find where each assistant turn begins in the rendered conversation, and its text."""
        answers = []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            prompt = self._render(turns[:number], has_image=has_image, add_generation_prompt=True)
            answer = turn.content.strip()
            begin = answer_start(prompt, rendered, answer)
            is_last = number == len(turns) - 1
            if begin is None and skip_rewritten and not is_last:
                shorter = _without_reasoning(answer)
                if shorter != answer and answer_start(prompt, rendered, shorter) is not None:
                    continue
            if begin is None:
                raise DataError(
                    "the chat template does not write the assistant's text unchanged after its"
                    f" prompt: expected {answer[:60]!r} after {prompt[-60:]!r}, found"
                    f" {rendered[max(0, len(prompt) - 60) :][:120]!r}"
                )
            answers.append((begin, answer))
        if not answers:
            raise DataError("the conversation has no assistant turn, so there is nothing to score")
        return answers

    def _starts_with_bos(self, rendered: str) -> bool:
        """Return whether the template itself writes the token that begins a text."""
        begin = self.tokenizer.bos_token
        return bool(begin) and rendered.startswith(begin)

    def _char_offset(self, rendered: str, answers: Sequence[tuple[int, str]]) -> int:
        """Return how many characters the processor inserted before the first answer."""
        tail = rendered[answers[0][0] :]
        before, found, after = self._recorder.text.rpartition(tail)
        # Chameleon's processor ends a text with a token of its own.
        for token in self.special:
            after = after.replace(token, "")
        if not found or after:
            raise DataError(
                "the processor changes the text after the image: expected it to end with"
                f" {tail[:60]!r}, found {self._recorder.text[-60:]!r}"
            )
        return len(before) - (len(rendered) - len(tail))

    def _token_span(self, begin: int, end: int, answer: str) -> tuple[int, int]:
        """Find the tokens of a range of characters; check that they decode to the turn's text."""
        inside = [
            number
            for number, (first, last) in enumerate(self._recorder.offsets)
            if first < end and last > begin and last > first
        ]
        if not inside or inside != list(range(inside[0], inside[-1] + 1)):
            raise DataError(f"found no tokens for {answer[:60]!r}: the tokenizer drops this text")
        ids = self._recorder.ids[inside[0] : inside[-1] + 1]
        decoded = self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if decoded.strip() != answer:
            raise DataError(
                f"labelled tokens read {decoded[:80]!r} but the assistant says {answer[:80]!r}:"
                " the tokenizer changes the text, or joins it with the text around it"
            )
        recorder = self._recorder

        def is_space(at: int) -> bool:
            return recorder.text[slice(*recorder.offsets[at])].isspace()

        ends = self.turn_end.ids
        return inside[0], extend_over_end(recorder.ids, is_space, inside[-1] + 1, ends)

    def _token_types(self, token_inputs: Mapping[str, Tensor]) -> list[int]:
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in token_inputs:
                types: list[int] = token_inputs[name].tolist()
                return types
        return [int(token == self.image_token_id) for token in self._recorder.ids]


def _num_common(text: str, other: str) -> int:
    """Return how many first characters are the same."""
    pairs = zip(text, other, strict=False)
    differing = (number for number, (one, two) in enumerate(pairs) if one != two)
    return next(differing, min(len(text), len(other)))


def _image_token_id(config: Any, processor: Any) -> int:
    """Return the id of the token that stands for an image's features in the text."""
    # In Gemma 3, the processor's image token is the one that begins an image.
    for owner, name in (
        (config, "image_token_id"),
        (config, "image_token_index"),
        (processor, "image_token_id"),
    ):
        found = getattr(owner, name, None)
        if isinstance(found, int):
            return found
    raise CheckpointError(
        f"config.json of this {getattr(config, 'model_type', '')} model names no image token: found"
        " neither image_token_id nor image_token_index, so consomme cannot know which tokens stand"
        " for an image; use another family"
    )


def check_special_tokens(turns: Sequence[Turn], special: Sequence[str]) -> None:
    """Refuse text that holds a special token.

    Raises:
        DataError: A turn holds one.
    """
    for turn in turns:
        for token in special:
            if token and token in turn.content:
                raise DataError(
                    f"the {turn.role}'s text holds the special token {token!r}, which would"
                    " break the conversation's format; remove it from the text"
                )


def _strip_answer(turn: Turn) -> Turn:
    """Strip white space around an answer, as most templates do.

    The token that ends the turn has to follow the last word, or the model never learns to stop.
    """
    if turn.role != "assistant":
        return turn
    return dataclasses.replace(turn, content=turn.content.strip())


def _with_end(turn: Turn, end: str) -> Turn:
    if turn.role != "assistant":
        return turn
    return dataclasses.replace(turn, content=turn.content + end)


def _without_reasoning(answer: str) -> str:
    """Return what an answer says after the model's thoughts."""
    return answer.rpartition("</think>")[2].strip()


def to_messages(
    turns: Sequence[Turn], *, has_image: bool, has_parts: bool = True
) -> list[dict[str, Any]]:
    """Convert turns to chat messages; the image goes first in the first user turn."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        if not has_parts:
            messages.append({"role": turn.role, "content": turn.content})
            continue
        parts: list[dict[str, str]] = [{"type": "text", "text": turn.content}]
        if has_image and turn.role == "user" and not any(m["role"] == "user" for m in messages):
            parts.insert(0, {"type": "image"})
        messages.append({"role": turn.role, "content": parts})
    return messages
