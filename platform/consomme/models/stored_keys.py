"""Tell which stored tensors belong to which layer of the language model, by their names alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from consomme.base.errors import CheckpointError
from consomme.models.anatomy import language_model
from consomme.models.imports import import_transformers


@dataclass(frozen=True, kw_only=True)
class LayerKeys:
    """The stored names of the tensors of a language model's layers."""

    prefix: str
    """What stands before the number of the layer, with its dot."""

    layer_of: dict[str, int]
    """Number of the layer by stored name. Layers beyond the model's own, such as those that predict
    further tokens and that transformers does not load, are among them."""

    def renamed(self, name: str, layer: int) -> str:
        """Return the name that a tensor has in another layer."""
        rest = name.removeprefix(self.prefix).partition(".")[2]
        return f"{self.prefix}{layer}.{rest}"


def layer_keys(model: Any, names: Iterable[str]) -> LayerKeys:
    """Find the tensors of layers among the names of a model folder's tensors.

    Args:
        model: Built from the folder's config; its weights do not matter, they may be on `meta`.
        names: Of the stored tensors, of any version of the format.

    Raises:
        CheckpointError: The names do not show which layer a tensor belongs to.
    """
    names = list(names)
    layers = language_model(model).layers_path
    targets = stored_targets(model, names)
    common: set[str] | None = None
    for name in names:
        target = targets[name]
        if not target.startswith(f"{layers}."):
            continue
        number = target.removeprefix(f"{layers}.").partition(".")[0]
        steps = name.split(".")
        places = {
            ".".join([*steps[:k], ""]) for k, step in enumerate(steps) if step == number and k
        }
        common = places if common is None else common & places
    if not common:
        raise CheckpointError(
            f"cannot tell the layers of a {type(model).__name__} by the names of its stored"
            f" tensors; expected names with the number of the layer, as {layers}.0.…; open the"
            " model with transformers and save it again"
        )
    prefix = min(common, key=len)
    found = {}
    for name in names:
        number = name.removeprefix(prefix).partition(".")[0]
        if name.startswith(prefix) and number.isdecimal():
            found[name] = int(number)
    return LayerKeys(prefix=prefix, layer_of=found)


def stored_targets(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Return the names under which an open model holds stored tensors, merged ones included."""
    import_transformers()
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    found = {}
    for name in names:
        found[name] = name
        if name not in parameters:
            found[name], _ = rename_source_key(
                name, renamings, converters, model.base_model_prefix, parameters
            )
    return found
