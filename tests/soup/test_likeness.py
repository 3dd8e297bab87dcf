"""Which models can be mixed: by what they mean, not by how they were saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.soup.test_mixing import State, checkpoint, state

from consomme.base.errors import CheckpointError
from consomme.soup.ingredients import open_ingredient
from consomme.soup.likeness import check_compatible, differences
from consomme.soup.mixing import ModelMix, average_ingredients
from consomme.soup.writing import write_soup

TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "added_tokens": [{"id": 2, "content": "<image>", "special": True}],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]},
}
PROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "size": {"height": 8}, "processor_class": "X"}


def model(
    folder: Path,
    tensors: State | None = None,
    tokenizer: Any = TOKENIZER,
    processor: Any = PROCESSOR,
    **config: Any,
) -> Path:
    checkpoint(folder, state(1) if tensors is None else tensors, **config)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=len(folder.name)))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_what_makes_no_difference(tmp_path: Path) -> None:
    first = open_ingredient(model(tmp_path / "first", state(0), use_cache=True))
    saved_again = TOKENIZER | {
        "truncation": {"max_length": 512},
        "model": TOKENIZER["model"] | {"merges": [["a", "b"]]},  # type: ignore[operator]
    }
    others = [
        model(tmp_path / "half", state(1, torch.float16)),
        model(tmp_path / "tools", unsloth_version="1", pad_token_id=3, use_cache=False,
              text_config=None),
        model(tmp_path / "saved-again", tokenizer=saved_again),
        model(tmp_path / "processor", processor=PROCESSOR | {"processor_class": "Y", "new": 1}),
    ]  # fmt: skip
    stray = model(tmp_path / "stray")
    for name in ("adapter_model", "optimizer"):
        save_file({"x": torch.ones(2)}, stray / f"{name}.safetensors")
    newer = model(tmp_path / "newer")
    (newer / "preprocessor_config.json").unlink()
    (newer / "processor_config.json").write_text(json.dumps({"image_processor": PROCESSOR}))
    for other in (*others, stray, newer):
        check_compatible([first, open_ingredient(other)])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"tensors": {k: v for k, v in state(1).items() if k != "b.weight"}},
         r"tensor 'b.weight' is missing in the second"),
        ({"tensors": state(1) | {"z": torch.ones(1)}}, r"tensor 'z' exists only in the second"),
        ({"tensors": state(1) | {"b.weight": torch.ones(9)}}, r"shape \[3\] against \[9\]"),
        ({"tensors": state(1) | {"b.weight": torch.ones(3, dtype=torch.int64)}},
         r"'b.weight' is stored as F32 against I64"),
        ({"hidden_size": 8}, r"config.json: 'hidden_size' is 4 against 8"),
        ({"text_config": {"num_layers": 3}}, r"config.json: 'text_config' is null against"),
        ({"tokenizer": TOKENIZER | {"added_tokens": [{"id": 2, "content": "<img>"}]}},
         r"tokenizer.json: 'added_tokens.2' is \"<image>\" against \"<img>\""),
        ({"tokenizer": TOKENIZER | {"model": {"type": "BPE", "vocab": {"b": 0}, "merges": []}}},
         r"tokenizer.json: 'model.merges' is 1 entries against 0 entries.* and 1 more difference"),
        ({"processor": PROCESSOR | {"image_mean": [0.4, 0.5, 0.5]}},
         r"preprocessor_config.json: 'image_mean' is \[0.5, 0.5, 0.5\] against \[0.4"),
    ],
)  # fmt: skip
def test_strangers_are_refused_with_the_first_difference(
    tmp_path: Path, changes: dict[str, Any], difference: str
) -> None:
    first = open_ingredient(model(tmp_path / "first", state(0)))
    other = open_ingredient(model(tmp_path / "other", **changes))
    with pytest.raises(CheckpointError, match=difference) as caught:
        check_compatible([first, other])
    assert "a soup of strangers: 'first' and 'other'" in str(caught.value)


def test_vocabularies_of_different_size_are_named(tmp_path: Path) -> None:
    sizes = [{"model.embed_tokens.weight": torch.ones(n, 4)} for n in (5, 6)]
    opened = [open_ingredient(model(tmp_path / str(k), s)) for k, s in enumerate(sizes)]
    assert next(differences(*opened)) == (
        "tensor 'model.embed_tokens.weight' has shape [5, 4] against [6, 4] (vocabularies of"
        " different size: resize one to the tokens of the other)"
    )


def test_another_token_in_added_tokens_is_seen(tmp_path: Path) -> None:
    folders = [model(tmp_path / name) for name in ("one", "two")]
    for number, folder in enumerate(folders):
        (folder / "added_tokens.json").write_text(json.dumps({"<image>": number}))
    with pytest.raises(CheckpointError, match=r"added_tokens.json: '<image>' is 0 against 1"):
        check_compatible([open_ingredient(folder) for folder in folders])


def test_damaged_and_unfit_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_ingredient(tmp_path / "nothing")
    folder = checkpoint(tmp_path / "cut", state(0))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="cut off"):
        open_ingredient(folder)
    weights.write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        open_ingredient(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        open_ingredient(folder)
    quantised = checkpoint(tmp_path / "q", state(0), quantization_config={"bits": 4})
    with pytest.raises(CheckpointError, match="a quantised model"):
        open_ingredient(quantised)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an adapter without its model"):
        open_ingredient(adapter)


def test_a_missing_shard_and_a_missing_tensor_are_found(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "shards", {"a": torch.ones(2)})
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"1 of 2 files .* such as model-00002-of-00002"):
        open_ingredient(folder)
    where = {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(CheckpointError, match=r"1 tensors that its index names .* such as 'b'"):
        open_ingredient(folder)


def test_an_output_matrix_that_copies_the_embeddings_makes_no_difference(tmp_path: Path) -> None:
    """Some programs store it, most do not; one that is its own matrix is one."""
    name, head = "model.embed_tokens.weight", "lm_head.weight"
    matrix = torch.randn(5, 4)
    tied = {"tie_word_embeddings": True}
    one = open_ingredient(model(tmp_path / "one", {name: matrix}, **tied))
    both = {name: matrix + 1, head: (matrix + 1).clone()}
    two = open_ingredient(model(tmp_path / "two", both, **tied))
    check_compatible([one, two])
    check_compatible([two, one])
    assert dict(average_ingredients([two, one])).keys() == {name}
    own = open_ingredient(model(tmp_path / "own", {name: matrix, head: matrix + 1}, **tied))
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' exists only in the second"):
        check_compatible([one, own])
    untied = open_ingredient(model(tmp_path / "untied", both, tie_word_embeddings=False))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        check_compatible([one, untied])


def test_what_came_from_gguf_is_plain_and_says_so_no_more(tmp_path: Path) -> None:
    # As transformers saves what it opened from a GGUF file: floats, and this in the config.
    origin = {"quant_method": "gguf", "gguf_file": "model.Q4_1.gguf", "dequantize": False}
    one = checkpoint(tmp_path / "one", state(0), quantization_config=origin)
    two = checkpoint(tmp_path / "two", state(1))
    opened = [open_ingredient(folder) for folder in (one, two)]
    check_compatible(opened)
    made = write_soup(tmp_path / "soup", ModelMix.of(opened))
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
