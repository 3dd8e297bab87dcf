"""Encode one question and one answer for PaliGemma, which was never taught to hold a conversation.

One decision is made here: such a model has no chat template; its processor takes the question as a
prefix, which may look ahead, and the answer as a suffix, and says itself which tokens are which.
Those of the answer are decoded again and compared with what was said, as `chat` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from consomme.base.errors import DataError
from consomme.base.sample import Turn
from consomme.models.chat import CachedImageProcessor, ChatEncoder, check_text, taking
from consomme.models.encoded import EncodedChat, EncodedPrompt, Pixels
from consomme.models.imports import import_transformers


def chat_encoder_for(config: Any, processor: Any) -> ChatEncoder | PrefixChatEncoder:
    """Choose how conversations are encoded for a model.

    Raises:
        CheckpointError: It has no chat template and is none of PaliGemma's.
    """
    if isinstance(processor, import_transformers().PaliGemmaProcessor):
        return PrefixChatEncoder(config, processor)
    return ChatEncoder(config, processor)


class PrefixChatEncoder:
    """Encodes questions and answers for one model; offers what `ChatEncoder` does."""

    has_vision = True

    def __init__(self, config: Any, processor: Any) -> None:
        """Look at a model's config and processor.

        Args:
            config: For which token stands for a piece of a picture.
            processor: A `PaliGemmaProcessor`.
        """
        self.tokenizer = processor.tokenizer
        self.image_token: str = processor.image_token
        self.image_token_id: int = config.image_token_id
        self.special: tuple[str, ...] = tuple(
            dict.fromkeys([*self.tokenizer.all_special_tokens, self.image_token])
        )
        self._images = CachedImageProcessor(processor.image_processor)
        self._processor = processor
        self._processor.image_processor = self._images

    def encode(
        self, turns: Sequence[Turn], image: Image.Image | None, key: object = None
    ) -> EncodedChat:
        """Encode one question and its answer.

        Args:
            turns: A user's and an assistant's.
            image: The picture; None for the text alone.
            key: Names the picture; the same key the next time saves preparing it again.

        Raises:
            DataError: There are other turns than these, the text holds a special token, or the
                tokenizer changes the answer.
        """
        roles = [turn.role for turn in turns]
        if roles != ["user", "assistant"]:
            raise DataError(
                f"found the turns {', '.join(roles)}; this model takes one question and one answer,"
                " so a conversation has to be cut into its questions before"
            )
        check_text(turns, self.special)
        question, answer = turns[0].content.strip(), turns[1].content.strip()
        output = self._prepare(question, answer, image, key)
        ids = [int(token) for token in output["input_ids"][0]]
        types = [int(kind) for kind in output["token_type_ids"][0]]
        begin = types.index(1) if 1 in types else len(types)
        read = self.tokenizer.decode(
            [token for token in ids[begin:] if token != self.tokenizer.eos_token_id],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        if read.strip() != answer:
            raise DataError(
                f"labelled tokens read {read[:80]!r} but the assistant says {answer[:80]!r}:"
                " the tokenizer changes the text"
            )
        pixels = self._pixels(output, ids)
        return EncodedChat(
            input_ids=ids, spans=[(begin, len(ids))], token_types=types, pixels=pixels
        )

    def ask(
        self, turns: Sequence[Turn], image: Image.Image | None, key: object = None
    ) -> EncodedPrompt:
        """Encode one question, ready for its answer; as `ChatEncoder.ask`.

        Raises:
            DataError: There are more turns than one, or the text holds a special token.
            PictureRefusedError: The processor does not take the picture.
        """
        if len(turns) != 1:
            raise DataError(
                f"found {len(turns)} turns; this model takes one question and knows no"
                " conversations"
            )
        check_text(turns, self.special)
        output = self._prepare(turns[0].content.strip(), None, image, key)
        ids = [int(token) for token in output["input_ids"][0]]
        return EncodedPrompt(
            input_ids=ids, token_types=[0] * len(ids), pixels=self._pixels(output, ids)
        )

    def _prepare(
        self, question: str, answer: str | None, image: Image.Image | None, key: object
    ) -> Any:
        if image is None:
            end = self.tokenizer.eos_token
            return self.tokenizer(
                [f"{self.tokenizer.bos_token}{question}\n"],
                text_pair=None if answer is None else [answer + end],
                add_special_tokens=False,
                return_token_type_ids=True,
            )
        self._images.key = key
        with taking(image):
            return self._processor(
                text=[self.image_token + question],
                images=[[image]],
                suffix=None if answer is None else [answer],
                add_special_tokens=False,
                return_tensors="pt",
            )

    def _pixels(self, output: Any, ids: Sequence[int]) -> Pixels | None:
        if "pixel_values" not in output:
            return None
        num = sum(token == self.image_token_id for token in ids)
        return Pixels(inputs={"pixel_values": output["pixel_values"]}, num_tokens=num)
