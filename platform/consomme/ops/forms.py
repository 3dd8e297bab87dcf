"""Check the form of files whose checksum is not known: whether they are whole and readable."""

from __future__ import annotations

import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.storage.stores.store import Store

_HEADER_LIMIT = 100_000_000


def form_problem(store: Store, path: str) -> str:
    """Say what is wrong with the form of a file; empty if nothing, or if its form is not known."""
    suffix = path.rpartition(".")[2].lower()
    try:
        if suffix == "parquet":
            with store.open(path) as file:
                parquet = pq.ParquetFile(file, page_checksum_verification=True)
                for _ in parquet.iter_batches(batch_size=1024):
                    pass
        elif suffix == "json":
            json.loads(store.read(path))
        elif suffix == "jsonl":
            for line in store.read(path).splitlines():
                json.loads(line)
        elif suffix == "tar":
            with store.open(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for _ in tar:
                    pass
        elif suffix == "safetensors":
            return _safetensors_problem(store, path)
    except (pa.ArrowException, OSError, ValueError, tarfile.TarError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return f"not readable: {error}"
    return ""


def _safetensors_problem(store: Store, path: str) -> str:
    """Compare the size with that of the tensors that the header names."""
    size = store.size(path)
    length = int.from_bytes(store.read(path, 0, 8), "little")
    if not 2 <= length <= min(_HEADER_LIMIT, size):
        return "not a whole safetensors file"
    header = json.loads(store.read(path, 8, length))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    expected = 8 + length + end
    return "" if size == expected else f"{size:,} bytes, expected {expected:,}"
