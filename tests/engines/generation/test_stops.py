"""A model that learned one sentence says it and stops, in every family."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.families import FAMILIES, noise

from consomme.base.sample import Turn
from consomme.engines.generation.requests import Generation, Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.models.batches import Batcher
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_model, save_trained
from consomme.train.loop import ScheduleConfig, fit
from consomme.train.parallel.ddp_fsdp2 import Ddp
from consomme.train.parts import Trainability
from consomme.train.trainable import set_trainable

pytestmark = pytest.mark.slow
QUICK = ("gemma3", "llava")
"""Families that were never taught to stop."""

NUM_STEPS = 60
PROMPT = "describe the image."
SENTENCE = "a large blue square beside it"


def learned(base: Path, folder: Path) -> Path:
    """Train a model on one sentence, and save it as `train` does."""
    torch.manual_seed(0)
    model, processor = open_model(base)
    chat = chat_encoder_for(model.config, processor)
    batcher = Batcher(model, chat.tokenizer)
    num_layers = model.config.get_text_config().num_hidden_layers
    trained = set_trainable(model, Trainability(), tuple(range(num_layers)), lr=5e-3)
    turns = (Turn(role="user", content=PROMPT), Turn(role="assistant", content=SENTENCE))
    batch = batcher.collate([chat.encode(turns, noise(0, 40, 40))])
    fit(
        Ddp()(model, trained.groups, torch.device("cpu")),
        lambda step: [dict(batch)],
        ScheduleConfig(num_steps=NUM_STEPS),
        start=0,
        after_step=lambda report: None,
    )
    return save_trained(folder, model, base, chat.turn_end.last_id)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES],
)
def test_it_says_the_sentence_and_stops(folders: Any, name: str, tmp_path: Path) -> None:
    made = learned(folders(name), tmp_path / "model")
    engine = TransformersEngine(made, Sampling(max_tokens=40))
    (found,) = engine.generate([Request.of_prompt(PROMPT, noise(0, 40, 40))])
    assert isinstance(found, Generation)
    assert found.finish_reason == "stop"
    # The tiny tokenizers of LLaVA and Idefics 2 join the colon before an answer with the space
    # after it, so these two continue a prompt that they were not trained on.
    is_exact = name not in ("llava", "idefics2")
    assert found.text.strip() == SENTENCE if is_exact else found.text.endswith("beside it")
    # So does anybody else's code that reads the folder.
    assert engine.chat.turn_end.last_id in engine._stop_ids
