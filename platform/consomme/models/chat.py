"""Encode conversations about images as model inputs, for any family of models.

The model's own processor writes the text and prepares the pixels; a recording tokenizer between the
processor and its tokenizer keeps the final text and its token offsets. Labelled tokens come from
the chat template: it is rendered without an answer and with it, and the difference is the answer.
Its tokens are decoded again and compared with the answer, so a wrong span is an error and never a
score.
"""

from __future__ import annotations

import bisect
import contextlib
import copy
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image
from torch import OutOfMemoryError, Tensor, int64, tensor, zeros

from consomme.base.errors import CheckpointError, DataError
from consomme.base.sample import ImageRef, Turn, content_of, place_images, without_images
from consomme.models.encoded import (
    EncodedChat,
    EncodedPrompt,
    ImageRefusedError,
    LayoutRefusedError,
    Pixels,
)
from consomme.models.layout import ImageLayout, Message, is_simple, to_message
from consomme.models.recording import (
    NUM_CACHED_IMAGES,
    CachedImageProcessor,
    RecordingTokenizer,
)
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
def image_errors(images: Sequence[Image.Image]) -> Iterator[None]:
    """Raise what a processor raises about images as `ImageRefusedError`.

    Raises:
        ImageRefusedError: The processor raised, as Qwen's do at extreme shapes; or an image has no
            pixels, which some processors accept.
    """
    for image in images:
        if not (image.width and image.height):
            raise ImageRefusedError(f"an image of {image.width} x {image.height} has no pixels")
    try:
        yield
    except OutOfMemoryError:
        raise
    except IMAGE_FAULTS as error:
        sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
        what = "an image" if len(images) == 1 else f"{len(images)} images"
        raise ImageRefusedError(
            f"the model's processor does not take {what} of {sizes}: {error}"
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
        self._layout = ImageLayout(self._render_messages, lambda: self._marker)
        self._alone: dict[object, Pixels] = {}
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
        images: Sequence[Image.Image] = (),
        keys: Sequence[object] | None = None,
        *,
        skip_rewritten: bool = False,
        shows_images: bool = True,
    ) -> EncodedChat:
        """Encode one conversation that ends with the assistant, or one document.

        Args:
            turns: Of a conversation; or one assistant turn with images in its text: a document,
                which is written without the chat template. Turns that refer to no image show all
                images before the text of the first user turn.
            images: Of the conversation.
            keys: Name the images, by their content; those of recent calls are not prepared again,
                but None is. The result then has each image prepared alone too, for families that
                prepare them apart.
            skip_rewritten: Leave answers before the last one unlabelled if the template writes them
                without their reasoning; `spans` then has no entry for them.
            shows_images: Whether the images are part of it; if not, the same texts are labelled,
                and `images` may be empty.

        Raises:
            DataError: The text holds a special token, or the template or the tokenizer changes it.
            ImageRefusedError: The processor does not accept an image.
            LayoutRefusedError: The model takes no images at these places.
        """
        check_special_tokens(turns, self.special)
        turns = place_images([_strip_answer(turn) for turn in turns], len(images))
        shown = turns if shows_images else without_images(turns)
        if is_document(turns):
            rendered, answers = self._document_chars(turns[0], shows_images=shows_images)
        else:
            messages = self._messages(shown)
            rendered = self._render(messages)
            answers = self._answer_chars(
                turns,
                messages,
                rendered,
                skip_rewritten=skip_rewritten,
                shows_images=shows_images,
            )
        types, token_inputs, pixels = self._process(rendered, shown, images, keys)
        place = self._char_map(rendered, answers[0][0], shown)
        spans = [
            self._token_span(place(begin), place(begin) + len(text), text, is_end=is_end)
            for begin, text, is_end in answers
        ]
        return EncodedChat(
            input_ids=list(self._recorder.ids),
            spans=spans,
            has_late_images=not is_simple(shown)
            and self.image_token_id in self._recorder.ids[spans[0][0] :],
            token_types=types,
            token_inputs=token_inputs,
            pixels=pixels,
            images=self._images_alone(shown, images, keys, pixels),
        )

    def _document_chars(
        self, turn: Turn, *, shows_images: bool
    ) -> tuple[str, list[tuple[int, str, bool]]]:
        """Write a text with images in it, as models are pre-trained on: no template, one end.

        Returns:
            The text, and where each labelled one is in it; see `_answer_chars`.
        """
        if not self._marker:
            raise LayoutRefusedError(
                "the chat template writes nothing for an image, so its mark in a text is unknown"
            )
        text = self._layout.inlined([turn if shows_images else without_images([turn])[0]])[0]
        marks = [self._layout.mark(n) if shows_images else "" for n in range(_num_images([turn]))]
        answers = _pieces(turn.parts, marks, has_first=False)
        if not answers:
            raise DataError("found no text after the first image, so there is nothing to score")
        return text + (self.tokenizer.eos_token or ""), answers

    def encode_prompt(
        self,
        turns: Sequence[Turn],
        images: Sequence[Image.Image] = (),
        keys: Sequence[object] | None = None,
    ) -> EncodedPrompt:
        """Encode a conversation that ends with the user, with the generation prompt after it.

        Args:
            turns: Alternating; the last one is a user's. Images stand as in `encode`.
            images: Of the conversation; none encodes the text alone.
            keys: Name the images; those of recent calls are not prepared again.

        Raises:
            DataError: The text holds a special token.
            ImageRefusedError: The processor does not accept an image.
            LayoutRefusedError: The model takes no images at these places.
        """
        check_special_tokens(turns, self.special)
        turns = place_images(turns, len(images))
        rendered = self._render(self._messages(turns), add_generation_prompt=True)
        types, token_inputs, pixels = self._process(rendered, turns, images, keys)
        return EncodedPrompt(
            input_ids=list(self._recorder.ids),
            token_types=types,
            token_inputs=token_inputs,
            pixels=pixels,
        )

    def unexpanded_prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Return the tokens of a prompt with one placeholder for each image, whatever its size.

        vLLM prepares images itself and expands the placeholders.

        Args:
            turns: With a reference to each image where it stands.

        Raises:
            DataError: The text holds a special token.
        """
        check_special_tokens(turns, self.special)
        rendered = self._render(self._messages(turns), add_generation_prompt=True)
        if any(turn.image_indices for turn in turns):
            self._check_shows_image(rendered)
        return self._tokenize(rendered)

    def unexpanded_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Return the tokens of a conversation with one placeholder for each image."""
        turns = [_strip_answer(turn) for turn in turns]
        if is_document(turns):
            return self._tokenize(self._layout.inlined(turns)[0] + (self.tokenizer.eos_token or ""))
        return self._tokenize(self._render(self._messages(turns)))

    def _tokenize(self, rendered: str) -> list[int]:
        special = not self._starts_with_bos(rendered)
        ids: list[int] = self.tokenizer(rendered, add_special_tokens=special)["input_ids"]
        return ids

    def _process(
        self,
        rendered: str,
        turns: Sequence[Turn],
        images: Sequence[Image.Image],
        keys: Sequence[object] | None,
    ) -> tuple[list[int], dict[str, Tensor], Pixels | None]:
        """Tokenize a text and prepare its images; `self._recorder` holds the tokens.

        Returns:
            Token types, all inputs with a value for each token, and the images.
        """
        special = not self._starts_with_bos(rendered)
        order = [index for turn in turns for index in turn.image_indices]
        if not order:
            return self._without_image(rendered, special)
        shown = [images[index] for index in order]
        self._image_processor.keys = [None if keys is None else keys[index] for index in order]
        try:
            with image_errors(shown):
                output = self._with_images(rendered, shown, special)
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

    def _images_alone(
        self,
        turns: Sequence[Turn],
        images: Sequence[Image.Image],
        keys: Sequence[object] | None,
        pixels: Pixels | None,
    ) -> tuple[Pixels, ...]:
        """Return each image as it is prepared alone; none if the family prepares them otherwise."""
        order = [index for turn in turns for index in turn.image_indices]
        if pixels is None or keys is None:
            return ()
        if len(order) == 1:
            return (pixels,)
        recorded = self._recorder.state
        try:
            alone = tuple(self._image_alone(images[index], keys[index]) for index in order)
        finally:
            self._recorder.state = recorded
        if sum(one.num_tokens for one in alone) != pixels.num_tokens:
            return ()
        return alone

    def _image_alone(self, image: Image.Image, key: object) -> Pixels:
        """Prepare one image with nothing but its mark for a text."""
        if key is not None and key in self._alone:
            return self._alone[key]
        place = [Turn(role="user", content=(ImageRef(0),))]
        _, _, pixels = self._process(self._layout.mark(0), place, [image], [key])
        assert pixels is not None
        if key is not None:
            while len(self._alone) >= NUM_CACHED_IMAGES:
                self._alone.pop(next(iter(self._alone)))
            self._alone[key] = pixels
        return pixels

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

    def _with_images(
        self, rendered: str, images: Sequence[Image.Image], special: bool
    ) -> Mapping[str, Any]:
        """Call the processor with images; most take a list of them for each text."""
        options = {"add_special_tokens": special, "return_tensors": "pt"}
        forms: list[Any] = [[list(images)], list(images)] if self._nests_images else [list(images)]
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

    def _messages(self, turns: Sequence[Turn]) -> list[Message]:
        """Write turns as messages, with what ends an answer if the template writes no end.

        Raises:
            DataError: The template leaves out what a tool returned.
        """
        end = self.turn_end.after_every_turn
        turns = [_with_end(turn, end) for turn in turns] if end else turns
        if not self.has_vision:
            return [{"role": turn.role, "content": turn.text} for turn in turns]
        return self._layout.messages(turns)

    def _render(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        text = self._render_messages(messages, add_generation_prompt=add_generation_prompt)
        is_answered = bool(messages) and messages[-1]["role"] == "assistant"
        if is_answered and not add_generation_prompt:
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
        shown = place_images(probe, 1)
        try:
            without = self._render_template(probe, add_generation_prompt=True)
            text = self._render_template(shown, add_generation_prompt=True)
        # A template is a program of the model's author and may raise anything.
        except Exception:  # noqa: BLE001
            return ""
        begin = _num_common(text, without)
        end = _num_common(text[begin:][::-1], without[::-1])
        return text[begin : len(text) - end].strip()

    def _render_template(
        self, turns: Sequence[Turn], *, add_generation_prompt: bool = False
    ) -> str:
        """Render turns as they are, with no image but at the beginning of the first user turn."""
        messages = [
            to_message(turn) if self.has_vision else {"role": turn.role, "content": turn.text}
            for turn in turns
        ]
        return self._render_messages(messages, add_generation_prompt=add_generation_prompt)

    def _render_messages(
        self, messages: list[Message], *, add_generation_prompt: bool = False
    ) -> str:
        text: str = self.template_owner.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **self.template_options,
        )
        return text

    def _answer_chars(
        self,
        turns: Sequence[Turn],
        messages: list[Message],
        rendered: str,
        *,
        skip_rewritten: bool,
        shows_images: bool,
    ) -> list[tuple[int, str, bool]]:
        """Find the labelled texts of a rendered conversation.

        Args:
            turns: With their images.
            messages: What was rendered.
            rendered: The text.
            skip_rewritten: As in `encode`.
            shows_images: Whether marks of images are in the text.

        Returns:
            For each where it begins, the text, and whether the turn ends after it. An answer with
            images in it has several texts.
        """
        answers: list[tuple[int, str, bool]] = []
        is_inlined = self.has_vision and shows_images
        texts = self._layout.inlined(turns) if is_inlined else [turn.text for turn in turns]
        num_shown = 0
        for number, turn in enumerate(turns):
            num_before, num_shown = num_shown, num_shown + len(turn.image_indices)
            if turn.role == "tool" and turn.text.strip() not in rendered:
                raise LayoutRefusedError("the chat template leaves out what a tool returned")
            if turn.role != "assistant" or not turn.is_labelled:
                continue
            prompt = self._render(messages[:number], add_generation_prompt=True)
            answer = texts[number].strip()
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
            if not turn.image_indices:
                answers.append((begin, answer, True))
                continue
            marks = [
                self._layout.mark(n) if is_inlined else "" for n in range(num_before, num_shown)
            ]
            pieces = _pieces(turn.parts, marks, has_first=True)
            answers += [(begin + at, text, is_end) for at, text, is_end in pieces]
        if not answers:
            raise DataError("the conversation has no assistant turn, so there is nothing to score")
        return answers

    def _starts_with_bos(self, rendered: str) -> bool:
        """Return whether the template itself writes the token that begins a text."""
        begin = self.tokenizer.bos_token
        return bool(begin) and rendered.startswith(begin)

    def _char_map(
        self, rendered: str, first_answer: int, turns: Sequence[Turn]
    ) -> Callable[[int], int]:
        """Return where a character of the rendered text is in the text that was tokenized.

        The processor inserts tokens for each image, and some insert or append others.
        """
        if is_simple(turns):
            offset = self._char_offset(rendered, first_answer)
            return lambda at: at + offset
        marks = list(re.finditer(self._layout.pattern, rendered))
        num_images = _num_images(turns)
        if len(marks) != num_images:
            raise LayoutRefusedError(
                f"found {len(marks)} marks {self._marker!r} in the conversation, expected one for"
                f" each of its {num_images} images"
            )
        bounds = [0, *(mark.end() for mark in marks)]
        stops = [*(mark.start() for mark in marks), len(rendered)]
        texts = [rendered[begin:end] for begin, end in zip(bounds, stops, strict=True)]
        special = "|".join(re.escape(token) for token in self.special if token)
        pattern = (
            "(.*?)" + "(.+?)".join(f"({re.escape(text)})" for text in texts) + f"(?:{special})*$"
        )
        found = re.match(pattern, self._recorder.text, re.DOTALL)
        if not found:
            raise DataError(
                "the processor changes the text between images: expected"
                f" {texts[-1][-60:]!r} to end {self._recorder.text[-60:]!r}"
            )
        # Group 1 is what stands before the text, then text and image take turns.
        begins = [found.start(2 + 2 * n) for n in range(len(texts))]

        def place(at: int) -> int:
            number = bisect.bisect_right(bounds, at) - 1
            return begins[number] + at - bounds[number]

        return place

    def _char_offset(self, rendered: str, first_answer: int) -> int:
        """Return how many characters the processor inserted before the first answer."""
        tail = rendered[first_answer:]
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

    def _token_span(self, begin: int, end: int, answer: str, *, is_end: bool) -> tuple[int, int]:
        """Find the tokens of a range of characters; check that they decode to the turn's text.

        Args:
            begin: First character.
            end: One after the last.
            answer: The text.
            is_end: Whether the turn ends after it, so that the token that ends it is labelled too.
        """
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
        if not is_end:
            return inside[0], inside[-1] + 1
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
            if token and token in turn.text:
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
    if isinstance(turn.content, str):
        return dataclasses.replace(turn, content=turn.content.strip())
    parts = list(turn.content)
    if isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return dataclasses.replace(turn, content=content_of(parts))


