"""Read which of its modules a class uses in a method, and in which order, from the method's code.

A model without weights can be asked too, and no picture or processor is needed: what is read is the
code that a forward pass would run.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType

from torch import nn


def names_used(owner: type, method: str) -> list[str]:
    """Return the attributes that a method reads, in order; methods it calls are followed.

    Names are read from whatever object has them, so some are not the owner's: compare them with the
    names of its modules.

    Args:
        owner: Class of a module.
        method: Name of a method; the list is empty if the class has none of this name.
    """
    return list(dict.fromkeys(_names(owner, method, set())))


def _names(owner: type, method: str, seen: set[str]) -> Iterator[str]:
    found = inspect.getattr_static(owner, method, None)
    found = found.fget if isinstance(found, property) else getattr(owner, method, None)
    function = inspect.unwrap(found) if callable(found) else None
    if method in seen or not inspect.isfunction(function):
        return
    seen.add(method)
    for name in _attributes(function.__code__):
        yield name
        if name not in seen and not hasattr(nn.Module, name):
            yield from _names(owner, name, seen)


def _attributes(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            yield str(instruction.argval)
        elif isinstance(instruction.argval, CodeType):
            # A comprehension or an inner function.
            yield from _attributes(instruction.argval)
