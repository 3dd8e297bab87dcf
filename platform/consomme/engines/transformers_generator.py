"""Answer short questions with a VLM through transformers: greedy, in batches of equal work.

One decision is made here: greedy decoding only. Evaluation must not depend on a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from consomme.models.chat import Chat
from consomme.models.weights import open_vlm

# Shapes: B samples, T token positions.


class TransformersGenerator:
    """Holds one VLM and answers lists of (picture, question)."""

    def __init__(self, model_path: str | Path, *, threads: int = 1, batch_size: int = 64) -> None:
        """Load the model.

        Args:
            model_path: Hugging Face folder.
            threads: torch threads of this process.
            batch_size: Requests decoded together.
        """
        torch.set_num_threads(threads)
        self.model, self.processor = open_vlm(model_path)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)
        self.chat = Chat(self.model, self.processor)
        self.batch_size = batch_size

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put other weights of the same architecture into the model, in place.

        Args:
            weights: By the names of a checkpoint folder's tensors.
        """
        from consomme.models.weights import load_tensors

        load_tensors(self.model, weights)

    @torch.inference_mode()
    def generate(
        self, images: Sequence[Image.Image], questions: Sequence[str], max_tokens: int
    ) -> list[str]:
        """Answer each question about its picture.

        Requests of equal length are decoded together, so there is no padding and the answer
        does not depend on its neighbours.

        Args:
            images: Decoded pictures.
            questions: User turns, without template.
            max_tokens: Longest answer.
        """
        prompts = [self._ids(question) for question in questions]
        order = sorted(range(len(prompts)), key=lambda number: (len(prompts[number]), number))
        answers = [""] * len(prompts)
        group: list[int] = []
        for number in [*order, -1]:
            full = len(group) == self.batch_size
            if group and (number < 0 or full or len(prompts[number]) != len(prompts[group[0]])):
                for member, text in zip(
                    group, self._batch(group, images, prompts, max_tokens), strict=True
                ):
                    answers[member] = text
                group = []
            group.append(number)
        return answers

    def _ids(self, question: str) -> list[int]:
        ids: list[int] = []
        for token in self.chat.tokenizer.encode(
            self.chat.prompt(question), add_special_tokens=False
        ):
            repeat = self.chat.num_image_tokens if token == self.chat.image_token_id else 1
            ids += [token] * repeat
        return ids

    def _batch(
        self,
        group: Sequence[int],
        images: Sequence[Image.Image],
        prompts: Sequence[list[int]],
        max_tokens: int,
    ) -> list[str]:
        input_ids_BT = torch.tensor([prompts[number] for number in group], device=self.device)
        pixels = self.chat.pixels([images[number] for number in group])
        output: Any = self.model.generate(
            input_ids=input_ids_BT,
            attention_mask=torch.ones_like(input_ids_BT),
            pixel_values=pixels.to(self.device, self.model.dtype),
            max_new_tokens=max_tokens,
            do_sample=False,
        )
        new = output[:, input_ids_BT.shape[1] :]
        return [
            text.strip() for text in self.chat.tokenizer.batch_decode(new, skip_special_tokens=True)
        ]
