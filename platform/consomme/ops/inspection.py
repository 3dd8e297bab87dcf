"""`inspect`: what a model is, as consomme sees it, from its configuration and tokenizer alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consomme.base.errors import ConsommeError
from consomme.storage.model_folder import model_folder

_IMAGE_PX = 448


def inspect_model(model: str) -> str:
    """Show parts, parameters, data type, chat template, and what trains by default.

    Weights are neither brought nor read. What cannot be told is said in its place.

    Args:
        model: As a recipe names it: on the hub, by URL, or a folder.

    Raises:
        CheckpointError: There is no such model.
        RecipeError: The hub has none, or this user may not read it.
    """
    folder = model_folder(model, has_weights=False)
    config = json.loads(Path(folder, "config.json").read_text())
    lines = [
        f"model      {model}",
        f"folder     {folder}",
        f"family     {config.get('model_type', 'unknown')}",
        f"stored as  {config.get('dtype') or config.get('torch_dtype') or 'not said'}",
        "",
    ]
    for title, about in (("parts", _parts), ("conversation", _conversation)):
        lines.append(title)
        try:
            lines += [f"  {line}" for line in about(folder)]
        except ConsommeError as error:
            lines.append(f"  cannot be told: {error}")
        lines.append("")
    return "\n".join(lines).rstrip()


def _parts(folder: str) -> Iterator[str]:
    """Yield a line per part, with what trains by default."""
    import torch

    from consomme.models.weights import build_from_config
    from consomme.train.parts import Trainability, summarise
    from consomme.train.trainable import set_trainable

    with torch.device("meta"):
        built = build_from_config(folder)
        every = range(built.config.get_text_config().num_hidden_layers)
        trained = set_trainable(built, Trainability(), every, lr=1.0)
    yield f"{'':16} {'parameters':>15}  {'share':>6}  trains by default"
    for row in summarise(trained.rows):
        share = row.num_parameters / trained.num_parameters
        state = "yes" if row.num_trained else "no"
        yield f"{row.part:16} {row.num_parameters:>15,}  {share:>6.1%}  {state}"
    yield (
        f"{'all':16} {trained.num_parameters:>15,}  {'':>6}"
        f"  {trained.num_trained / trained.num_parameters:.1%}"
    )
    tied = getattr(built.config.get_text_config(), "tie_word_embeddings", False)
    yield f"the output matrix is {'that of the embeddings' if tied else 'its own'}"


def _conversation(folder: str) -> Iterator[str]:
    """Yield what the chat template makes of a question, and what an image costs."""
    from PIL import Image

    from consomme.base.sample import Turn
    from consomme.models.chat_prefix import chat_encoder_for
    from consomme.models.weights import open_processor

    config, processor = open_processor(folder)
    encoder = chat_encoder_for(config, processor)
    turns = (Turn(role="user", content="What is it?"),)
    text = encoder.encode_prompt(turns)
    yield f"prompt      {encoder.tokenizer.decode(text.input_ids)!r}"
    yield f"turns end   with {_spelled(encoder)}"
    if not encoder.has_vision:
        yield "images      none: a language model"
        return
    grey = Image.new("RGB", (_IMAGE_PX, _IMAGE_PX), (128, 128, 128))
    shown = encoder.encode_prompt(turns, [grey])
    added = len(shown.input_ids) - len(text.input_ids)
    yield f"images      {added:,} tokens for one of {_IMAGE_PX} × {_IMAGE_PX} pixels"
    try:
        encoder.encode_prompt(turns, [grey, grey])
    except ConsommeError as error:
        yield f"            one per conversation: {error}"
    else:
        yield "            several in one conversation"


def _spelled(encoder: Any) -> str:
    end = encoder.turn_end
    token = encoder.tokenizer.convert_ids_to_tokens(end.last_id)
    appended = " (appended: the template writes none)" if end.after_last_turn else ""
    return f"{token!r}{appended}"
