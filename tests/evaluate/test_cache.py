"""A result is found again by content, and by nothing else."""

import shutil

import pytest

from consomme.base.errors import CheckpointError, DataError
from consomme.evaluate.cache import ResultCache, result_key, soup_content_hash
from consomme.storage.model_folder import model_content_hash
from consomme.storage.stores.open import open_store

KEY = {
    "model_hash": "m",
    "benchmark": "scenes",
    "benchmark_hash": "b",
    "decoding": {"temperature": 0, "max_tokens": 8},
}


def model(folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


def test_the_hash_follows_content_and_not_place(tmp_path):
    first = model(tmp_path / "a")
    known = model_content_hash(first)
    assert model_content_hash(shutil.copytree(first, tmp_path / "b")) == known

    (first / "soup.json").write_text("{}")
    (first / "README.md").write_text("notes")
    assert model_content_hash(first) == known
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (first / name).write_text(f"other {name}")
        changed = model_content_hash(first)
        assert changed != known
        known = changed
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        model_content_hash(tmp_path)


def test_soups_are_known_by_their_ingredients():
    known = soup_content_hash(["a", "b"], [0.25, 0.75])
    assert soup_content_hash(["b", "a"], [0.75, 0.25]) == known
    assert soup_content_hash(["a", "b", "c"], [0.25, 0.75, 0.0]) == known
    assert soup_content_hash(["a", "b"], [0.75, 0.25]) != known


@pytest.mark.parametrize(
    "change",
    [
        {"model_hash": "n"},
        {"benchmark": "emoji"},
        {"benchmark_hash": "c"},
        {"decoding": {"temperature": 1, "max_tokens": 8}},
    ],
)
def test_whatever_decides_the_result_changes_the_key(change):
    assert result_key(**KEY | change) != result_key(**KEY)


def test_order_of_decoding_options_does_not_count():
    swapped = {"max_tokens": 8, "temperature": 0}
    assert result_key(**KEY | {"decoding": swapped}) == result_key(**KEY)


def test_the_first_result_stands_and_is_shared(tmp_path):
    key = result_key(**KEY)
    cache = ResultCache(open_store(str(tmp_path)), "results")
    assert cache.get(key) is None
    cache.put(key, {"accuracy": 0.5})
    again = ResultCache(open_store(str(tmp_path)), "results")
    again.put(key, {"accuracy": 0.9})
    assert cache.get(key) == again.get(key) == {"accuracy": 0.5}
    assert cache.get(result_key(**KEY | {"benchmark": "x"})) is None


def test_a_damaged_entry_is_named(tmp_path):
    store = open_store(str(tmp_path))
    key = result_key(**KEY)
    store.write(f"results/{key[:2]}/{key}.json", b"{")
    with pytest.raises(DataError, match="is not JSON; delete it"):
        ResultCache(store, "results").get(key)
    path = f"results/{key[:2]}/{key}.json"
    store.delete(path)
    ResultCache(store, "results").put(key, {"accuracy": 0.5})
    store.write(path, store.read(path).replace(b"0.5", b"0.6"))
    with pytest.raises(DataError, match="was changed: its checksum differs"):
        ResultCache(store, "results").get(key)
