"""Find the parts of a model, and the layers of its language model, by what uses them.

Parts are found by how modules are connected, never by what a family calls them, so freezing, layer
selection, soups and pruning all mean the same layers. The module that holds the input embeddings is
the language model. What the model's `get_image_features` runs is vision encoder and projector: the
encoder is the module that was built from the config's vision config, the projector is the rest.
What only sounds or videos pass through is a part of its own. Where this cannot be told, nothing is
guessed: the modules are named in the recipe (`parts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from consomme.base.errors import CheckpointError
from consomme.models.module_use import names_used

Named = Mapping[str, nn.Parameter]
"""Parameters by the names they have in the whole model."""

VISION_ENCODER, PROJECTOR, EMBEDDINGS, HEAD = "vision_encoder", "projector", "embeddings", "head"
AUDIO_ENCODER, VIDEO_ENCODER, OTHER = "audio_encoder", "video_encoder", "other"

SIDE_PARTS = (AUDIO_ENCODER, VIDEO_ENCODER, OTHER)
"""Parts that no picture and no word passes through."""

NAMEABLE = (VISION_ENCODER, PROJECTOR, EMBEDDINGS, HEAD, *SIDE_PARTS)
"""Parts that modules can be assigned to by name."""

PIXEL_CHANNELS = 4
"""A convolution of at most this many input channels takes pixels; one of more takes features."""


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
    """The matrix of the input tokens, tables of embeddings per layer, and what else the language
    model computes before its layers; if the head shares the matrix, it is here."""

    head: Named
    """The final norm, and the matrix of the output tokens unless it is the input's."""

    sides: Mapping[str, Named] = field(default_factory=dict)
    """`audio_encoder`, `video_encoder` with their projectors, and `other`, as far as the model has
    them: no picture and no word passes through them, so they are not trained."""

    layers_path: str
    """Name of the `nn.ModuleList` of layers in the model."""

    is_tied: bool
    """Whether input and output tokens share one matrix."""


@dataclass(frozen=True)
class LanguageModel:
    """Where the language model is in a model."""

    path: str
    """Name of the module that holds the input embeddings and the layers."""

    layers_path: str
    """Name of the `nn.ModuleList` of layers."""


