"""Run a model as if some of its layers were not there, without changing it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from consomme.models.anatomy import language_model


@contextlib.contextmanager
def skipped(model: Any, layers: Sequence[int]) -> Iterator[None]:
    """Let layers return what they are given, while the block runs.

    They run all the same, and what they make is thrown away: so it works for layers of any form. A
    cache of keys and values must not be used meanwhile.

    Args:
        model: An open model.
        layers: 0-based indices.
    """
    stack = model.get_submodule(language_model(model).layers_path)
    hooks = [stack[k].register_forward_hook(_pass_through, with_kwargs=True) for k in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _pass_through(module: Any, inputs: Any, named: Any, output: Any) -> Any:
    given = layer_input(inputs, named)
    return (given, *output[1:]) if isinstance(output, tuple) else given


def layer_input(inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """Return the hidden states that a layer was given."""
    found: Tensor = inputs[0] if inputs else named["hidden_states"]
    return found
