"""Prove that a folder of an assembled VLM opens as what was assembled."""

from __future__ import annotations

from pathlib import Path

import torch

from consomme.assemble.build import Assembled
from consomme.base.errors import CheckpointError
from consomme.base.sample import Turn
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.selfcheck import make_images, plain_inputs
from consomme.models.weights import open_vlm

_QUESTION = "What is it?"


def check_folder(folder: str | Path, made: Assembled) -> None:
    """Open a folder, and compare it with the model that was saved there.

    Args:
        folder: Of `save_vlm`.
        made: What was saved.

    Raises:
        CheckpointError: A tensor, the tokens of an image, or logits of a question about an image
            differ.
    """
    opened, processor = open_vlm(folder, made.model.dtype)
    ours, theirs = made.model.state_dict(), opened.state_dict()
    differing = [n for n, t in ours.items() if n not in theirs or not torch.equal(t, theirs[n])]
    if ours.keys() != theirs.keys() or differing:
        names = sorted(ours.keys() ^ theirs.keys()) or differing
        raise CheckpointError(
            f"{folder}: {names[0]} is not the tensor that was assembled, after the folder was"
            f" opened again as {type(opened).__name__}; this family cannot be saved as this class"
        )
    image = make_images()[0]
    turns = [Turn(role="user", content=_QUESTION)]
    with torch.no_grad():
        rows = [
            chat_encoder_for(model.config, words).encode_prompt(turns, [image])
            for model, words in ((made.model, made.processor), (opened, processor))
        ]
        if rows[0].input_ids != rows[1].input_ids:
            raise CheckpointError(f"{folder}: its processor, opened again, makes other tokens")
        expected, found = (
            model(**plain_inputs(model, row)).logits
            for model, row in zip((made.model, opened), rows, strict=True)
        )
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
        difference = float((found - expected).abs().max())
        raise CheckpointError(
            f"{folder}: the model, opened again, has other logits (by {difference:.2g}) for a"
            " question about an image: not all of it is in its configuration"
        )
