"""Save and open model folders: safetensors only, names that both transformers and vLLM load.

A folder is written beside its final name and renamed when complete, so a folder that exists is
complete.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from consomme.base.errors import CheckpointError
from consomme.models.checkpoint_keys import rewrite_for_vllm
from consomme.models.imports import import_transformers
from consomme.models.side_files import carry_over, carry_over_generation_config
from consomme.models.stored_names import renamed
from consomme.models.tiling.register import registered_transformers
from consomme.storage.model_files import is_from_gguf


def save_vlm(folder: str | Path, model: Any, processor: Any) -> Path:
    """Write model, processor and tokenizer as one Hugging Face folder.

    Args:
        folder: Destination; an older folder there is replaced.
        model: A transformers model; its weights keep their dtype.
        processor: Its processor, chat template included.
    """
    with _building(folder) as building:
        model.save_pretrained(building)
        processor.save_pretrained(building)
        rewrite_for_vllm(building)
    return Path(folder)


def save_trained(folder: str | Path, model: Any, base: str | Path, stop_id: int) -> Path:
    """Write a model that was trained from another; all but weights and config is the other's.

    Args:
        folder: Destination; an older folder there is replaced.
        model: A transformers model; its weights keep their dtype.
        base: Folder of the model that training started from.
        stop_id: The token by which the model ends its turns, where generation has to stop.
    """
    with _building(folder) as building, _saved_without_checks(model):
        model.save_pretrained(building)
        _write_side_files(Path(base), building, stop_id)
        rewrite_for_vllm(building)
    return Path(folder)


def check_save_trained(folder: str | Path, base: str | Path, stop_id: int) -> None:
    """Write all but the weights of a trained model, and open it again.

    Args:
        folder: An empty folder.
        base: Folder of the model that training starts from.
        stop_id: As in `save_trained`.

    Raises:
        CheckpointError: The trained model could not be written, or not be opened.
    """
    folder = Path(folder)
    hf = import_transformers()
    with checkpoint_errors(base) as path:
        config = _open_config(path)
    try:
        config.save_pretrained(folder)
        hf.GenerationConfig.from_model_config(config).save_pretrained(folder)
        _write_side_files(Path(base), folder, stop_id)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"a model trained from {base} could not be saved: {error}; mend the file that this is"
            " about in the folder"
        ) from error
    open_processor(folder)


def _write_side_files(base: Path, folder: Path, stop_id: int) -> None:
    carry_over(base, folder)
    carry_over_generation_config(base, folder, stop_id)


@contextlib.contextmanager
def _saved_without_checks(model: Any) -> Iterator[None]:
    """Keep transformers from checking a generation config that is replaced by the base's."""
    kept = model.generation_config
    model.generation_config = import_transformers().GenerationConfig.from_model_config(model.config)
    try:
        yield
    finally:
        model.generation_config = kept


def stored_dtype(folder: str | Path) -> torch.dtype:
    """Return the dtype that most of a model folder's weights are stored in.

    Returns:
        float32, float16 or bfloat16; bfloat16 for what has fewer bits, float32 for what has more.
    """
    sizes: Counter[str] = Counter()
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():
                tensor = stored.get_slice(name)
                sizes[tensor.get_dtype()] += math.prod(tensor.get_shape())
    (name, _), *_ = sizes.most_common() or [("F32", 0)]
    dtypes = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16}
    return dtypes.get(name, torch.bfloat16)


def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """Cast what a model folder stores, in place; buffers that are computed keep their dtype.

    Raises:
        CheckpointError: A weight is too large for the dtype.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            cast = tensor.data.to(dtype)
            if not cast.isfinite().all() and tensor.data.isfinite().all():
                raise CheckpointError(
                    f"{name} has weights beyond the range of {dtype}; set export_dtype=bfloat16 or"
                    " float32"
                )
            tensor.data = cast


@contextlib.contextmanager
def _building(folder: str | Path) -> Iterator[Path]:
    """Give a folder beside the final one, which takes its place when the block ends."""
    folder = Path(folder)
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    yield building
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def open_vlm(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Open a VLM folder.

    Returns:
        (model in eval mode with weights of `dtype`, processor with a Pillow image processor).

    Raises:
        CheckpointError: The folder is missing or is no checkpoint that transformers can load.
    """
    with checkpoint_errors(folder) as path:
        return _load_vlm(path, _open_config(path), dtype)