def _with_end(turn: Turn, end: str) -> Turn:
    if turn.role != "assistant":
        return turn
    return dataclasses.replace(turn, content=content_of([*turn.parts, end]))


def is_document(turns: Sequence[Turn]) -> bool:
    """Whether it is one text with images in it, and no conversation."""
    return len(turns) == 1 and turns[0].role == "assistant" and bool(turns[0].image_indices)


def _pieces(
    parts: Sequence[str | ImageRef], marks: Sequence[str], *, has_first: bool
) -> list[tuple[int, str, bool]]:
    """Return the texts between images, stripped: where each begins, and whether the turn ends then.

    Args:
        parts: Texts and images.
        marks: What is written for each image; they and the texts are joined.
        has_first: Whether the text before the first image is one of them.
    """
    waiting = iter(marks)
    pieces, at, is_labelled = [], 0, has_first
    for number, part in enumerate(parts):
        if isinstance(part, ImageRef):
            at, is_labelled = at + len(next(waiting)), True
            continue
        if is_labelled and part.strip():
            begin = at + len(part) - len(part.lstrip())
            pieces.append((begin, part.strip(), number == len(parts) - 1))
        at += len(part)
    return pieces


def _num_images(turns: Sequence[Turn]) -> int:
    return sum(len(turn.image_indices) for turn in turns)


def _without_reasoning(answer: str) -> str:
    """Return what an answer says after the model's thoughts."""
    return answer.rpartition("</think>")[2].strip()
