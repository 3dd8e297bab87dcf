"""Bounds of numbers in schemas: `num_steps: PositiveInt`, `share: Fraction`.

A bound is part of a field's type, so parsing, construction in Python and `--help` read the same
one. NaN and infinities are outside of every bound.
"""

import math
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Interval

PositiveInt = Annotated[int, Interval(ge=1)]
NonNegativeInt = Annotated[int, Interval(ge=0)]
PositiveFloat = Annotated[float, Interval(gt=0)]
NonNegativeFloat = Annotated[float, Interval(ge=0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
PositiveFraction = Annotated[float, Interval(gt=0, le=1)]


def hints_of(schema: type[Any]) -> Mapping[str, Any]:
    """Return the types of a dataclass's fields, bounds included."""
    return get_type_hints(schema, include_extras=True)


def interval_of(hint: Any) -> Interval | None:
    """Return the bound of `Annotated[int, Interval(…)]`, or None."""
    metadata = getattr(hint, "__metadata__", ())
    return next((item for item in metadata if isinstance(item, Interval)), None)


def interval_text(interval: Interval) -> str:
    """Write a bound in words: `at least 1`, `0 to 1`, `more than 0 and at most 1`."""
    if interval.ge is not None and interval.le is not None:
        return f"{interval.ge} to {interval.le}"
    limits = (
        ("more than", interval.gt),
        ("at least", interval.ge),
        ("below", interval.lt),
        ("at most", interval.le),
    )
    return " and ".join(f"{words} {limit}" for words, limit in limits if limit is not None)


def bound_problems(hint: Any, value: Any, path: str) -> Iterator[str]:
    """Say which numbers in a field are outside of their bounds.

    Args:
        hint: The field's type; containers are checked element by element. Schemas inside it check
            themselves.
        value: The field's value, of that type.
        path: Key path of the field, for messages.
    """
    yield from _problems(hint, value, path, or_null=False)


def _problems(hint: Any, value: Any, path: str, *, or_null: bool) -> Iterator[str]:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        yield from _number_problems(args[0], interval_of(hint), value, path, or_null=or_null)
    elif hint in (int, float):
        yield from _number_problems(hint, None, value, path, or_null=or_null)
    elif origin in (Union, types.UnionType):
        for part in args:
            yield from _problems(part, value, path, or_null=type(None) in args)
    elif origin is dict and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _problems(args[1], item, f"{path}.{key}", or_null=False)
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        hints = [args[0]] * len(value) if origin is list or Ellipsis in args else list(args)
        for index, (part, item) in enumerate(zip(hints, value, strict=False)):
            yield from _problems(part, item, f"{path}[{index}]", or_null=False)


def _number_problems(
    kind: Any, interval: Interval | None, value: Any, path: str, *, or_null: bool
) -> Iterator[str]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind not in (int, float) or not is_number:
        return
    if isinstance(value, float) and not math.isfinite(value):
        expected = "a finite number" + (f", {interval_text(interval)}" if interval else "")
    elif interval is not None and not _is_inside(interval, value):
        expected = interval_text(interval)
    else:
        return
    yield f"{path}: found {value}, expected {expected}{', or null' if or_null else ''}"


def _is_inside(interval: Interval, value: Any) -> bool:
    """Whether a number satisfies each limit there is."""
    return bool(
        (interval.gt is None or value > interval.gt)
        and (interval.ge is None or value >= interval.ge)
        and (interval.lt is None or value < interval.lt)
        and (interval.le is None or value <= interval.le)
    )
