"""Mark which parameters of a model are trained: parts, and layers of the language model.

Nothing is ignored silently: if something that the recipe asks for cannot be trained, the run stops
with an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from consomme.base.errors import RecipeError
from consomme.models.anatomy import Anatomy, anatomy, language_model, name_parts
from consomme.train.parts import (
    EMBEDDINGS,
    FROZEN,
    HEAD,
    LANGUAGE_MODEL,
    PROJECTOR,
    VISION_ENCODER,
    ParamGroup,
    Part,
    Trainability,
    TrainableRow,
    Trained,
)


def set_trainable(
    model: Any,
    trainability: Trainability,
    layers: Sequence[int],
    *,
    lr: float,
    weight_decay: float = 0.0,
) -> Trained:
    """Mark every parameter as trained or frozen, and add adapters where the recipe asks for them.

    Args:
        model: A VLM or a language model, without adapters.
        trainability: How each part is trained.
        layers: 0-based indices of the language model's layers that are trained.
        lr: Peak learning rate of parts that do not set their own.
        weight_decay: Of matrices of parts that do not set their own; vectors never decay.

    Raises:
        RecipeError: Nothing would be trained; a layer or a part does not exist; or a state does
            not fit a part.
        CheckpointError: The model's parts cannot be told, or a module of `trainability.modules`
            does not exist.
    """
    name_parts(model, trainability.modules)
    found = anatomy(model)
    chosen = _chosen_layers(found, layers)
    parts = trainability.resolved(is_whole=len(chosen) == len(found.layers))
    _check(found, parts, chosen)
    marked = [
        *((name, None, parts[name], getattr(found, name)) for name in (VISION_ENCODER, PROJECTOR)),
        *(
            (LANGUAGE_MODEL, index, parts[LANGUAGE_MODEL] if index in chosen else FROZEN, layer)
            for index, layer in enumerate(found.layers)
        ),
        *((name, None, parts[name], getattr(found, name)) for name in (EMBEDDINGS, HEAD)),
        *((name, None, FROZEN, named) for name, named in found.sides.items()),
    ]
    for _, _, part, named in marked:
        for parameter in named.values():
            parameter.requires_grad_(part.state == "full")
    adapters = _add_adapters(model, marked)
    rows, groups = [], []
    for name, index, part, named in marked:
        trained = dict(named) if part.state == "full" else _adapters_of(adapters, named)
        rate = lr if part.lr is None else part.lr
        decay = weight_decay if part.weight_decay is None else part.weight_decay
        rows.append(
            TrainableRow(
                part=name,
                layer=index,
                state=part.state,
                num_tensors=len(trained),
                num_trained=sum(p.numel() for p in trained.values()),
                num_parameters=sum(p.numel() for p in named.values()),
                lr=rate if trained else None,
                num_without_adapters=sum(p.numel() for p in _skipped(model, part, named)),
            )
        )
        for is_matrix in (True, False):
            some = tuple(n for n, p in trained.items() if (p.ndim >= 2) == is_matrix)
            if some:
                groups.append(
                    ParamGroup(names=some, lr=rate, weight_decay=decay if is_matrix else 0.0)
                )
    _warn_of_experts(model, marked)
    _check_marks(model, marked, {name for group in groups for name in group.names})
    return Trained(
        rows=tuple(rows),
        groups=tuple(groups),
        lowest_layer=_lowest(parts, chosen),
        adapters=tuple(dict.fromkeys(name for name, _, part, _ in marked if part.has_adapters)),
    )


logger = logging.getLogger(__name__)

_TrainedPart = tuple[str, int | None, Part, Mapping[str, nn.Parameter]]
"""Name of a part, a layer's index or None, how it is trained, and its parameters."""


def _adapters_of(adapters: Mapping[str, nn.Parameter], named: Mapping[str, nn.Parameter]) -> Any:
    """Return the adapters of the modules that some parameters belong to."""
    module_paths = {name.rpartition(".")[0] for name in named}
    return {name: p for name, p in adapters.items() if name.partition(".lora_")[0] in module_paths}