def open_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Open the folder of a VLM, or of a language model without a vision encoder.

    Returns:
        (model in eval mode, processor); for a language model, its tokenizer as the processor.

    Raises:
        CheckpointError: The folder is missing or is no checkpoint that transformers can load.
    """
    hf = import_transformers()
    with checkpoint_errors(folder) as path:
        config = _open_config(path)
        if type(config) in hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            return _load_vlm(path, config, dtype)
        model = hf.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, use_safetensors=True, **_if_from_gguf(config)
        )
        model.eval()
        return model, hf.AutoTokenizer.from_pretrained(path, local_files_only=True)


def open_processor(folder: str | Path) -> tuple[Any, Any]:
    """Open the config and the processor of a model folder, without its weights.

    Returns:
        (config, processor); for a language model, its tokenizer as the processor.

    Raises:
        CheckpointError: The folder is missing or is no checkpoint that transformers can load.
    """
    hf = import_transformers()
    with checkpoint_errors(folder) as path:
        config = _open_config(path)
        if type(config) in hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            return config, _load_processor(path)
        return config, hf.AutoTokenizer.from_pretrained(path, local_files_only=True)


def build_from_config(folder: str | Path) -> Any:
    """Build the model that a folder's config describes, float32, with initialised weights.

    Only config.json is read. Under `torch.device("meta")` or fake tensors, a model of any size is
    built in a second and takes no memory.

    Raises:
        CheckpointError: The folder is missing or is no checkpoint that transformers can load.
    """
    hf = import_transformers()
    with checkpoint_errors(folder) as path:
        config = _open_config(path)
        is_vlm = type(config) in hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        family = hf.AutoModelForImageTextToText if is_vlm else hf.AutoModelForCausalLM
        return family.from_config(config, dtype=torch.float32)


def _open_config(path: Path) -> Any:
    """Open the config of a model folder.

    Raises:
        CheckpointError: The model has an encoder and a decoder of text: what its `forward` returns
            is not about the tokens that it is given.
    """
    config = import_transformers().AutoConfig.from_pretrained(path, local_files_only=True)
    if config.is_encoder_decoder:
        raise CheckpointError(
            f"found a {config.model_type} model with an encoder and a decoder of text at {path},"
            " expected a language model with one stack of layers; choose another model"
        )
    return config


def _if_from_gguf(config: Any) -> dict[str, Any]:
    """Return the config that a model is opened with if its weights once were GGUF, else nothing.

    transformers dequantises GGUF when it opens it, and saves plain weights beside a config that
    still says GGUF. Opened with that config, they are taken for codes that cannot be saved.
    """
    if not is_from_gguf(config.to_dict()):
        return {}
    del config.quantization_config
    return {"config": config}


def _load_vlm(path: Path, config: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    hf = import_transformers()
    model = hf.AutoModelForImageTextToText.from_pretrained(
        path, dtype=dtype, local_files_only=True, use_safetensors=True, **_if_from_gguf(config)
    )
    model.eval()
    return model, _load_processor(path)


def _load_processor(path: Path) -> Any:
    hf = registered_transformers()
    try:
        return hf.AutoProcessor.from_pretrained(path, local_files_only=True, backend="pil")
    except ImportError:
        # Families with a video processor: it has no Pillow backend, and we never use it.
        processor = hf.AutoProcessor.from_pretrained(path, local_files_only=True)
        processor.image_processor = hf.AutoImageProcessor.from_pretrained(
            path, local_files_only=True, backend="pil"
        )
        return processor


@contextlib.contextmanager
def checkpoint_errors(folder: str | Path) -> Iterator[Path]:
    """Check that a folder holds a model, and turn what opening it raises into a CheckpointError."""
    path = Path(folder)
    if not (path / "config.json").exists():
        raise CheckpointError(
            f"no checkpoint at {path}: expected a Hugging Face folder with config.json and"
            " *.safetensors; give the path of a finished train or soup run's model folder"
        )
    _refuse_own_code(path)
    try:
        yield path
    except ImportError as error:
        raise CheckpointError(
            f"cannot load the checkpoint at {path}: its family needs a package that is not"
            f" installed: {error}"
        ) from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"cannot load the checkpoint at {path}: {error}") from error


def _refuse_own_code(path: Path) -> None:
    """Refuse a model that only code in its own folder can open; such code is never run.

    Raises:
        CheckpointError: Says what can be done instead.
    """
    try:
        config = json.loads((path / "config.json").read_bytes())
    except ValueError:
        # Opening it says what is wrong.
        return
    if not isinstance(config, dict) or not config.get("auto_map"):
        return
    import_transformers()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if config.get("model_type") in CONFIG_MAPPING:
        # The folder has code of its own for an architecture that transformers knows as well.
        return
    files = sorted({str(name).partition(".")[0] for name in _flat(config["auto_map"].values())})
    raise CheckpointError(
        f"cannot load the checkpoint at {path}: model_type {config.get('model_type')!r} is none of"
        f" transformers, only the code in its folder ({', '.join(f'{name}.py' for name in files)})"
        " can open it, and consomme runs no code from model folders. Use a release of the model for"
        " transformers (their names often end in -hf), or a model of a standard architecture; for"
        " captions and answers, serve it elsewhere and name the server (engine={name: openai,"
        " url: …})"
    )


def _flat(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from (str(item) for item in value if item)
        else:
            yield str(value)


def load_tensors(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Copy stored tensors into an open model of the same architecture, in place.

    Where transformers would do no more than rename tensors, these are copied. Else it loads them to
    a model of its own, whose tensors are then copied. So names, layouts and tied weights are what
    opening a folder of these tensors makes of them.

    Args:
        model: Returned by `open_model`.
        weights: By their names in a folder's safetensors files; cast to the model's dtype.

    Raises:
        CheckpointError: A tensor is missing or has another shape; no weight was changed.
    """
    if _are_copied(model, weights):
        return
    try:
        loaded, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(weights),
            dtype=model.dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot load the weights into the model: {error}") from error
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"tensor {name} has shape {tuple(found)}, the model has {tuple(expected)}: not the same"
            " architecture"
        )
    for name in sorted(info["missing_keys"]):
        raise CheckpointError(f"tensor {name} is missing from the weights to load")
    stored = loaded.state_dict(keep_vars=True)
    ours = model.state_dict(keep_vars=True)
    _check_tied(ours, stored)
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(stored[name])


