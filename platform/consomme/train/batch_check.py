"""Compare packed and padded rows with plain forward passes, when a model is opened for training.

The loss of a step is a sum over labelled tokens, so it is right if each token has the nats that it
has in its own unpadded sample. The check runs before the model is sharded, in eval mode, because a
random dropout could not be compared.

Samples of several images, and of none among those with one, are compared as well. What makes a
difference there only is done for these samples only: they run alone, or are refused.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from consomme.base.errors import CheckpointError, DataError
from consomme.models import selfcheck
from consomme.models.attention import (
    PackingMasks,
    longest_alike,
    max_positions,
    num_selected,
    windows,
)
from consomme.models.batches import Batcher, map_tensors
from consomme.models.encoded import EncodedChat
from consomme.train.filler import AFTER, OWN_PASS, OWN_ROW, make_filler
from consomme.train.loop import Batch, labelled_logits
from consomme.train.modes import set_modes
from consomme.train.packing import RowLayout

# Shapes: B rows, S labelled tokens.

PACKED, PADDED, SINGLE = "packed rows", "padded rows", "one row at a time"

LOST: Mapping[str, str] = {
    PACKED: "samples do not share a row, so pack_tokens packs nothing",
    PADDED: "samples do not share a forward pass, so micro_batch is 1",
}
"""What is lost if a way cannot be used."""

LOST_BY_SEVERAL: Mapping[str, str] = dict.fromkeys(
    (PACKED, PADDED), "samples of several images have a pass of their own"
)

LONGEST_CHECKED = {"cpu": 2048, "cuda": 32_768}
"""By type of device: attention beyond a larger window would cost too much to check."""

_ROOM = 64
"""Positions that a probe may take beyond a window."""


def check_batches(
    model: Any, chat: Any, batcher: Batcher, *, packs: bool, model_hash: str | None = None
) -> selfcheck.SelfCheck:
    """Find the fastest way of making rows whose tokens have the nats of plain forward passes.

    Args:
        model: On the device of the check; with adapters or without. Its mode is restored.
        chat: Its encoder of conversations.
        batcher: Makes its batches.
        packs: Whether packed rows are wanted.
        model_hash: Of the model's content; the result is cached under it. None checks every time.

    Raises:
        CheckpointError: The model cannot be trained on plain conversations, or no way of making
            rows has the numbers of its plain forward pass.
    """
    settings = {"packs": packs, "template": getattr(chat, "template_options", {})}
    return selfcheck.cached_check(
        model,
        "training",
        model_hash,
        settings,
        LOST,
        lambda: _check(model, chat, batcher, packs=packs),
    )


def _check(model: Any, chat: Any, batcher: Batcher, *, packs: bool) -> selfcheck.SelfCheck:
    _, costly = _windows(model)
    alike = longest_alike(model.config.get_text_config())
    not_checked = {}
    if costly:
        not_checked[f"attention beyond {min(costly)} tokens"] = "longer samples run alone"
    selected = num_selected(model.config.get_text_config())
    if selected is not None:
        not_checked[f"attention to {selected} chosen tokens"] = "longer samples run alone"
    if alike is not None:
        not_checked[f"a batch with positions beyond {alike}"] = "longer samples run alone"
    family = model.config.model_type
    with _undisturbed(model):
        with selfcheck.family_faults(f"cannot train this {family} model"):
            rows, long = _encode(model, chat)
        with selfcheck.family_faults(f"the plain forward pass of this {family} model fails"):
            encoded = list(rows.values())
            plain = [selfcheck.plain_nll(model, row) for row in encoded]
            tolerance = selfcheck.find_tolerance(model, encoded, plain)
            selfcheck.check_causal(model, encoded, plain)
        probes = _Probes(model, batcher, rows, plain, long)
        not_tried = {}
        ways: dict[str, selfcheck.Way] = {PADDED: probes.padded, SINGLE: probes.single}
        if packs and isinstance(batcher.packing, str):
            not_tried[PACKED] = batcher.packing
        elif packs:
            ways = {PACKED: probes.packed, **ways}
        found = selfcheck.choose_way(
            "training",
            ways,
            list(rows),
            plain,
            tolerance,
            LOST,
            family,
            failed=not_tried,
            not_checked=not_checked,
        )
        if chat.has_vision:
            found = _check_several(model, chat, batcher, found)
            found = _check_filler(model, chat, batcher, probes, found)
        probes.run_in_training_mode(found.way)
    limits = [*costly, *(size for size in (alike, selected) if size is not None)]
    return replace(found, alone_beyond=min(limits, default=None))


def _check_several(
    model: Any, chat: Any, batcher: Batcher, found: selfcheck.SelfCheck
) -> selfcheck.SelfCheck:
    """Find out how samples of several images run, beside others as was found for these."""
    family = model.config.model_type
    rows = {}
    for probe in selfcheck.make_image_probes():
        # What a family's encoder refuses, it refuses of a sample too.
        with contextlib.suppress(DataError):
            rows[probe.name] = chat.encode(probe.turns, probe.images)
    if not any(name.startswith("two") for name in rows):
        return found
    with contextlib.suppress(DataError):
        text = selfcheck.make_probes(has_vision=False)[0]
        rows[text.name] = chat.encode(text.turns, ())
    try:
        with selfcheck.family_faults(f"this {family} model cannot run two images"):
            plain = [selfcheck.plain_nll(model, row) for row in rows.values()]
        probes = _Probes(model, batcher, rows, plain)
        every = {PACKED: probes.packed, PADDED: probes.padded, SINGLE: probes.single}
        checked = selfcheck.choose_way(
            "training on several images",
            {way: every[way] for way in dict.fromkeys((found.way, SINGLE))},
            list(rows),
            plain,
            found.tolerance,
            LOST_BY_SEVERAL,
            family,
        )
    except CheckpointError as error:
        reason = f"this model cannot be trained on several images: {error}"
        return replace(found, several_refused=reason)
    return replace(
        found,
        several_alone=checked.way != found.way,
        difference=max(found.difference, checked.difference),
        num_probes=found.num_probes + len(rows),
    )


def _check_filler(
    model: Any, chat: Any, batcher: Batcher, probes: _Probes, found: selfcheck.SelfCheck
) -> selfcheck.SelfCheck:
    """Find out how samples without an image get one, for passes that need it."""
    texts = {
        name: (row, plain_S)
        for (name, row), plain_S in zip(probes.rows.items(), probes.plain, strict=True)
        if row.pixels is None and name != probes.long
    }
    if not texts:
        return replace(found, filler_way=AFTER)
    rows = [row for row, _ in texts.values()]
    groups = [[row] for row in rows] if found.way == SINGLE else [rows]

    def filled(way: str) -> list[Tensor]:
        filler = make_filler(chat, model.config, way)
        assert filler is not None
        return [
            nll_S
            for group in groups
            for nll_S in probes.run(batcher.collate(filler.added_to(group)), group)
        ]

    ways = [AFTER, *([] if found.way == SINGLE else [OWN_ROW]), OWN_PASS]
    checked = selfcheck.choose_way(
        "training without images",
        {way: functools.partial(filled, way) for way in ways},
        list(texts),
        [plain_S for _, plain_S in texts.values()],
        found.tolerance,
        {},
        model.config.model_type,
        is_quiet=True,
    )
    return replace(
        found, filler_way=checked.way, difference=max(found.difference, checked.difference)
    )


def row_layout(
    check: selfcheck.SelfCheck, batcher: Batcher, *, micro_batch: int, pack_tokens: int | None
) -> RowLayout:
    """Return how samples become rows.

    Args:
        check: From `check_batches`.
        batcher: Makes the batches.
        micro_batch: Of the recipe.
        pack_tokens: Of the recipe; ignored if samples cannot be packed.
    """
    has_text_passes = check.filler_way == OWN_PASS
    if check.way == SINGLE:
        return RowLayout(micro_batch=1, has_text_passes=has_text_passes)
    masks = batcher.packing
    if check.way != PACKED or pack_tokens is None or isinstance(masks, str):
        return RowLayout(
            micro_batch=micro_batch,
            alone_beyond=check.alone_beyond,
            several_alone=check.several_alone,
            has_text_passes=has_text_passes,
        )
    limits = [size for size in (check.alone_beyond, masks.max_tokens) if size is not None]
    return RowLayout(
        micro_batch=micro_batch,
        pack_tokens=min(pack_tokens, masks.max_row or pack_tokens),
        alone_beyond=min(limits, default=None),
        several_alone=check.several_alone,
        has_text_passes=has_text_passes,
    )


@contextlib.contextmanager
def on_device(model: Any, device: torch.device) -> Iterator[None]:
    """Move a model to a GPU for a while, if it has room there."""
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    if device.type == "cpu" or 1.5 * num_bytes > torch.cuda.mem_get_info(device)[0]:
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")
        torch.cuda.empty_cache()


def _windows(model: Any) -> tuple[list[int], list[int]]:
    """Return the declared windows that are checked, and those that are too long for that."""
    text = model.config.get_text_config()
    most = max_positions(model.config)
    reached = [size for size in windows(text) if size < most]
    longest = min(LONGEST_CHECKED["cuda" if model.device.type == "cuda" else "cpu"], most - _ROOM)
    return [size for size in reached if size <= longest], [s for s in reached if s > longest]


def _encode(model: Any, chat: Any) -> tuple[dict[str, EncodedChat], str | None]:
    """Encode the probes, by name; also returns the name of one that is longer than all windows."""
    probes = selfcheck.make_probes(has_vision=chat.has_vision)
    checked, _ = _windows(model)
    rows = {}
    for probe in probes:
        try:
            rows[probe.name] = chat.encode(probe.turns, probe.images)
        except DataError as error:
            if chat.has_vision and not probe.images:
                # Some families take no conversation without an image.
                continue
            raise CheckpointError(
                f"the model's own processor or chat template does not take the probe"
                f" {probe.name!r}: {error}; no sample could be encoded, so change"
                " chat_template.jinja or the processor's settings beside the model"
            ) from error
    if not checked:
        return rows, None
    images = () if "text 1" in rows else probes[-1].images
    probe = selfcheck.make_long_probe(chat, max(checked), images)
    rows[probe.name] = chat.encode(probe.turns, probe.images)
    return rows, probe.name


@contextlib.contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Put a model into eval mode; restore its modes and the random numbers afterwards."""
    modes = {module: module.training for module in model.modules()}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


