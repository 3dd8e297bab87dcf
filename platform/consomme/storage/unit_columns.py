"""The fields of units as Arrow columns, for plans, views and commit records."""

import dataclasses
from collections.abc import Sequence

import pyarrow as pa

from consomme.storage.unit import Unit


def unit_columns(names: Sequence[str]) -> list[pa.Field]:
    """Return the Arrow fields of some fields of units."""
    kinds = {field.name: field.type for field in dataclasses.fields(Unit)}
    return [pa.field(name, pa.string() if kinds[name] is str else pa.int64()) for name in names]
