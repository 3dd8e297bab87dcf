"""Remembers evaluations by content, so that no model is asked the same questions twice.

The one decision: the key is what decides the result (weights, benchmark, decoding) and never a path
or a name of a run. A model that was moved, or averaged anew from the same ingredients, is found
again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from consomme.base.errors import DataError
from consomme.storage.stores.store import Store


def soup_content_hash(ingredient_hashes: Sequence[str], shares: Sequence[float]) -> str:
    """Return the hash of an average that was never written: its ingredients' hashes and shares.

    The order of ingredients does not count; those with a share of zero do not take part.
    """
    parts = sorted((h, share) for h, share in zip(ingredient_hashes, shares, strict=True) if share)
    return hashlib.sha256(_canonical({"soup": parts})).hexdigest()


def result_key(
    *,
    model_hash: str,
    benchmark: str,
    benchmark_hash: str,
    decoding: Mapping[str, Any],
) -> str:
    """Return the key of one evaluation.

    Args:
        model_hash: From `model_content_hash` or `soup_content_hash`.
        benchmark: Name of the benchmark.
        benchmark_hash: Hash over its samples and its prompt.
        decoding: What else decides the answers: engine, temperature, token limit, seed.
    """
    parts = {
        "model": model_hash,
        "benchmark": benchmark,
        "benchmark_hash": benchmark_hash,
        "decoding": dict(decoding),
    }
    return hashlib.sha256(_canonical(parts)).hexdigest()


class ResultCache:
    """Results as small JSON files in a store, one per key. Any number of processes may share it.

    Two processes that compute the same result at once both write it; the first one stands.
    """

    def __init__(self, store: Store, prefix: str = "evaluations") -> None:
        self._store = store
        self._prefix = prefix.strip("/")

    def get(self, key: str) -> dict[str, Any] | None:
        """Return a remembered result, or None.

        Raises:
            DataError: The stored file is not JSON.
        """
        path = self._path(key)
        if not self._store.exists(path):
            return None
        try:
            result: dict[str, Any] = json.loads(self._store.read(path))
        except ValueError as error:
            raise DataError(
                f"cached evaluation {path!r} in {self._store.url} is not JSON; delete it to have "
                "it computed again"
            ) from error
        return result

    def put(self, key: str, result: Mapping[str, Any]) -> None:
        """Remember a result; one that is there already stays."""
        self._store.create(self._path(key), json.dumps(result, sort_keys=True).encode())

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{key[:2]}/{key}.json"


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
