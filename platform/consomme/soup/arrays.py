"""Stored numbers as float32 and back, with numpy alone: loading torch takes longer than a merge."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import CheckpointError

Floats = NDArray[np.floating[Any]]
Raw = NDArray[Any]

STORED: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    # The upper half of a float32.
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("<i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("<u1"),
    "BOOL": np.dtype("?"),
}
"""Name in safetensors files -> numpy's type with the same bytes."""

FLOATS = ("F64", "F32", "BF16", "F16")
"""Types that can be mixed, the most precise first."""


def stored_type(name: str) -> np.dtype[Any]:
    """Return numpy's type for a type of safetensors.

    Raises:
        CheckpointError: Tensors of that type cannot be mixed.
    """
    if name not in STORED:
        raise CheckpointError(
            f"tensors of type {name} cannot be mixed; expected one of {', '.join(STORED)}."
            " Quantised models are mixed before they are quantised"
        )
    return STORED[name]


def is_float(name: str) -> bool:
    """Whether a type of safetensors is one of fractions."""
    return name in FLOATS


def to_floats(raw: Raw, name: str) -> Floats:
    """Return stored numbers as float32; float64 stays."""
    if name == "BF16":
        halves = np.zeros(2 * raw.size, dtype="<u2")
        halves[1::2] = raw.reshape(-1)
        return halves.view("<f4")
    return raw.reshape(-1) if name in ("F32", "F64") else raw.reshape(-1).astype(np.float32)


def all_finite(raw: Raw, name: str) -> bool:
    """Whether no stored number is infinite or undefined."""
    if name == "BF16":
        exponent = np.uint16(0x7F80)
        return not ((raw & exponent) == exponent).any()
    return bool(np.isfinite(raw).all())


def to_stored(values: Floats, name: str) -> Raw:
    """Round to a stored type, to the nearest and ties to even; too large a number gets infinite."""
    if name != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(STORED[name], copy=False)
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    odd = bits >> np.uint32(16)
    odd &= np.uint32(1)
    odd += np.uint32(0x7FFF)
    odd += bits
    return np.ascontiguousarray(odd.view("<u2")[1::2])
