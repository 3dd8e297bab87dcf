"""Encode conversations about images as model inputs, for any family of models.

The model's own processor writes the text and prepares the pixels; a recording tokenizer between the
processor and its tokenizer keeps the final text and its token offsets. Labelled tokens come from
the chat template: it is rendered without an answer and with it, and the difference is the answer.
Its tokens are decoded again and compared with the answer, so a wrong span is an error and never a
score.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from consomme.base.errors import CheckpointError, DataError
from consomme.base.sample import Turn, content_of, is_document, place_images, without_images
from consomme.models.encoded import EncodedChat, EncodedPrompt, LayoutRefusedError, Pixels
from consomme.models.layout import ImageLayout, Message, is_simple, to_message
from consomme.models.processing import ConversationProcessor
from consomme.models.spans import char_map, char_offset, num_images, pieces, token_span
from consomme.models.thoughts import answer_start, template_options
from consomme.models.turn_end import TurnEnd, find_turn_end


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
        self._processing = ConversationProcessor(config, processor, lambda: self._marker)
        self._layout = ImageLayout(self._render_messages, lambda: self._marker)
        if self.has_vision:
            if self._marker and self.image_token not in self._marker:
                # A placeholder that the processor replaces by image tokens.
                self.special = tuple(dict.fromkeys([*self.special, self._marker]))
            self.image_token_id = self._processing.image_token_id

    def encode(
        self,
        turns: Sequence[Turn],
        images: Sequence[Image.Image] = (),
        keys: Sequence[object] | None = None,
        *,
        skip_rewritten: bool = False,
        shows_images: bool = True,
        expands_images: bool = True,
        image_options: Mapping[str, Any] | None = None,
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
            expands_images: Whether images are prepared; if not, the mark of each stays in the text,
                for `token_counts`.
            image_options: Of the image processor, for this conversation; see `tiling.splitting`.

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
        types, token_inputs, pixels = self._processing.process(
            rendered,
            shown,
            images,
            keys,
            expands_images=expands_images,
            image_options=image_options,
        )
        recorder = self._processing.recorder
        is_scattered = not is_simple(shown)
        if is_scattered:
            pattern = self._layout.pattern
            place = char_map(recorder.text, rendered, num_images(shown), pattern, self.special)
        else:
            place = char_offset(recorder.text, rendered, answers[0][0], self.special)
        spans = [
            token_span(recorder, self.turn_end.ids, place(begin), text, is_end=is_end)
            for begin, text, is_end in answers
        ]
        ids = list(recorder.ids)
        alone: tuple[Pixels, ...] = ()
        if pixels is not None and keys is not None:
            alone = self._processing.images_alone(
                shown, images, keys, pixels, self._layout.mark(0) if is_scattered else ""
            )
        return EncodedChat(
            input_ids=ids,
            spans=spans,
            has_late_images=is_scattered and self.image_token_id in ids[spans[0][0] :],
            token_types=types,
            token_inputs=token_inputs,
            pixels=pixels,
            images=alone,
        )

    def _document_chars(
        self, turn: Turn, *, shows_images: bool
    ) -> tuple[str, list[tuple[int, str, bool]]]:
        """Write a text with images in it, as models are pre-trained on: no template, one end.

        Returns:
            The text, and where each labelled one is in it; see `_answer_chars`.
        """
        text = self._document_text(turn if shows_images else without_images([turn])[0])
        marks = [self._layout.mark(n) if shows_images else "" for n in range(num_images([turn]))]
        answers = pieces(turn.parts, marks, has_first=False)
        if not answers:
            raise DataError("found no text after the first image, so there is nothing to score")
        return text + (self.tokenizer.eos_token or ""), answers

    def _document_text(self, turn: Turn) -> str:
        if not self._marker:
            raise LayoutRefusedError(
                "the chat template writes nothing for an image, so its mark in a text is unknown"
            )
        return self._layout.inlined([turn])[0]

    def _render_prompt(self, turns: Sequence[Turn]) -> str:
        """Write a conversation with the generation prompt, or the beginning of a document."""
        if is_document(turns):
            return self._document_text(_strip_answer(turns[0]))
        return self._render(self._messages(turns), add_generation_prompt=True)

    def encode_prompt(
        self,
        turns: Sequence[Turn],
        images: Sequence[Image.Image] = (),
        keys: Sequence[object] | None = None,
    ) -> EncodedPrompt:
        """Encode what a model continues.

        Args:
            turns: A conversation that ends with the user; the generation prompt is written after
                it. Or the beginning of a document, which is written without the chat template.
                Images stand as in `encode`.
            images: Of the conversation; none encodes the text alone.
            keys: Name the images; those of recent calls are not prepared again.

        Raises:
            DataError: The text holds a special token.
            ImageRefusedError: The processor does not accept an image.
            LayoutRefusedError: The model takes no images at these places.
        """
        check_special_tokens(turns, self.special)
        turns = place_images(turns, len(images))
        rendered = self._render_prompt(turns)
        types, token_inputs, pixels = self._processing.process(rendered, turns, images, keys)
        return EncodedPrompt(
            input_ids=list(self._processing.recorder.ids),
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
        rendered = self._render_prompt(turns)
        if any(turn.image_indices for turn in turns):
            self._processing.check_shows_image(rendered)
        return self._tokenize(rendered)

    def unexpanded_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Return the tokens of a conversation with one placeholder for each image."""
        turns = [_strip_answer(turn) for turn in turns]
        if is_document(turns):
            return self._tokenize(self._layout.inlined(turns)[0] + (self.tokenizer.eos_token or ""))
        return self._tokenize(self._render(self._messages(turns)))

    def _tokenize(self, rendered: str) -> list[int]:
        special = not self._processing.starts_with_bos(rendered)
        ids: list[int] = self.tokenizer(rendered, add_special_tokens=special)["input_ids"]
        return ids

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
        # What stands before the image may end as its mark does: `<user><image>`.
        end = _num_common(text[begin:][::-1], without[begin:][::-1])
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
        num_shown = 0
        for number, turn in enumerate(turns):
            num_before, num_shown = num_shown, num_shown + len(turn.image_indices)
            if turn.role == "tool" and turn.text.strip() not in rendered:
                raise LayoutRefusedError("the chat template leaves out what a tool returned")
            if turn.role != "assistant" or not turn.is_labelled:
                continue
            prompt = self._render(messages[:number], add_generation_prompt=True)
            answer = turn.text.strip()
            if turn.image_indices and is_inlined:
                answer = self._layout.inlined(turns)[number].strip()
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
            found = pieces(turn.parts, marks, has_first=True)
            answers += [(begin + at, text, is_end) for at, text, is_end in found]
        if not answers:
            raise DataError("the conversation has no assistant turn, so there is nothing to score")
        return answers


def _num_common(text: str, other: str) -> int:
    """Return how many first characters are the same."""
    pairs = zip(text, other, strict=False)
    differing = (number for number, (one, two) in enumerate(pairs) if one != two)
    return next(differing, min(len(text), len(other)))


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


def _without_reasoning(answer: str) -> str:
    """Return what an answer says after the model's thoughts."""
    return answer.rpartition("</think>")[2].strip()