def language_model(model: Any) -> LanguageModel:
    """Find the language model inside a model.

    Raises:
        CheckpointError: It has no stack of layers beside its input embeddings, or a second stack
            that decodes.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise CheckpointError(
            f"found a {type(model).__name__} with an encoder and a decoder of text, expected a"
            " language model with one stack of layers; choose another model"
        )
    embedding = _call_getter(model, "get_input_embeddings")
    paths = {id(module): name for name, module in model.named_modules()}
    if embedding is None or id(embedding) not in paths:
        raise _unknown_structure(model)
    text_path = paths[id(embedding)].rpartition(".")[0]
    stacks = [m for m in model.get_submodule(text_path).children() if isinstance(m, nn.ModuleList)]
    # A layer is made of modules; Gemma 3n has a list of linear maps besides.
    stack = _longest_stack(m for m in stacks if _is_stack(m))
    if stack is None:
        raise _unknown_structure(model)
    return LanguageModel(text_path, paths[id(stack)])


def language_layers(model: Any) -> tuple[Named, ...]:
    """Return the parameters of each layer of the language model, in order.

    Raises:
        CheckpointError: As `language_model`.
    """
    path = language_model(model).layers_path
    return tuple(
        {f"{path}.{index}.{name}": p for name, p in layer.named_parameters()}
        for index, layer in enumerate(model.get_submodule(path).children())
    )


def anatomy(model: Any, named: Mapping[str, Sequence[str]] | None = None) -> Anatomy:
    """Assign every parameter of a model to a part, without changing the model.

    Args:
        model: A generative transformers model, with or without a vision encoder.
        named: Modules that are assigned by name: part -> module names. None: those that
            `name_parts` noted.

    Raises:
        CheckpointError: It has no stack of layers beside its input embeddings; it takes images, but
            its vision encoder cannot be told; or a named module does not exist or is no part's.
    """
    where = language_model(model)
    assigned = getattr(model, _NOTE, {}) if named is None else named
    _check_named(model, assigned, where)
    embedding = _call_getter(model, "get_input_embeddings")
    output = _call_getter(model, "get_output_embeddings")
    embedding_ids = {id(parameter) for parameter in embedding.parameters()}
    places = _Places(model, where, output)
    parts: dict[str, dict[str, nn.Parameter]] = {part: {} for part in NAMEABLE}
    layers: list[dict[str, nn.Parameter]] = [
        {} for _ in model.get_submodule(where.layers_path).children()
    ]
    for name, parameter in model.named_parameters():
        if _is_under(name, where.layers_path):
            layers[int(name.removeprefix(f"{where.layers_path}.").partition(".")[0])][name] = (
                parameter
            )
            continue
        part = _named_part(name, assigned)
        if part is None:
            part = EMBEDDINGS if id(parameter) in embedding_ids else places.part_of(name)
        parts[part][name] = parameter
    _check_vision(model, parts, places, assigned)
    if not assigned.get(PROJECTOR):
        _split_off_projector(model, parts, embedding.weight.shape[1])
    return Anatomy(
        vision_encoder=parts[VISION_ENCODER],
        projector=parts[PROJECTOR],
        layers=tuple(layers),
        embeddings=parts[EMBEDDINGS],
        head=parts[HEAD],
        sides={part: parts[part] for part in SIDE_PARTS if parts[part]},
        layers_path=where.layers_path,
        is_tied=output is not None and id(getattr(output, "weight", None)) in embedding_ids,
    )


_NOTE = "_consomme_named_parts"


def name_parts(model: Any, named: Mapping[str, Sequence[str]]) -> None:
    """Note on a model which modules are which parts, for every later `anatomy` of it.

    Args:
        model: An open model.
        named: As in `anatomy`.
    """
    setattr(model, _NOTE, dict(named))


class _Places:
    """Tells a module's part from its place: who runs it, and which config it was built from."""

    def __init__(self, model: Any, where: LanguageModel, output: Any) -> None:
        self.model, self.where, self.output = model, where, output
        self.configs = {
            VISION_ENCODER: _config_types(model.config, ("vision", "image")),
            AUDIO_ENCODER: _config_types(model.config, ("audio", "speech", "sound")),
        }
        own = type(model.config.get_text_config()) if hasattr(model, "config") else None
        some = (*self.configs[VISION_ENCODER], *self.configs[AUDIO_ENCODER], own)
        self.foreign = tuple(c for c in _config_types(model.config, ("",)) if c not in some)
        self.found: dict[str, str] = {}
        """Parts by the name of the module, in order."""

    @property
    def has_vision(self) -> bool:
        """Whether a config or a method says that the model takes images."""
        return bool(self.configs[VISION_ENCODER]) or any(
            part in (VISION_ENCODER, PROJECTOR) for part in self.found.values()
        )

    def part_of(self, name: str) -> str:
        """Return the part of a parameter that is in no layer and is not the input embedding's."""
        owner_path, child = self._place(name)
        path = f"{owner_path}.{child}" if owner_path else child
        if path not in self.found:
            self.found[path] = self._part(owner_path, child)
        return self.found[path]

    def _place(self, name: str) -> tuple[str, str]:
        """Return the last module on the way to the language model's layers, and its child."""
        steps, own = self.where.path.split(".") if self.where.path else [], name.split(".")
        depth = 0
        while depth < min(len(steps), len(own) - 1) and steps[depth] == own[depth]:
            depth += 1
        return ".".join(own[:depth]), own[depth]

    def _part(self, owner_path: str, child: str) -> str:
        owner = self.model.get_submodule(owner_path)
        module = getattr(owner, child)
        if module is self.output:
            return HEAD
        for part, configs in self.configs.items():
            if part != VISION_ENCODER and _is_built_from(module, configs):
                return part
        if owner_path == self.where.path:
            return self._language_part(owner, child)
        uses = {
            use: child in names_used(type(owner), f"get_{use}_features")
            for use in ("image", "audio", "video")
        }
        if not uses["image"]:
            if uses["audio"]:
                return AUDIO_ENCODER
            if uses["video"]:
                return VIDEO_ENCODER
            if child not in names_used(type(owner), "forward"):
                return OTHER
            if not self.configs[VISION_ENCODER] and not _takes_pixels(module):
                return HEAD
        if _is_built_from(module, self.configs[VISION_ENCODER]) or _takes_pixels(module):
            return VISION_ENCODER
        return PROJECTOR

    def _language_part(self, owner: Any, child: str) -> str:
        """Tell what the language model runs before its layers from what it runs after them."""
        module = getattr(owner, child)
        if isinstance(module, nn.Embedding):
            return EMBEDDINGS
        if _holds(module, self.configs[VISION_ENCODER]) or _takes_pixels(module):
            return VISION_ENCODER
        if _holds(module, self.foreign):
            return OTHER
        order = names_used(type(owner), "forward")
        stack = self.where.layers_path.rpartition(".")[2]
        if _is_stack(module):
            raise CheckpointError(
                f"cannot tell what {self.where.path}.{child} of a {type(self.model).__name__} is: a"
                f" second stack of layers beside {self.where.layers_path}. Name it in the recipe,"
                f" such as parts={{projector: [{self.where.path}.{child}]}} for layers that only"
                " images pass through"
            )
        is_before = child in order and stack in order and order.index(child) < order.index(stack)
        return EMBEDDINGS if is_before else HEAD