class _Probes:
    """Probe conversations of one model, and their nats in each way."""

    def __init__(
        self,
        model: Any,
        batcher: Batcher,
        rows: dict[str, EncodedChat],
        plain: list[Tensor],
        long: str | None = None,
    ) -> None:
        """Keep the probes.

        Args:
            model: In eval mode.
            batcher: Makes its batches.
            rows: The encoded probes by name.
            plain: The nats of each by the model's plain forward pass.
            long: Name of one that is longer than all windows.
        """
        self.model, self.batcher = model, batcher
        self.rows, self.plain, self.long = rows, plain, long

    def padded(self) -> list[Tensor]:
        """Run all rows in one batch, but the long one with one other, or all would be as long."""
        rows = [row for name, row in self.rows.items() if name != self.long]
        nlls = self.run(self.batcher.collate(rows), rows)
        if self.long is not None:
            pair = [self.rows[self.long], min(rows, key=lambda row: len(row.input_ids))]
            nlls.append(self.run(self.batcher.collate(pair), pair)[0])
        return nlls

    def packed(self) -> list[Tensor]:
        """Run all rows as one; what is packed is also padded, such as when it is evaluated."""
        masks = self.batcher.packing
        assert isinstance(masks, PackingMasks)
        rows = list(self.rows.values())
        longest = masks.max_tokens or max(len(row.input_ids) for row in rows)
        together = [row for row in rows if len(row.input_ids) <= longest]
        padded = self.padded()
        nlls = iter(self.run(self.batcher.pack(together), together))
        return [
            max(
                (padded_S, next(nlls)) if len(row.input_ids) <= longest else (padded_S,),
                key=lambda nll_S: selfcheck.relative_difference(nll_S, plain_S),
            )
            for row, padded_S, plain_S in zip(rows, padded, self.plain, strict=True)
        ]

    def single(self) -> list[Tensor]:
        """Run each row alone."""
        rows = self.rows.values()
        return [nll_S for row in rows for nll_S in self.run(self.batcher.collate([row]), [row])]

    def run_in_training_mode(self, way: str) -> None:
        """Run a batch as training does, dropout included, so that a fault stops it here."""
        every = list(self.rows.values())
        rows = [row for row in every if row.pixels is not None] or every
        rows = rows[: 1 if way == SINGLE else 2]
        batch = self.batcher.pack(rows) if way == PACKED else self.batcher.collate(rows)
        family = self.model.config.model_type
        with selfcheck.family_faults(f"this {family} model cannot run in training mode"):
            set_modes(self.model)
            self.run(batch, rows)

    @torch.no_grad()
    def run(self, batch: Batch, rows: Sequence[EncodedChat]) -> list[Tensor]:
        """Return the nats of the labelled tokens of each row of a batch, (S,) on the CPU.

        Args:
            batch: Made of the rows.
            rows: In order; what the batch has besides is not labelled.
        """
        moved = map_tensors(batch, lambda value: value.to(self.model.device))
        nll_S = cross_entropy(*labelled_logits(self.model, moved), reduction="none").cpu()
        return list(torch.split(nll_S, [row.num_tokens for row in rows]))
