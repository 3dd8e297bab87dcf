"""Whether models can be mixed: what has to be the same, by meaning and not by bytes.

Weights have to have the same names and shapes. What shapes a model in its configuration, what makes
tokens of a text (vocabulary, merges, added tokens) and what makes numbers of an image have to be
the same. How a tokenizer was saved, which type weights are stored in, and keys that only tools read
make no difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from consomme.base.errors import CheckpointError
from consomme.soup.ingredients import Ingredient

SIDE_KEYS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_name_or_path",
        "_processor_class",
        "attention_dropout",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "gradient_checkpointing",
        "hidden_dropout",
        "initializer_range",
        "keys_to_ignore_at_inference",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        # Quantised models are refused before.
        "quantization_config",
        "return_dict",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)
"""Keys of config.json, at any depth, that change no weight and no activation of a model in use."""

_UNLIKE_TOKENS = ("truncation", "padding", "version", "post_processor", "decoder")
"""Parts of tokenizer.json that do not decide which tokens there are."""

_PROCESSOR_SIDE = ("processor_class", "image_processor_type", "feature_extractor_type", "auto_map",
                   "_name_or_path", "data_format", "return_tensors", "device", "disable_grouping",
                   "input_data_format")  # fmt: skip


def check_compatible(ingredients: Sequence[Ingredient]) -> None:
    """Check that models can be mixed, by comparing each with the first.

    Raises:
        CheckpointError: There are none, or two of them differ. The message has the first difference
            and how many more there are.
    """
    if not ingredients:
        raise CheckpointError("a soup needs at least one ingredient; none was given")
    first = ingredients[0]
    for other in ingredients[1:]:
        found = list(differences(first, other))
        if found:
            more = f"; and {len(found) - 1:,} more differences" if len(found) > 1 else ""
            raise CheckpointError(
                f"a soup of strangers: {first.name!r} and {other.name!r} cannot be averaged: "
                f"{found[0]}{more}. Ingredients must be fine-tunes of one base with one"
                f" architecture and one tokenizer; leave {other.name!r} out, or train it from the"
                " same base"
            )


def differences(first: Ingredient, second: Ingredient) -> Iterator[str]:
    """Yield what keeps two models from being mixed, what matters most first."""
    yield from _weights(first, second)
    yield from _values("config.json", _plain(first.config), _plain(second.config))
    yield from _tokenizers(first.folder, second.folder)
    yield from _processors(first.folder, second.folder)


def _weights(first: Ingredient, second: Ingredient) -> Iterator[str]:
    for name, spec in first.tensors.items():
        other = second.tensors.get(name)
        if other is None:
            yield f"tensor {name!r} is missing in the second"
        elif other.shape != spec.shape:
            sizes = f"{list(spec.shape)} against {list(other.shape)}"
            hint = ""
            if other.shape[1:] == spec.shape[1:] and ("embed" in name or "lm_head" in name):
                hint = " (vocabularies of different size: resize one to the tokens of the other)"
            yield f"tensor {name!r} has shape {sizes}{hint}"
        elif is_number(other.dtype) != is_number(spec.dtype):
            yield f"tensor {name!r} is stored as {spec.dtype} against {other.dtype}"
    for name in second.tensors.keys() - first.tensors.keys():
        yield f"tensor {name!r} exists only in the second"


def is_number(dtype: str) -> bool:
    """Whether a type of safetensors holds fractions, in whatever precision."""
    return dtype.startswith(("F", "BF"))


def _plain(value: Any) -> Any:
    """Return a configuration without what makes no difference."""
    if not isinstance(value, Mapping):
        return value
    return {key: _plain(one) for key, one in value.items() if key not in SIDE_KEYS}


def _values(file: str, first: Any, second: Any, path: str = "") -> Iterator[str]:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in sorted(first.keys() | second.keys()):
            inside = f"{path}.{key}" if path else str(key)
            yield from _values(file, first.get(key), second.get(key), inside)
    elif first != second:
        yield f"{file}: {path!r} is {_short(first)} against {_short(second)}"


def _short(value: Any) -> str:
    if isinstance(value, _Whole):
        return f"{len(value.value):,} entries"
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else text[:77] + "…"


def _tokenizers(first: Path, second: Path) -> Iterator[str]:
    """Compare the tokens that a text becomes."""
    fast = [_json(folder / "tokenizer.json") for folder in (first, second)]
    if all(isinstance(one, dict) for one in fast):
        ours, theirs = (_tokens(one) for one in fast)
        yield from _values("tokenizer.json", ours, theirs)
    else:
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"):
            one, other = (_content(folder / name) for folder in (first, second))
            if one != other:
                yield f"{name} differs"
    for name in ("added_tokens.json",):
        one, other = (_json(folder / name) for folder in (first, second))
        if one is not None and other is not None:
            yield from _values(name, one, other)


def _tokens(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides tokens: whole vocabularies as one value each, since they are long."""
    kept = {key: one for key, one in content.items() if key not in _UNLIKE_TOKENS}
    added = kept.pop("added_tokens", None) or []
    kept["added_tokens"] = {str(one.get("id")): one.get("content") for one in added}
    model = kept.get("model")
    if isinstance(model, Mapping):
        merges = [" ".join(m) if isinstance(m, list) else m for m in model.get("merges") or []]
        kept["model"] = dict(model) | {"merges": merges}
        kept["model"] = {
            key: _Whole(one) if isinstance(one, list | dict) else one
            for key, one in kept["model"].items()
        }
    return kept


class _Whole:
    """A long value that is compared as one."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Whole) and self.value == other.value

    def __hash__(self) -> int:
        return hash(type(self))


def _processors(first: Path, second: Path) -> Iterator[str]:
    """Compare what makes numbers of an image; only what both name."""
    one, other = (_processor(folder) for folder in (first, second))
    for key in sorted(one.keys() & other.keys()):
        if key not in _PROCESSOR_SIDE:
            yield from _values("preprocessor_config.json", one[key], other[key], key)


def _processor(folder: Path) -> dict[str, Any]:
    content = _json(folder / "preprocessor_config.json")
    if content is None:
        # Newer versions keep it inside the processor's file.
        content = (_json(folder / "processor_config.json") or {}).get("image_processor")
    return content if isinstance(content, dict) else {}


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}; copy it again") from error


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
