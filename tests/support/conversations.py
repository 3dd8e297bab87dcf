"""Small batches of real samples for tiny models of any family."""

from collections.abc import Callable, Sequence
from typing import Any

from consomme.base.sample import Turn
from consomme.models.batches import Batcher
from consomme.models.chat_prefix import chat_encoder_for
from consomme.train.loop import Batch
from tests.support.families import noise

TEXTS = ("a red circle", "a large blue square at the top left.", "star", "a green star, left of it")


def batcher_of(model: Any, processor: Any) -> tuple[Any, Batcher]:
    chat = chat_encoder_for(model.config, processor)
    return chat, Batcher(model, chat.tokenizer)


def batches_of(
    model: Any, processor: Any, num_micro_batches: int = 1, texts: Sequence[str] = TEXTS
) -> Callable[[int], list[Batch]]:
    """Different images and prompts in every step, split into micro-batches."""
    chat, batcher = batcher_of(model, processor)

    def batches(step: int) -> list[Batch]:
        prompt = Turn(role="user", content=f"describe the image {step}.")
        rows = [
            chat.encode(
                (prompt, Turn(role="assistant", content=text)), [noise(10 * step + number, 40, 32)]
            )
            for number, text in enumerate(texts)
        ]
        size = len(rows) // num_micro_batches
        return [batcher.collate(rows[at : at + size]) for at in range(0, len(rows), size)]

    return batches
