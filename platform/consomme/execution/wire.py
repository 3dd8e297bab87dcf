"""How tables and rejects travel inside one row of a Ray Data block."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa

from consomme.base.sample import Reject


def to_bytes(table: pa.Table) -> bytes:
    """Pack a table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def from_bytes(data: bytes) -> pa.Table:
    """Unpack what `to_bytes` packed, without copying."""
    return pa.ipc.open_stream(pa.py_buffer(data)).read_all()


def rejects_to_json(rejects: Sequence[tuple[int, Reject]]) -> str:
    """Pack rejects with their rows."""
    return json.dumps([[number, asdict(reject)] for number, reject in rejects])


def rejects_from_json(text: str) -> list[tuple[int, Reject]]:
    """Unpack what `rejects_to_json` packed."""
    return [(number, Reject(**fields)) for number, fields in json.loads(text)]
