"""Run a model's whole `forward`, but compute logits at chosen positions only.

What a family does with its logits (soft caps, scales, multipliers) stands at the end of its
`forward`, so that end is never replaced: a hook selects positions from the input of the output
embedding, and everything else runs as it is. Where many positions are asked for, the end runs
again for each chunk of them, so memory is bounded.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Shapes: B rows, T token positions, S chosen positions of all rows, V vocabulary, W width.


class PositionLogits:
    """Computes the logits of one model at chosen positions."""

    def __init__(self, model: Any, max_positions: int) -> None:
        """Find the output embedding and the module before it.

        Args:
            model: A generative transformers model in eval mode.
            max_positions: Logits that are held at once, in positions.
        """
        self.model, self.max_positions = model, max_positions
        self._head: nn.Module | None = model.get_output_embeddings()
        base = model.base_model
        self._base: nn.Module | None = None if base is model else base
        self._options = (
            {"use_cache": False}
            if "use_cache" in inspect.signature(model.forward).parameters
            else {}
        )

    def __call__(
        self, inputs: Mapping[str, Any], rows_S: Tensor, positions_S: Tensor
    ) -> Iterator[Tensor]:
        """Yield the logits of chosen positions, a chunk (positions, V) at a time.

        Args:
            inputs: Of `forward`, with `input_ids` (B, T).
            rows_S: Row of each position.
            positions_S: Position in the row.
        """
        size = len(rows_S) if self._base is None else min(self.max_positions, len(rows_S))
        shape_BT = inputs["input_ids"].shape
        outputs: list[Any] = []
        selected: list[int] = []

        def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            (hidden_BTW,) = args
            if hidden_BTW.shape[:2] != shape_BT:
                raise ValueError(
                    f"the output embedding gets {tuple(hidden_BTW.shape)} for input_ids"
                    f" {tuple(shape_BT)}"
                )
            selected.append(size)
            return (hidden_BTW[rows_S[:size], positions_S[:size]][None],)

        def keep(_: nn.Module, __: Any, output: Any) -> None:
            outputs.append(output)

        handles = [] if self._head is None else [self._head.register_forward_pre_hook(select)]
        if self._base is not None and size < len(rows_S):
            handles.append(self._base.register_forward_hook(keep))
        try:
            logits = self.model(**inputs, **self._options).logits
        finally:
            for handle in handles:
                handle.remove()
        if not selected:
            # The family does not call its output embedding as a module.
            yield logits[rows_S, positions_S]
            return
        yield _only_row(logits, size)
        del logits
        if size < len(rows_S):
            hidden_SW = outputs[0].last_hidden_state[rows_S[size:], positions_S[size:]]
            for hidden in torch.split(hidden_SW, size):
                yield self._end_of_forward(outputs[0], hidden[None])

    def _end_of_forward(self, output: Any, hidden_1SW: Tensor) -> Tensor:
        """Return the logits (positions, V) of outputs of the module before the end."""
        assert self._base is not None
        some = copy.copy(output)
        some.last_hidden_state = hidden_1SW
        # An attribute of the module goes before the method of its class.
        # An attribute goes before the method of the class; others may have set one.
        before = self._base.__dict__.get("forward")
        self._base.forward = lambda *_, **__: some
        size = hidden_1SW.shape[1]
        ids = torch.zeros((1, size), dtype=torch.long, device=hidden_1SW.device)
        try:
            logits = self.model(input_ids=ids, **self._options).logits
        finally:
            del self._base.forward
            if before is not None:
                self._base.forward = before
        return _only_row(logits, size)


def _only_row(logits_1SV: Tensor, size: int) -> Tensor:
    if logits_1SV.dim() != 3 or logits_1SV.shape[:2] != (1, size):
        raise ValueError(f"found logits {tuple(logits_1SV.shape)}, expected (1, {size}, V)")
    return logits_1SV[0]
