"""Folders that `datasets.save_to_disk` wrote, on disk and in a bucket, and damaged Arrow files."""

import io
import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.support.s3_server import BUCKET, moto
from tests.support.zoo_images import good_image
from tests.support.zoo_read import outcomes

from consomme.base.errors import ConsommeError, RecipeError
from consomme.base.sample import Reject, Sample
from consomme.storage.shards import shard_urls
from consomme.storage.stores.open import open_store
from consomme.storage.units import plan_units, read_unit

NUM_ROWS = 25
PICTURES = [good_image(f"{number}") for number in range(NUM_ROWS)]


def saved(folder: Path, **options: Any) -> Path:
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "kind": datasets.ClassLabel(names=["a", "b"]),
            "grid": datasets.Array2D((1, 2), "int32"),
        }
    )
    data = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": data, "path": None} for data in PICTURES],
            "caption": [f"caption {number}" for number in range(NUM_ROWS)],
            "kind": [number % 2 for number in range(NUM_ROWS)],
            "grid": [[[number, number]] for number in range(NUM_ROWS)],
        },
        features=features,
    )
    data.save_to_disk(str(folder / "saved"), **options)
    return folder / "saved"


def read(url: str | Path, max_rows: int) -> list[Sample]:
    found = []
    for unit in plan_units([str(url)], "web", max_rows=max_rows):
        samples, rejects = read_unit(unit)
        assert not rejects
        assert len(samples) == unit.count <= max_rows
        found += [sample for _, sample in samples]
    return found


def check(samples: list[Sample]) -> None:
    assert [sample.images[0].data for sample in samples] == PICTURES
    assert [sample.caption for sample in samples] == [f"caption {n}" for n in range(NUM_ROWS)]
    assert samples[3].meta == {"kind": 1}


@pytest.mark.parametrize("max_rows", [1, 4, 1024])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_saved_data_set(tmp_path: Path, max_rows: int, num_shards: int) -> None:
    folder = saved(tmp_path, num_shards=num_shards)
    check(read(folder, max_rows))
    check(read(folder / "*.arrow", max_rows))


def test_a_saved_data_set_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with moto() as server:
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        store = open_store(f"s3://{BUCKET}/saved")
        for path in saved(tmp_path, num_shards=2).iterdir():
            store.write(path.name, path.read_bytes())
        check(read(f"s3://{BUCKET}/saved", 10))


def test_what_lies_beside_the_shards_is_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    shutil.copy(folder / "data-00000-of-00001.arrow", folder / "cache-1234.arrow")
    assert [Path(url).name for url in shard_urls([str(folder)])] == ["data-00000-of-00001.arrow"]
    (folder / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(RecipeError, match=r"lacks data-00000-of-00001\.arrow, which state\.json"):
        shard_urls([str(folder)])
    (folder / "state.json").write_text(json.dumps({"mine": 1}))
    with pytest.raises(RecipeError, match="holds arrow and json files"):
        shard_urls([str(folder)])


def test_a_dictionary_of_splits(tmp_path: Path) -> None:
    import datasets

    rows = {"image": [{"bytes": PICTURES[0], "path": None}], "caption": ["a"]}
    one = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(RecipeError, match=r"holds the splits test, train; .* as in \S+both/test"):
        shard_urls([str(tmp_path / "both")])
    assert len(read(tmp_path / "both/train", 5)) == 1
    datasets.DatasetDict({"train": one}).save_to_disk(str(tmp_path / "single"))
    assert len(read(tmp_path / "single", 5)) == 1


def written(is_file: bool, rows_per_batch: int, compression: str | None = None) -> bytes:
    table = pa.table(
        {
            "image": PICTURES,
            "caption": [f"caption {number}" for number in range(NUM_ROWS)],
            "kind": pa.array(["x", "y"] * 12 + ["x"]).dictionary_encode(),
        }
    )
    sink = io.BytesIO()
    make = pa.ipc.new_file if is_file else pa.ipc.new_stream
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with make(sink, table.schema, options=options) as writer:
        for batch in table.to_batches(rows_per_batch):
            writer.write_batch(batch)
    return sink.getvalue()


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("rows_per_batch", [1, 7, 100])
@pytest.mark.parametrize("is_file", [True, False])
def test_streams_and_files(
    tmp_path: Path, is_file: bool, rows_per_batch: int, compression: str | None
) -> None:
    (tmp_path / "s.arrow").write_bytes(written(is_file, rows_per_batch, compression))
    for max_rows in (1, 3, 8, 1024):
        samples = read(tmp_path / "s.arrow", max_rows)
        assert [sample.images[0].data for sample in samples] == PICTURES
        assert samples[1].meta == {"kind": "y"}


def test_damaged_files_are_told(tmp_path: Path) -> None:
    """Any byte may be another one: reading ends with samples, rejects or an error, and soon."""
    data = written(is_file=False, rows_per_batch=7)
    path = tmp_path / "s.arrow"
    rng = random.Random(1)
    num_told = 0
    for number in range(150):
        bad = bytearray(data)
        kind = number % 3
        if kind == 0:
            bad = bad[: rng.randrange(len(bad))]
        elif kind == 1:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        else:
            at = rng.randrange(0, len(bad) - 8) & ~3
            struct.pack_into("<i", bad, at, rng.choice([-1, 2**31 - 1, 2**20, 0]))
        path.write_bytes(bad)
        try:
            found = outcomes(str(path))
        except ConsommeError:
            num_told += 1
        else:
            num_told += any(isinstance(one, Reject) for one in found)
    assert num_told > 50
    for content in (b"", b"ARROW1\0\0", b"version https://git-lfs.github.com/spec/v1\n", data[8:]):
        path.write_bytes(content)
        (reject,) = outcomes(str(path))
        assert isinstance(reject, Reject)
        assert reject.reason == "shard_unreadable"
