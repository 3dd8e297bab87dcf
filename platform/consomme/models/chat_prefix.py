"""Encode one question and one answer for PaliGemma, which has no chat template.

Its processor takes the question as a prefix with bidirectional attention and the answer as a
suffix, and returns which tokens are which. The answer's tokens are decoded again and compared with
the answer, as in `chat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import tensor, zeros_like

from consomme.base.errors import CheckpointError, DataError
from consomme.base.sample import Turn
from consomme.models.chat import ChatEncoder, check_special_tokens
from consomme.models.chat_check import check_chat
from consomme.models.encoded import EncodedChat, EncodedPrompt, LayoutRefusedError, Pixels
from consomme.models.imports import import_transformers
from consomme.models.layout import is_simple
from consomme.models.processing import image_errors
from consomme.models.recording import CachedImageProcessor
from consomme.models.turn_end import TurnEnd


def chat_encoder_for(
    config: Any,
    processor: Any,
    template: Mapping[str, Any] | None = None,
    *,
    has_answers: bool = True,
) -> ChatEncoder | PrefixChatEncoder:
    """Return the encoder of conversations for a model, tried on a few of them.

    Args:
        config: Of the model.
        processor: Of the model.
        template: Options of the chat template, such as `{"enable_thinking": True}`.
        has_answers: Whether answers are encoded, or questions alone.

    Raises:
        CheckpointError: It has no chat template and is no PaliGemma; the template does not know an
            option; or the template or the processor takes no conversation.
    """
    chat: ChatEncoder | PrefixChatEncoder
    if isinstance(processor, import_transformers().PaliGemmaProcessor):
        if template:
            raise CheckpointError(
                f"template: found {', '.join(template)}, but PaliGemma has no chat template; leave"
                " it out"
            )
        chat = PrefixChatEncoder(config, processor)
    else:
        chat = ChatEncoder(config, processor, template)
    check_chat(chat, has_answers=has_answers)
    return chat


class PrefixChatEncoder:
    """Encodes questions and answers for one PaliGemma; has the methods of `ChatEncoder`."""

    has_vision = True

    def __init__(self, config: Any, processor: Any) -> None:
        """Wrap a model's processor.

        Args:
            config: Gives the id of the image token.
            processor: A `PaliGemmaProcessor`.
        """
        self.tokenizer = processor.tokenizer
        self.image_token: str = processor.image_token
        self.image_token_id: int = config.image_token_id
        self.special: tuple[str, ...] = tuple(
            dict.fromkeys([*self.tokenizer.all_special_tokens, self.image_token])
        )
        # Its processor appends this token to an answer.
        self.turn_end = TurnEnd(
            ids=frozenset({self.tokenizer.eos_token_id}), last_id=self.tokenizer.eos_token_id
        )
        self._image_processor = CachedImageProcessor(processor.image_processor)
        self._processor = processor
        self._processor.image_processor = self._image_processor

    def encode(
        self,
        turns: Sequence[Turn],
        images: Sequence[Image.Image] = (),
        keys: Sequence[object] | None = None,
        *,
        skip_rewritten: bool = False,
        shows_images: bool = True,
    ) -> EncodedChat:
        """Encode one question and its answer.

        Args:
            turns: A user's and an assistant's.
            images: One at most, before the question; none encodes the text alone.
            keys: Name the images; those of recent calls are not prepared again.
            skip_rewritten: As in `ChatEncoder`; without effect on a single answer.
            shows_images: As in `ChatEncoder`.

        Raises:
            DataError: There are other turns than these, the text holds a special token, or the
                tokenizer changes the answer.
            ImageRefusedError: The processor does not accept the image.
            LayoutRefusedError: There are several images, or one elsewhere.
        """
        _check_images(turns, images)
        roles = [turn.role for turn in turns]
        if roles != ["user", "assistant"]:
            raise DataError(
                f"found the turns {', '.join(roles)}; this model takes one question and one answer,"
                " so split conversations into single questions first"
            )
        check_special_tokens(turns, self.special)
        question, answer = turns[0].text.strip(), turns[1].text.strip()
        output = self._process(question, answer, images if shows_images else (), keys)
        ids = [int(token) for token in output["input_ids"][0]]
        types = [int(kind) for kind in output["token_type_ids"][0]]
        begin = types.index(1) if 1 in types else len(types)
        decoded = self.tokenizer.decode(
            [token for token in ids[begin:] if token != self.tokenizer.eos_token_id],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        if decoded.strip() != answer:
            raise DataError(
                f"labelled tokens read {decoded[:80]!r} but the assistant says {answer[:80]!r}:"
                " the tokenizer changes the text"
            )
        pixels = self._pixels(output, ids)
        return EncodedChat(
            input_ids=ids,
            spans=[(begin, len(ids))],
            token_types=types,
            token_inputs={"token_type_ids": tensor(types)},
            pixels=pixels,
            images=() if pixels is None else (pixels,),
        )

    def encode_prompt(
        self,
        turns: Sequence[Turn],
        images: Sequence[Image.Image] = (),
        keys: Sequence[object] | None = None,
    ) -> EncodedPrompt:
        """Encode one question, ready for its answer; see `ChatEncoder.encode_prompt`.

        Raises:
            DataError: There is more than one turn, or the text holds a special token.
            ImageRefusedError: The processor does not accept the image.
            LayoutRefusedError: There are several images, or one elsewhere.
        """
        _check_images(turns, images)
        if len(turns) != 1:
            raise DataError(
                f"found {len(turns)} turns; this model takes one question and no conversations"
            )
        check_special_tokens(turns, self.special)
        output = self._process(turns[0].text.strip(), None, images, keys)
        ids = [int(token) for token in output["input_ids"][0]]
        return EncodedPrompt(
            input_ids=ids,
            token_types=[0] * len(ids),
            token_inputs={"token_type_ids": zeros_like(tensor(ids))},
            pixels=self._pixels(output, ids),
        )

    def _process(
        self,
        question: str,
        answer: str | None,
        images: Sequence[Image.Image],
        keys: Sequence[object] | None,
    ) -> Any:
        if not images:
            end = self.tokenizer.eos_token
            return self.tokenizer(
                [f"{self.tokenizer.bos_token}{question}\n"],
                text_pair=None if answer is None else [answer + end],
                add_special_tokens=False,
                return_token_type_ids=True,
            )
        self._image_processor.keys = keys or ()
        with image_errors(images):
            return self._processor(
                text=[self.image_token + question],
                images=[list(images)],
                suffix=None if answer is None else [answer],
                add_special_tokens=False,
                return_tensors="pt",
            )

    def _pixels(self, output: Any, ids: Sequence[int]) -> Pixels | None:
        if "pixel_values" not in output:
            return None
        num_tokens = sum(token == self.image_token_id for token in ids)
        return Pixels(inputs={"pixel_values": output["pixel_values"]}, num_tokens=num_tokens)


def _check_images(turns: Sequence[Turn], images: Sequence[Image.Image]) -> None:
    """Refuse what PaliGemma was not trained on: several images, or one elsewhere.

    Raises:
        LayoutRefusedError: There are.
    """
    if len(images) > 1 or not is_simple(turns):
        places = sum(len(turn.image_indices) for turn in turns)
        raise LayoutRefusedError(
            f"found {max(len(images), places)} images in the conversation; this family takes one"
            " image, before the question"
        )