def _is_stack(module: Any) -> bool:
    """Return whether a module is a list of modules that are made of modules."""
    return isinstance(module, nn.ModuleList) and any(any(n.children()) for n in module)


def _config_types(config: Any, words: Iterable[str]) -> tuple[type, ...]:
    """Return the classes of a config's sub-configs whose keys contain one of some words."""
    keys = [key for key in getattr(config, "sub_configs", {}) if any(w in key for w in words)]
    found = [getattr(config, key, None) for key in keys]
    return tuple({type(one) for one in found if one is not None})


def _is_built_from(module: Any, configs: tuple[type, ...]) -> bool:
    """Return whether a module is a model of its own that was built from one of some configs."""
    return hasattr(module, "post_init") and type(getattr(module, "config", None)) in configs


def _holds(module: Any, configs: tuple[type, ...]) -> bool:
    """Return whether a module, or a module in it, was built from one of some configs."""
    return isinstance(module, nn.Module) and any(
        type(getattr(part, "config", None)) in configs for part in module.modules()
    )


def _takes_pixels(module: Any) -> bool:
    return isinstance(module, nn.Module) and any(
        isinstance(part, (nn.Conv2d, nn.Conv3d)) and part.in_channels <= PIXEL_CHANNELS
        for part in module.modules()
    )


def _named_part(name: str, named: Mapping[str, Sequence[str]]) -> str | None:
    """Return the part whose named module holds a parameter; the longest name counts."""
    holding = [
        (len(path), part)
        for part, paths in named.items()
        for path in paths
        if name == path or _is_under(name, path)
    ]
    return max(holding)[1] if holding else None


def _check_named(model: Any, named: Mapping[str, Sequence[str]], where: LanguageModel) -> None:
    names = {name for name, _ in model.named_modules()} | {n for n, _ in model.named_parameters()}
    # Adapters rename a parameter of a linear layer, and nothing else.
    names |= {name.replace(".base_layer.", ".") for name in names}
    for part, paths in named.items():
        if part not in NAMEABLE:
            raise CheckpointError(
                f"parts: found {part}, expected one of {', '.join(NAMEABLE)}; the layers of the"
                " language model are found by themselves"
            )
        for path in paths:
            if not path or path not in names:
                raise CheckpointError(
                    f"parts.{part}: {type(model).__name__} has no module {path!r}; expected one of"
                    f" {_candidates(model, where)}"
                )
            layers = where.layers_path
            if path == layers or _is_under(path, layers) or _is_under(layers, path):
                raise CheckpointError(
                    f"parts.{part}: {path} holds layers of the language model, or is one; expected"
                    f" a module beside {layers}, such as {_candidates(model, where)}"
                )


def _check_vision(
    model: Any,
    parts: Mapping[str, Named],
    places: _Places,
    named: Mapping[str, Sequence[str]],
) -> None:
    """Refuse a model that takes images if its vision encoder was not found."""
    if parts[VISION_ENCODER] or VISION_ENCODER in named or not places.has_vision:
        return
    if not parts[PROJECTOR] or PROJECTOR in named:
        # Nothing runs on images; or the recipe says that the model projects patches directly.
        return
    raise CheckpointError(
        f"cannot tell the vision encoder of a {type(model).__name__}: it takes images, but no"
        " module was built from its vision config, and none has a convolution over pixels."
        f" Candidates are {_candidates(model, places.where)}. Name them in the recipe, such as"
        " parts={vision_encoder: [MODULE], projector: [MODULE]}"
    )


def _candidates(model: Any, where: LanguageModel) -> str:
    """List the modules with parameters that are beside the language model, or beside its layers."""
    found = []
    steps = where.path.split(".") if where.path else []
    for depth in range(len(steps) + 1):
        owner_path = ".".join(steps[:depth])
        owner = model.get_submodule(owner_path)
        for child, module in owner.named_children():
            path = f"{owner_path}.{child}" if owner_path else child
            is_on_the_way = path == where.layers_path or _is_under(where.layers_path, path)
            if not is_on_the_way and any(True for _ in module.parameters()):
                found.append(f"{path} ({type(module).__name__})")
    return ", ".join(found)


