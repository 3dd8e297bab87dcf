"""Find the parts of a model, and the layers of its language model, by structure.

Parts are found by how modules are connected, never by what a family calls them, so freezing, layer
selection, soups and pruning all mean the same layers. The module that holds the input embeddings is
the language model; a module with a convolution is the vision encoder; what is between them is the
projector.
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
    """The parts of one model; every parameter is in exactly one of them."""

    vision_encoder: Named = field(default_factory=dict)
    """Empty for a model without a vision encoder."""

    projector: Named = field(default_factory=dict)
    """Everything between vision encoder and language model: linear maps, resamplers, learned
    separators."""

    layers: tuple[Named, ...]
    """The language model's layers, in order."""

    embeddings: Named
    """The matrix of the input tokens; if the head shares it, it is here."""

    head: Named
    """The final norm, and the matrix of the output tokens unless it is the input's."""

    layers_path: str
    """Name of the `nn.ModuleList` of layers in the model."""

    is_tied: bool
    """Whether input and output tokens share one matrix."""


def anatomy(model: Any) -> Anatomy:
    """Assign every parameter of a model to a part, without changing the model.

    Args:
        model: A generative transformers model, with or without a vision encoder.

    Raises:
        CheckpointError: It has no stack of layers beside its input embeddings.
    """
    embedding = _call_getter(model, "get_input_embeddings")
    output = _call_getter(model, "get_output_embeddings")
    paths = {id(module): name for name, module in model.named_modules()}
    if embedding is None or id(embedding) not in paths:
        raise _unknown_structure(model)
    text_path = paths[id(embedding)].rpartition(".")[0]
    stack = _longest_stack(model.get_submodule(text_path))
    if stack is None:
        raise _unknown_structure(model)
    layers_path = paths[id(stack)]
    parts: dict[str, dict[str, nn.Parameter]] = {
        "vision": {},
        "projector": {},
        "language": {},
        "head": {},
    }
    for name, parameter in model.named_parameters():
        part = "language"
        if not _is_under(name, text_path):
            path = _diverging_module(name, text_path)
            module = model.get_submodule(path) if path else None
            if module is not None and module is output:
                part = "head"
            elif module is not None and _has_convolution(module):
                part = "vision"
            else:
                part = "projector"
        parts[part][name] = parameter
    if parts["vision"] and not parts["projector"]:
        _split_off_projector(model, parts, embedding.weight.shape[1])
    embedding_ids = {id(parameter) for parameter in embedding.parameters()}
    language = parts["language"]
    layers = tuple(
        {name: p for name, p in language.items() if _is_under(name, f"{layers_path}.{index}")}
        for index in range(len(stack))
    )
    in_layers = {name for layer in layers for name in layer}
    embeddings = {name: p for name, p in language.items() if id(p) in embedding_ids}
    rest = {n: p for n, p in language.items() if n not in in_layers and n not in embeddings}
    return Anatomy(
        vision_encoder=parts["vision"],
        projector=parts["projector"] if parts["vision"] else {},
        layers=layers,
        embeddings=embeddings,
        head=rest | parts["head"] | ({} if parts["vision"] else parts["projector"]),
        layers_path=layers_path,
        is_tied=output is not None and id(getattr(output, "weight", None)) in embedding_ids,
    )


def _call_getter(model: Any, getter: str) -> Any:
    """Call a getter of transformers' models; None if the model does not have it."""
    get = getattr(model, getter, None)
    return get() if get else None


def _longest_stack(module: nn.Module) -> nn.ModuleList | None:
    """Return the direct child that is a `nn.ModuleList` with the most modules."""
    stacks = [child for child in module.children() if isinstance(child, nn.ModuleList)]
    return max(stacks, key=len, default=None)


def _has_convolution(module: nn.Module) -> bool:
    """Return whether a module takes pixels: patch embeddings are convolutions in every family."""
    return any(isinstance(part, (nn.Conv2d, nn.Conv3d)) for part in module.modules())


def _is_under(name: str, path: str) -> bool:
    return not path or name.startswith(f"{path}.")


def _diverging_module(name: str, path: str) -> str:
    """Return the first module of `name` that is not on `path`; empty if `name` ends there."""
    shared = []
    own, other = name.split("."), path.split(".")
    for part, other_part in zip(own, other, strict=False):
        if part != other_part:
            break
        shared.append(part)
    module = own[: len(shared) + 1]
    return "" if len(module) == len(own) else ".".join(module)


def _split_off_projector(model: Any, parts: dict[str, dict[str, nn.Parameter]], width: int) -> None:
    """Find the projector of families that keep it inside their vision encoder, as Qwen's do.

    It is the child that outputs vectors of the language model's width, and is neither the stack of
    blocks nor the patch embedding.
    """
    for path in dict.fromkeys(_roots(model, parts["vision"])):
        encoder = model.get_submodule(path)
        blocks = _longest_stack(encoder)
        for child_name, child in encoder.named_children():
            if child is blocks or _has_convolution(child) or not _outputs_width(child, width):
                continue
            for name in [n for n in parts["vision"] if _is_under(n, f"{path}.{child_name}")]:
                parts["projector"][name] = parts["vision"].pop(name)


def _roots(model: Any, named: Named) -> Iterator[str]:
    """Yield the outermost modules that hold only these parameters."""
    ids = {id(parameter) for parameter in named.values()}
    for name in named:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            path = ".".join(parts[:depth])
            module = model.get_submodule(path)
            if all(id(parameter) in ids for parameter in module.parameters()):
                yield path
                break


def _outputs_width(module: nn.Module, width: int) -> bool:
    return any(isinstance(p, nn.Linear) and p.out_features == width for p in module.modules())


def _unknown_structure(model: Any) -> CheckpointError:
    return CheckpointError(
        f"cannot find the parts of a {type(model).__name__}: expected a stack of layers"
        " (nn.ModuleList) beside the matrix of its input tokens"
    )