def _are_copied(model: Any, weights: Mapping[str, Tensor]) -> bool:
    """Copy stored tensors if each is one tensor of the model, and all of these are there.

    Returns:
        Whether that is so; if not, nothing was changed.
    """
    ours = model.state_dict(keep_vars=True)
    found: dict[int, Tensor] = {}
    for name, place, is_merged in renamed(model, weights, ours):
        own, stored = ours.get(place), weights[name]
        if is_merged or own is None or own.shape != stored.shape:
            return False
        if id(own) in found and not torch.equal(found[id(own)], stored):
            return False
        found[id(own)] = stored
    if any(id(tensor) not in found for tensor in ours.values()):
        return False
    with torch.no_grad():
        for tensor in ours.values():
            tensor.copy_(found[id(tensor)])
    return True


def _check_tied(ours: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Check that tensors which the model shares are equal in the weights to load."""
    first_of: dict[int, str] = {}
    for name, tensor in ours.items():
        first = first_of.setdefault(id(tensor), name)
        if stored[name] is not stored[first] and not torch.equal(stored[name], stored[first]):
            raise CheckpointError(
                f"tensors {first} and {name} differ in the weights to load, the model has one"
                " tensor for both: not the same architecture"
            )


def open_keys(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Return the names of an open model's parameters by the names of stored tensors.

    Args:
        model: Returned by `open_model`.
        names: In a folder's safetensors files, of any version of the format; or in the open model.

    Returns:
        Only names that are one parameter; a tensor that transformers merges with others is not.
    """
    parameters = dict(model.named_parameters())
    return {
        name: place
        for name, place, is_merged in renamed(model, names, parameters)
        if not is_merged and place in parameters
    }
