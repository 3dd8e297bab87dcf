"""Find the parts of a model, and the layers of its language model, by structure.

One decision is made here: parts are found by how modules hang together, never by what a family
calls them, so freezing, layer selection, soups and pruning all speak of the same layers. Where the
words go in is the language model; what looks at pixels holds a convolution; what stands between
them is the projector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from consomme.base.errors import CheckpointError

Named = Mapping[str, nn.Parameter]
"""Parameters by the names they have in the whole model."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Where the parts of one model are; every parameter is in exactly one of them."""

    vision_encoder: Named = field(default_factory=dict)
    """Empty for a model without eyes."""

    projector: Named = field(default_factory=dict)
    """All that stands between pixels and words: maps, resamplers, learned separators."""

    layers: tuple[Named, ...]
    """The language model's layers, in order."""

    embeddings: Named
    """The matrix of the input tokens; where it is the head's too, it is here."""

    head: Named
    """The final norm, and the matrix of the output tokens if it is one of its own."""

    layers_path: str
    """Name of the stack of layers in the model."""

    is_tied: bool
    """Whether input and output tokens share one matrix."""


def anatomy(model: Any) -> Anatomy:
    """Take a model apart, without changing it.

    Args:
        model: A transformers model that writes, with eyes or without.

    Raises:
        CheckpointError: It has no stack of layers beside the matrix of its input tokens.
    """
    embedding = _of(model, "get_input_embeddings")
    output = _of(model, "get_output_embeddings")
    paths = {id(module): name for name, module in model.named_modules()}
    if embedding is None or id(embedding) not in paths:
        raise _strange(model)
    text_path = paths[id(embedding)].rpartition(".")[0]
    stack = _longest(model.get_submodule(text_path))
    if stack is None:
        raise _strange(model)
    layers_path = paths[id(stack)]
    places: dict[str, dict[str, nn.Parameter]] = {"eyes": {}, "between": {}, "words": {}, "out": {}}
    for name, parameter in model.named_parameters():
        place = "words"
        if not _is_under(name, text_path):
            branch = _branch(name, text_path)
            module = model.get_submodule(branch) if branch else None
            if module is not None and module is output:
                place = "out"
            else:
                place = "eyes" if module is not None and _looks(module) else "between"
        places[place][name] = parameter
    if places["eyes"] and not places["between"]:
        _take_merger(model, places, embedding.weight.shape[1])
    own = {id(parameter) for parameter in embedding.parameters()}
    words = places["words"]
    layers = tuple(
        {name: p for name, p in words.items() if _is_under(name, f"{layers_path}.{index}")}
        for index in range(len(stack))
    )
    in_layers = {name for layer in layers for name in layer}
    embeddings = {name: p for name, p in words.items() if id(p) in own}
    rest = {n: p for n, p in words.items() if n not in in_layers and n not in embeddings}
    return Anatomy(
        vision_encoder=places["eyes"],
        projector=places["between"] if places["eyes"] else {},
        layers=layers,
        embeddings=embeddings,
        head=rest | places["out"] | ({} if places["eyes"] else places["between"]),
        layers_path=layers_path,
        is_tied=output is not None and id(getattr(output, "weight", None)) in own,
    )


def _of(model: Any, getter: str) -> Any:
    """What a transformers model says of itself; None if it is none."""
    get = getattr(model, getter, None)
    return get() if get else None


def _longest(module: nn.Module) -> nn.ModuleList | None:
    """The stack with the most modules right inside a module."""
    stacks = [child for child in module.children() if isinstance(child, nn.ModuleList)]
    return max(stacks, key=len, default=None)


def _looks(module: nn.Module) -> bool:
    """Whether a module takes pixels: whatever cuts a picture into patches convolves it."""
    return any(isinstance(part, (nn.Conv2d, nn.Conv3d)) for part in module.modules())


def _is_under(name: str, path: str) -> bool:
    return not path or name.startswith(f"{path}.")


def _branch(name: str, path: str) -> str:
    """Where a name leaves a path: the module it goes to; empty if that is a parameter by itself."""
    shared = []
    own, other = name.split("."), path.split(".")
    for mine, its in zip(own, other, strict=False):
        if mine != its:
            break
        shared.append(mine)
    branch = own[: len(shared) + 1]
    return "" if len(branch) == len(own) else ".".join(branch)


def _take_merger(model: Any, places: dict[str, dict[str, nn.Parameter]], width: int) -> None:
    """Find the projector of families that keep it in their vision encoder, as Qwen's do.

    There it is what makes vectors as wide as the language model's, and is neither the stack of
    blocks nor what cuts the picture into patches.
    """
    for path in dict.fromkeys(_roots(model, places["eyes"])):
        eyes = model.get_submodule(path)
        blocks = _longest(eyes)
        for child_name, child in eyes.named_children():
            if child is blocks or _looks(child) or not _makes(child, width):
                continue
            for name in [n for n in places["eyes"] if _is_under(n, f"{path}.{child_name}")]:
                places["between"][name] = places["eyes"].pop(name)


def _roots(model: Any, named: Named) -> Iterator[str]:
    """The outermost modules that hold only these parameters."""
    ids = {id(parameter) for parameter in named.values()}
    for name in named:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            path = ".".join(parts[:depth])
            module = model.get_submodule(path)
            if all(id(parameter) in ids for parameter in module.parameters()):
                yield path
                break


def _makes(module: nn.Module, width: int) -> bool:
    return any(isinstance(p, nn.Linear) and p.out_features == width for p in module.modules())


def _strange(model: Any) -> CheckpointError:
    return CheckpointError(
        f"{type(model).__name__} is no model whose parts consomme can find: expected a stack of"
        " layers (nn.ModuleList) beside the matrix of its input tokens"
    )
