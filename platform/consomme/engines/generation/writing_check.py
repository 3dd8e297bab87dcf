"""Compare batched generation with `generate` on one unpadded prompt, when a model is opened.

The plain run of each probe prompt chooses its first tokens; every way of running writes the same
tokens, and the log-probabilities at each step are compared. Padding, positions, caches and inputs
beside the tokens all show in them, and a near tie between two tokens does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import CheckpointError, DataError
from consomme.base.sample import ImageRef, Turn
from consomme.engines.generation.requests import Request
from consomme.models import selfcheck
from consomme.models.attention import longest_alike, max_positions, num_selected, windows
from consomme.models.encoded import EncodedPrompt
from consomme.models.imports import import_transformers

# Shapes: B rows, N new tokens, K compared tokens of a step, V vocabulary.

BATCHED, SINGLE = "padded batches", "one row at a time"
LOST: Mapping[str, str] = {BATCHED: "prompts are not batched"}

SEVERAL = "writing about several images"

_NUM_STEPS = 3
_NUM_COMPARED = 8
"""Likeliest tokens of each step whose log-probabilities are compared."""

_LONGEST_WINDOW = 1024
"""A prompt beyond a larger attention window would cost too much here."""

_ROOM = 64
"""Positions that a probe and what it writes take beyond a window."""

_QUESTIONS = ("star?", "what color is the triangle that is below the blue star at the top left?")

Collate = Callable[[Sequence[EncodedPrompt]], dict[str, Any]]


def check_writing(
    model: Any, chat: Any, collate: Collate, pad_id: int, model_hash: str | None = None
) -> selfcheck.SelfCheck:
    """Find the fastest way of writing that equals the plain one.

    Args:
        model: In eval mode, on its device.
        chat: Its encoder of conversations.
        collate: Makes the inputs of a batch, as the engine does.
        pad_id: Fills rows that have ended.
        model_hash: Of the model's content, adapter included; the result is cached under it. None
            checks every time.

    Raises:
        CheckpointError: The family cannot write, or no way of writing equals the plain one.
    """
    settings = {"template": getattr(chat, "template_options", {})}
    return selfcheck.cached_check(
        model,
        "writing",
        model_hash,
        settings,
        LOST,
        lambda: _check(model, chat, collate, pad_id),
    )


def check_writing_about_several(
    model: Any,
    chat: Any,
    collate: Collate,
    pad_id: int,
    way: str,
    model_hash: str | None = None,
) -> selfcheck.SelfCheck:
    """Find the fastest way of writing about several images that equals the plain one.

    Args:
        model: As in `check_writing`.
        chat: As in `check_writing`.
        collate: As in `check_writing`.
        pad_id: As in `check_writing`.
        way: What `check_writing` found; no faster one is tried.
        model_hash: As in `check_writing`.

    Raises:
        CheckpointError: The family takes one image only, or no way of writing equals the plain one.
    """
    settings = {"way": way, "template": getattr(chat, "template_options", {})}
    return selfcheck.cached_check(
        model,
        SEVERAL,
        model_hash,
        settings,
        LOST,
        lambda: _check_several(model, chat, collate, pad_id, way),
    )


def _check(model: Any, chat: Any, collate: Collate, pad_id: int) -> selfcheck.SelfCheck:
    _, costly = _windows(model)
    alike = longest_alike(model.config.get_text_config())
    not_checked = {}
    if costly:
        not_checked[f"attention beyond {min(costly)} tokens"] = "longer texts run alone"
    if alike is not None:
        not_checked[f"a batch with positions beyond {alike}"] = "longer texts run alone"
    ways, failed = [BATCHED, SINGLE], {}
    if num_selected(model.config.get_text_config()) is not None:
        ways.remove(BATCHED)
        failed[BATCHED] = "its layers select the tokens that they attend to"
    groups = _make_prompts(model, chat)
    found = _choose("writing", ways, groups, model, collate, pad_id, failed, not_checked)
    limits = [*costly, *([] if alike is None else [alike])]
    return replace(found, alone_beyond=min(limits, default=None))


def _check_several(
    model: Any, chat: Any, collate: Collate, pad_id: int, way: str
) -> selfcheck.SelfCheck:
    prompts, refused = _make_prompts_about_several(chat)
    if not any(
        len(request.images) > 1 and name in prompts
        for name, request in requests_about_several().items()
    ):
        raise CheckpointError(
            f"this {model.config.model_type} model takes one image only: {refused}"
        )
    ways = list(dict.fromkeys([way, SINGLE]))
    return _choose(SEVERAL, ways, [prompts], model, collate, pad_id, {}, {})


def _choose(
    kind: str,
    ways: Sequence[str],
    groups: Sequence[Mapping[str, EncodedPrompt]],
    model: Any,
    collate: Collate,
    pad_id: int,
    failed: Mapping[str, str],
    not_checked: Mapping[str, str],
) -> selfcheck.SelfCheck:
    """Compare ways of writing with the plain one, and choose the first that equals it.

    Args:
        kind: What is checked.
        ways: Fastest first.
        groups: Prompts by name, in the batches that they are run in.
        model: As in `check_writing`.
        collate: As in `check_writing`.
        pad_id: As in `check_writing`.
        failed: Faster ways that are not tried, and why.
        not_checked: What is too costly to check, and what is done instead.
    """
    family = model.config.model_type
    names = [name for group in groups for name in group]
    with selfcheck.family_faults(f"cannot write with this {family} model"):
        plain = [
            _run(model, selfcheck.plain_inputs(model, row), pad_id, None)
            for group in groups
            for row in group.values()
        ]
    tokens = [logits_BNV.argmax(dim=-1) for logits_BNV in plain]
    expected = [_likeliest(*pair) for pair in zip(plain, plain, strict=True)]

    def in_batches() -> list[Tensor]:
        found: list[Tensor] = []
        for group in groups:
            forced_BN = torch.cat(tokens[len(found) : len(found) + len(group)])
            found += list(_run(model, collate(list(group.values())), pad_id, forced_BN)[:, None])
        return [_likeliest(*pair) for pair in zip(found, plain, strict=True)]

    def one_at_a_time() -> list[Tensor]:
        rows = [row for group in groups for row in group.values()]
        found = [
            _run(model, collate([row]), pad_id, forced)
            for row, forced in zip(rows, tokens, strict=True)
        ]
        return [_likeliest(*pair) for pair in zip(found, plain, strict=True)]

    # In 16 bits, the shapes of a batch alone make differences of some units of precision.
    tolerance = max(selfcheck.EXACT_TOLERANCE, 4 * torch.finfo(model.dtype).eps)
    if model.dtype == torch.float32:
        tolerance = selfcheck.EXACT_TOLERANCE
    runs: dict[str, selfcheck.Way] = {BATCHED: in_batches, SINGLE: one_at_a_time}
    return selfcheck.choose_way(
        kind,
        {way: runs[way] for way in ways},
        names,
        expected,
        tolerance,
        LOST,
        family,
        failed=failed,
        not_checked=not_checked,
    )


def _windows(model: Any) -> tuple[list[int], list[int]]:
    """Return the declared windows that are checked, and those that are too long for that."""
    most = max_positions(model.config)
    reached = [size for size in windows(model.config.get_text_config()) if size < most]
    longest = min(_LONGEST_WINDOW, most - _ROOM)
    return [size for size in reached if size <= longest], [s for s in reached if s > longest]


def _make_prompts(model: Any, chat: Any) -> list[dict[str, EncodedPrompt]]:
    """Return prompts by name, in the batches that they are run in."""
    lengths, _ = _windows(model)
    texts = [("text 1", _QUESTIONS[0], None), ("text 2", _QUESTIONS[1], None)]
    if lengths:
        text = "star " * (max(lengths) + 16)
        texts.append((f"text longer than {max(lengths)} tokens", text.strip(), None))
    images = [
        (f"image {number}, text {number}", question, image)
        for number, (question, image) in enumerate(
            zip(_QUESTIONS, selfcheck.make_images() if chat.has_vision else (), strict=False), 1
        )
    ]
    groups = []
    for group in (texts, images):
        prompts = {}
        for name, question, image in group:
            try:
                prompts[name] = chat.encode_prompt(
                    [Turn(role="user", content=question)], () if image is None else [image]
                )
            except DataError as error:
                if chat.has_vision and image is None:
                    # Families that always show an image are asked about images only.
                    continue
                raise CheckpointError(
                    f"the model's processor or chat template does not take the probe {name!r}:"
                    f" {error}"
                ) from error
        groups.append(prompts)
    return [group for group in groups if group]


def requests_about_several() -> dict[str, Request]:
    """Return requests by name, to check what a model is shown of several images.

    They have different numbers of images, so that one batch shows how rows are told apart.
    """
    one, two = _QUESTIONS
    first, second, third = (ImageRef(index) for index in range(3))
    shapes = {
        "two images": [Turn(role="user", content=(first, second, one))],
        "three in a text": [Turn(role="user", content=("in ", first, ", ", second, third, two))],
        "an image in each turn": [
            Turn(role="user", content=(first, one)),
            Turn(role="assistant", content="no"),
            Turn(role="user", content=("and ", second, "?")),
        ],
        "one after a text": [Turn(role="user", content=("and this: ", first))],
    }
    one_image, other = selfcheck.make_images()
    images = (one_image, other, one_image.rotate(90, expand=True))
    return {
        name: Request(
            turns=tuple(turns),
            images=images[: len({index for turn in turns for index in turn.image_indices})],
        )
        for name, turns in shapes.items()
    }


def _make_prompts_about_several(chat: Any) -> tuple[dict[str, EncodedPrompt], str]:
    """Return prompts by name, and why the model does not take the first of those it refuses."""
    prompts, refused = {}, ""
    for name, request in requests_about_several().items():
        try:
            prompts[name] = chat.encode_prompt(request.turns, request.images)
        except DataError as error:
            # Prompts of this shape are refused one by one.
            refused = refused or f"{name}: {error}"
    return prompts, refused


def _likeliest(found_NV: Tensor, plain_NV: Tensor) -> Tensor:
    """Return log-probabilities of the tokens that the plain run finds likeliest."""
    _, order_NK = plain_NV.flatten(0, -2).topk(_NUM_COMPARED, dim=-1)
    return found_NV.flatten(0, -2).gather(-1, order_NK).flatten()


@torch.inference_mode()
def _run(model: Any, inputs: dict[str, Any], pad_id: int, forced_BN: Tensor | None) -> Tensor:
    """Generate tokens and return the log-probabilities at each step: (B, N, V), CPU.

    Args:
        model: Its generation config is ignored.
        inputs: Of a batch.
        pad_id: For rows that have ended, which none does here.
        forced_BN: The tokens to write; None writes the likeliest ones.
    """
    hf = import_transformers()
    steps: list[Tensor] = []

    def record(input_ids: Tensor, scores_BV: Tensor) -> Tensor:
        at = len(steps)
        steps.append(scores_BV.float().log_softmax(dim=-1).cpu())
        if forced_BN is None:
            return scores_BV
        wanted_B1 = forced_BN[:, at : at + 1].to(scores_BV.device)
        return torch.full_like(scores_BV, -torch.inf).scatter(-1, wanted_B1, 0.0)

    model.generation_config = hf.GenerationConfig()
    model.generate(
        **inputs,
        max_new_tokens=_NUM_STEPS,
        do_sample=False,
        pad_token_id=pad_id,
        logits_processor=hf.LogitsProcessorList([record]),
    )
    if not steps:
        raise CheckpointError(
            f"the generate of this {model.config.model_type} model calls no logits processor, so"
            " what it writes can be neither checked nor sampled; score or train it, or use another"
            " family"
        )
    return torch.stack(steps, dim=1)
