"""Prove that a folder of an assembled VLM opens as what was assembled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
            differ; or the model does not write with a cache what it writes without.
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
        with _runs_inside(opened, folder):
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
    _check_cache(opened, plain_inputs(opened, rows[1]), folder)


@contextlib.contextmanager
def _runs_inside(model: Any, folder: str | Path) -> Iterator[None]:
    """Raise what a model raises as an error of its language model.

    Raises:
        CheckpointError: For everything but a lack of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    # A language model of another kind raises anything when it is run in a class for attention.
    except Exception as error:
        raise CheckpointError(
            f"{folder}: its language model does not work inside a {type(model).__name__}:"
            f" {type(error).__name__}: {error}; choose another one"
        ) from error


@torch.no_grad()
def _check_cache(model: Any, inputs: dict[str, Any], folder: str | Path) -> None:
    """Check that a second word is the same with a cache of the first one's keys and without."""
    found = []
    with _runs_inside(model, folder):
        for cached in (True, False):
            written = model.generate(
                **inputs,
                min_new_tokens=2,
                max_new_tokens=2,
                do_sample=False,
                use_cache=cached,
                output_logits=True,
                return_dict_in_generate=True,
            )
            found.append(written.logits[1].float())
    tolerance = max(1e-3, 8 * torch.finfo(model.dtype).eps) * float(found[1].abs().max())
    difference = float((found[0] - found[1]).abs().max())
    if not difference <= tolerance:
        raise CheckpointError(
            f"{folder}: with a cache the model writes other words than without (logits differ by"
            f" {difference:.2g}, expected at most {tolerance:.2g}); its language model does not"
            f" work inside a {type(model).__name__}, so choose another one"
        )