def _skipped(model: nn.Module, part: Part, named: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
    """Return the matrices of a part with adapters that have none."""
    if not part.has_adapters:
        return []
    # The names are those from before adapters were added; only linear layers got some.
    return [
        parameter
        for name, parameter in named.items()
        if parameter.ndim >= 2 and not _has_adapters(model, name.rpartition(".")[0])
    ]


def _has_adapters(model: nn.Module, path: str) -> bool:
    return hasattr(model.get_submodule(path), "base_layer")


def _warn_of_experts(model: nn.Module, marked: Sequence[_TrainedPart]) -> None:
    """Warn of experts without adapters: several matrices in one tensor, and not a linear layer."""
    skipped = {
        name: parameter
        for kind, _, part, named in marked
        for name, parameter in named.items()
        if kind == LANGUAGE_MODEL
        and part.has_adapters
        and parameter.ndim == 3
        and _is_experts(model, name)
    }
    if skipped:
        logger.warning(
            "%d tensors of experts, %s parameters, get no adapters and stay as they are, such as"
            " %s: adapters are added to linear layers only; state=full trains them",
            len(skipped),
            f"{sum(parameter.numel() for parameter in skipped.values()):,}",
            next(iter(skipped)),
        )


def _is_experts(model: nn.Module, name: str) -> bool:
    path, _, _ = name.rpartition(".")
    return not isinstance(model.get_submodule(path), nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _check_marks(
    model: nn.Module, marked: Sequence[_TrainedPart], in_groups: Collection[str]
) -> None:
    """Assert that what moves is what the table calls trained: a table that lies is our own bug."""
    moving = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    for name, index, part, named in marked:
        wrong = [n for n, p in named.items() if (id(p) in moving) != (part.state == "full")]
        assert not wrong, f"{name} {index}: {part.state} in the table, but not {wrong[0]}"
    assert set(moving.values()) == set(in_groups), "parameters would move that are in no row"


def _chosen_layers(found: Anatomy, layers: Sequence[int]) -> set[int]:
    num_layers = len(found.layers)
    unknown = [index for index in layers if not 0 <= index < num_layers]
    if unknown:
        raise RecipeError(
            f"layers: {unknown} do not exist; the language model has layers 0 to {num_layers - 1}"
        )
    return set(layers)


def _check(found: Anatomy, parts: Mapping[str, Part], chosen: set[int]) -> None:
    """Refuse what would be ignored silently."""
    trains = {name for name, part in parts.items() if part.state != "frozen"}
    if not chosen:
        if LANGUAGE_MODEL in trains:
            raise RecipeError(
                "layers: none is selected, but language_model.state is"
                f" {parts[LANGUAGE_MODEL].state}; select layers, or set language_model.state=frozen"
            )
        trains.discard(LANGUAGE_MODEL)
    if not trains:
        raise RecipeError(
            "nothing would be trained: every part is frozen; set the state of a part, such as"
            " projector.state=full"
        )
    for name in (VISION_ENCODER, PROJECTOR):
        if name not in trains or getattr(found, name):
            continue
        if found.vision_encoder or found.projector:
            raise RecipeError(
                f"{name}.state is {parts[name].state}, but the model has none that could be told"
                f" from the rest: found {_modules(found)}; name its modules, as in parts={{{name}:"
                f" MODULE}}, or set {name}.state=frozen"
            )
        raise RecipeError(
            f"{name}.state is {parts[name].state}, but the model has none: it is a language model"
            f" without a vision encoder; set {name}.state=frozen"
        )
    if parts[EMBEDDINGS].has_adapters:
        raise RecipeError(
            f"embeddings.state: found {parts[EMBEDDINGS].state}; only linear layers can have"
            " adapters, expected frozen or full"
        )
    if found.is_tied and parts[EMBEDDINGS].state != parts[HEAD].state:
        raise RecipeError(
            f"embeddings are {parts[EMBEDDINGS].state} and the head is {parts[HEAD].state}, but in"
            " this model they share one matrix; give both the same state"
        )


def _modules(found: Anatomy) -> str:
    """Say what the parts that images pass through hold."""
    return ", ".join(
        f"{name} with {len(named)} tensors such as {next(iter(named))}"
        for name in (VISION_ENCODER, PROJECTOR)
        if (named := getattr(found, name))
    )


def _add_adapters(model: nn.Module, marked: Sequence[_TrainedPart]) -> dict[str, nn.Parameter]:
    """Add adapters to the linear layers of parts that want them; returns their parameters."""
    if not any(part.has_adapters for _, _, part, _ in marked):
        return {}
    # Not above: PEFT takes seconds to import.
    from consomme.models.lora import LoraShape, add_lora

    linear_paths: dict[str, list[str]] = {}
    shapes: dict[str, LoraShape] = {}
    for name, _, part, named in marked:
        if not part.has_adapters:
            continue
        module_paths = dict.fromkeys(path.rpartition(".")[0] for path in named)
        found = [path for path in module_paths if isinstance(model.get_submodule(path), nn.Linear)]
        if not found:
            raise RecipeError(
                f"{name}.state is {part.state}, but it has no linear layers that adapters can be"
                " added to; expected frozen or full"
            )
        linear_paths.setdefault(name, []).extend(found)
        shapes[name] = LoraShape(
            rank=part.rank,
            alpha=part.alpha,
            dropout=part.dropout,
            has_magnitude=part.state == "dora",
        )
    added = {
        new
        for name, found in linear_paths.items()
        for new in add_lora(model, found, shapes[name], name)
    }
    return {name: p for name, p in model.named_parameters() if name in added}


def _lowest(parts: Mapping[str, Part], chosen: set[int]) -> int | None:
    before = (VISION_ENCODER, PROJECTOR, EMBEDDINGS)
    if any(parts[name].state != "frozen" for name in before):
        return None
    return min(chosen, default=None)


def freeze_unused(model: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> tuple[str, ...]:
    """Freeze trained parameters that the loss does not depend on, such as an unused final norm.

    Data-parallel training waits for a gradient of every trained parameter, so one without a
    gradient would block it.

    Args:
        model: With its parameters marked as trained or frozen.
        loss_of: Computes the loss of a sample with an image.

    Returns:
        Names of the parameters that were frozen here.
    """
    loss_of(model).backward()  # type: ignore[no-untyped-call]
    unused = tuple(
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    )
    for parameter in model.parameters():
        parameter.grad = None
    freeze(model, unused)
    return unused


def freeze(model: nn.Module, names: Collection[str]) -> None:
    """Freeze parameters by name; unknown names are ignored."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)


def enable_activation_checkpointing(model: Any) -> None:
    """Recompute the activations of each layer in the backward pass instead of saving them.

    Takes the memory of one layer's activations instead of all of them, for one more forward pass.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def disable_kv_cache(model: Any) -> None:
    """Disable the KV cache.

    Transformers' models fill it by default, also in layers that no gradient passes through. For a
    model whose top quarter was trained it was 22 % of a step's memory besides weights.
    """
    # Some families read one config, some the other.
    for config in (model.config, model.config.get_text_config()):
        config.use_cache = False


def enable_autocast(model: Any, device: str) -> None:
    """Run matrix products in bfloat16; weights and gradients stay float32.

    Autocast is entered inside the model's forward pass, because DeepSpeed disables an autocast
    that surrounds it.

    Args:
        model: Not yet wrapped by a parallelism.
        device: Type of the device that the model runs on.
    """
    model.forward = torch.autocast(device, torch.bfloat16)(model.forward)


def compile_layers(model: Any, backend: str) -> None:
    """Compile each layer of the language model at its first call.

    All layers have the same code, so one compilation serves them all; shapes may vary between
    batches.

    Args:
        model: Not yet wrapped by a parallelism.
        backend: Of torch.compile.
    """
    for layer in model.get_submodule(language_model(model).layers_path).children():
        layer.compile(backend=backend, dynamic=True)
