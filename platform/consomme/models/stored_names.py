"""What transformers makes of the names of stored tensors when it opens a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from consomme.models.imports import import_transformers


def open_places(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Return where stored tensors go in an open model; those that are merged go to one place.

    Args:
        model: Returned by `open_model`, or without weights by `build_from_config`.
        names: In a folder's safetensors files.
    """
    parameters = dict(model.named_parameters())
    return {name: place for name, place, _ in renamed(model, names, parameters)}


def renamed(
    model: Any, names: Iterable[str], parameters: Mapping[str, Tensor]
) -> Iterator[tuple[str, str, bool]]:
    """Yield stored names, those that transformers makes of them, and whether it merges some."""
    import_transformers()
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    for name in names:
        place, merged_by = name, None
        if name not in parameters:
            place, merged_by = rename_source_key(
                name, renamings, converters, model.base_model_prefix, parameters
            )
        yield name, place, merged_by is not None
