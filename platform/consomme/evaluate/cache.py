"""A content-addressed cache of evaluation results.

The key is everything that determines the result (weights, benchmark, decoding), never a path or the
name of a run. So a model that was moved, or averaged again from the same ingredients, is found in
the cache.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from consomme.base.errors import DataError
from consomme.storage.stores.store import Store


def soup_content_hash(
    ingredient_hashes: Sequence[str],
    shares: Sequence[float] | Sequence[Sequence[float]],
    method: Sequence[Any] = (),
) -> str:
    """Return the hash of a soup without writing it, from its ingredients' hashes and shares.

    The order of ingredients does not matter; those with a share of zero are ignored.

    Args:
        ingredient_hashes: Of their content.
        shares: Of the ingredients; or a list of each, if parts of the model have their own.
        method: What else decides how they are mixed; nothing for an average.
    """
    pairs = zip(ingredient_hashes, shares, strict=True)
    parts = sorted((h, share) for h, share in pairs if _is_used(share))
    content = {"soup": parts} | ({"method": list(method)} if method else {})
    return hashlib.sha256(_canonical(content)).hexdigest()


def _is_used(share: object) -> bool:
    return any(share) if isinstance(share, Sequence) else bool(share)


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
        decoding: Whatever else determines the answers: engine, temperature, token limit, seed.
    """
    parts = {
        "model": model_hash,
        "benchmark": benchmark,
        "benchmark_hash": benchmark_hash,
        "decoding": dict(decoding),
    }
    return hashlib.sha256(_canonical(parts)).hexdigest()


class ResultCache:
    """Results as small JSON files in a store, one per key; any number of processes may share it.

    If two processes compute the same result at once, the first one written is kept.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix.strip("/")

    def get(self, key: str) -> dict[str, Any] | None:
        """Return a cached result, or None.

        Raises:
            DataError: The stored file is not JSON, or was changed after it was written.
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
        # Results of earlier versions have no checksum.
        checksum = result.pop(_CHECKSUM, None)
        if checksum is not None and checksum != _checksum(result):
            raise DataError(
                f"cached evaluation {path!r} in {self._store.url} was changed: its checksum"
                " differs; delete it to have it computed again"
            )
        return result

    def put(self, key: str, result: Mapping[str, Any]) -> None:
        """Store a result, unless there is one already."""
        content = {**result, _CHECKSUM: _checksum(result)}
        self._store.create(self._path(key), json.dumps(content, sort_keys=True).encode())

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{key[:2]}/{key}.json"


_CHECKSUM = "sha256"


def _checksum(result: Mapping[str, Any]) -> str:
    text = json.dumps(dict(result), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
