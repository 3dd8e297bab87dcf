"""Turn what is said about a picture into token ids and labels, as the model's own template says.

One decision is made here: which tokens the assistant spoke is read from the chat template's
generation marks, then checked by decoding them back. A span that does not read as the text stops
the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import CheckpointError, DataError
from consomme.base.sample import Turn

IGNORE_INDEX = -100

# Shapes: B samples, T token positions, H and W pixels.


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One conversation in tokens."""

    input_ids: list[int]
    labels: list[int]
    """Same length; `IGNORE_INDEX` wherever the assistant does not speak."""

    has_image: bool

    @property
    def num_labels(self) -> int:
        """Labelled tokens."""
        return sum(label != IGNORE_INDEX for label in self.labels)


class Chat:
    """Encodes conversations for one model; stateless apart from a text cache."""

    def __init__(self, model: Any, processor: Any) -> None:
        """Read placeholder and image size from the model's own configuration.

        Raises:
            CheckpointError: The chat template does not mark what the assistant says.
        """
        self.processor, self.tokenizer = processor, processor.tokenizer
        if not hasattr(model.config, "image_seq_length"):
            raise CheckpointError(
                f"{type(model).__name__} does not say how many tokens a picture takes"
                " (image_seq_length in config.json); consomme reads LLaVA checkpoints so far"
            )
        self.image_token_id: int = model.config.image_token_index
        self.num_image_tokens: int = model.config.image_seq_length
        self.pad_id: int = self.tokenizer.pad_token_id
        self.special_tokens: tuple[str, ...] = tuple(self.tokenizer.all_special_tokens)
        if "{% generation %}" not in (self.tokenizer.chat_template or ""):
            raise CheckpointError(
                "the chat template has no {% generation %} marks, so consomme cannot know which"
                " tokens the assistant speaks; add them around the assistant's content in"
                " chat_template.jinja"
            )

    @staticmethod
    def messages(turns: Sequence[Turn], *, has_image: bool) -> list[dict[str, Any]]:
        """Turns as chat messages; the picture goes first in the first user turn."""
        found: list[dict[str, Any]] = []
        for turn in turns:
            parts: list[dict[str, str]] = [{"type": "text", "text": turn.content}]
            if has_image and turn.role == "user" and not any(m["role"] == "user" for m in found):
                parts.insert(0, {"type": "image"})
            found.append({"role": turn.role, "content": parts})
        return found

    def encode(self, turns: Sequence[Turn], *, has_image: bool) -> Encoded:
        """Tokenise a conversation that ends with the assistant.

        Args:
            turns: Alternating user and assistant; a caption needs its prompt before it.
            has_image: Whether the first user turn shows the picture.

        Raises:
            DataError: A text holds one of the tokenizer's special tokens, or the labelled tokens do
                not read as the assistant's text.
        """
        for turn in turns:
            for token in self.special_tokens:
                if token in turn.content:
                    raise DataError(
                        f"the {turn.role}'s text holds the special token {token!r}, which would"
                        " break the conversation's form; remove it from the text"
                    )
        output = self.tokenizer.apply_chat_template(
            self.messages(turns, has_image=has_image),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        input_ids: list[int] = []
        labels: list[int] = []
        for token, spoken in zip(output["input_ids"], output["assistant_masks"], strict=True):
            repeat = self.num_image_tokens if token == self.image_token_id and not spoken else 1
            input_ids += [token] * repeat
            labels += [token if spoken else IGNORE_INDEX] * repeat
        self._check(turns, labels)
        return Encoded(input_ids=input_ids, labels=labels, has_image=has_image)

    def _check(self, turns: Sequence[Turn], labels: Sequence[int]) -> None:
        kept = [token for token in labels if token != IGNORE_INDEX]
        read = self.tokenizer.decode(kept, skip_special_tokens=True)
        said = "".join(turn.content for turn in turns if turn.role == "assistant")
        if read != said:
            raise DataError(
                f"labelled tokens read {read[:80]!r} but the assistant says {said[:80]!r}:"
                " the chat template marks the wrong span, or the tokenizer changes the text"
            )

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pad to the longest row, on the right.

        Returns:
            input_ids, labels, attention_mask, all int64 (B, T).
        """
        width = max(len(row.input_ids) for row in rows)
        input_ids_BT = torch.full((len(rows), width), self.pad_id)
        labels_BT = torch.full((len(rows), width), IGNORE_INDEX)
        mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
        for number, row in enumerate(rows):
            length = len(row.input_ids)
            input_ids_BT[number, :length] = torch.tensor(row.input_ids)
            labels_BT[number, :length] = torch.tensor(row.labels)
            mask_BT[number, :length] = 1
        return {"input_ids": input_ids_BT, "labels": labels_BT, "attention_mask": mask_BT}

    def pixels(self, images: Sequence[Any]) -> Tensor:
        """Preprocess pictures with the model's own image processor.

        Returns:
            float32 (B, 3, H, W).
        """
        output: Tensor = self.processor.image_processor(list(images), return_tensors="pt")[
            "pixel_values"
        ]
        return output