def image_parameters(model: Any) -> Named:
    """Return the parameters of vision encoder and projector.

    Raises:
        CheckpointError: The model's parts cannot be told.
    """
    parts = anatomy(model)
    return {**parts.vision_encoder, **parts.projector}


def _call_getter(model: Any, getter: str) -> Any:
    """Call a getter of transformers' models; None if the model does not have it."""
    get = getattr(model, getter, None)
    return get() if get else None


def _longest_stack(modules: Iterable[nn.Module]) -> nn.ModuleList | None:
    """Return the `nn.ModuleList` with the most modules."""
    stacks = [module for module in modules if isinstance(module, nn.ModuleList)]
    return max(stacks, key=len, default=None)


def _is_under(name: str, path: str) -> bool:
    return not path or name.startswith(f"{path}.")


def _split_off_projector(model: Any, parts: dict[str, dict[str, nn.Parameter]], width: int) -> None:
    """Find the projector of families that keep it inside their vision encoder, as Qwen's do.

    Where nothing projects outside the encoder, it is the linear layers and convolutions that the
    encoder runs after its blocks. Else it is the linear layers among them that do not return
    vectors of the blocks' width, with the norms that follow.
    """
    has_projector = bool(parts[PROJECTOR])
    for path in dict.fromkeys(module_roots(model, parts[VISION_ENCODER])):
        encoder = model.get_submodule(path)
        blocks = _longest_stack(encoder.modules())
        if blocks is None or not any(True for _ in blocks.parameters()):
            continue
        widths = {_width_of(blocks)}
        for name in _after(encoder, blocks, width):
            child = encoder.get_submodule(name)
            outputs = _output_widths(child)
            has_convolution = any(isinstance(m, (nn.Conv2d, nn.Conv3d)) for m in child.modules())
            is_norm = not outputs and not has_convolution
            if is_norm:
                is_projector = _norm_width(child) in widths - {_width_of(blocks)}
            elif has_projector:
                is_projector = not has_convolution and outputs[-1] not in widths
            else:
                is_projector = True
            if not is_projector:
                continue
            widths.update(outputs[-1:])
            for moved in [n for n in parts[VISION_ENCODER] if _is_under(n, f"{path}.{name}")]:
                parts[PROJECTOR][moved] = parts[VISION_ENCODER].pop(moved)


def _after(encoder: Any, blocks: nn.ModuleList, width: int) -> list[str]:
    """Return the modules that an encoder runs after its blocks, in order.

    Where its code does not show the order, they are those that return the language model's width.
    """
    order = names_used(type(encoder), "forward")
    children = {n: c for n, c in encoder.named_children() if any(True for _ in c.parameters())}
    stack = next(name for name, child in children.items() if blocks in list(child.modules()))
    rest = [name for name in children if name != stack and not _takes_pixels(children[name])]
    if stack not in order:
        return [name for name in rest if width in _output_widths(children[name])]
    shown = [name for name in order[order.index(stack) + 1 :] if name in rest]
    hidden = [name for name in rest if name not in order]
    return shown + [name for name in hidden if width in _output_widths(children[name])]


def module_roots(model: Any, named: Named) -> Iterator[str]:
    """Yield the outermost modules that hold only these parameters, once for each of these."""
    ids = {id(parameter) for parameter in named.values()}
    for name in named:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            path = ".".join(parts[:depth])
            module = model.get_submodule(path)
            if all(id(parameter) in ids for parameter in module.parameters()):
                yield path
                break


def _width_of(blocks: nn.ModuleList) -> int:
    """Return the width of a stack of blocks: what its first norm or matrix takes."""
    return next(iter(blocks.parameters())).shape[-1]


def _output_widths(module: nn.Module) -> list[int]:
    """Return the output widths of linear layers, in order; adapters are left out."""
    own = [part for name, part in module.named_modules() if ".lora_" not in f".{name}"]
    return [part.out_features for part in own if isinstance(part, nn.Linear)]


def _norm_width(module: nn.Module) -> int | None:
    """Return the width of a module that has vectors only."""
    shapes = {parameter.shape for parameter in module.parameters()}
    return max(s[0] for s in shapes) if shapes and all(len(s) == 1 for s in shapes) else None


def _unknown_structure(model: Any) -> CheckpointError:
    return CheckpointError(
        f"cannot find the parts of a {type(model).__name__}: expected a stack of layers"
        " (nn.ModuleList) beside the matrix of its input tokens"
    )
