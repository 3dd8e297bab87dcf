"""Generate the help of a recipe's keys from its schema, so that help and code always agree."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from consomme.base.bounds import hints_of
from consomme.base.registry import Registry
from consomme.base.schema import default_of, is_keyed, registry_of, to_plain, type_name


def field_docs(schema: type[Any]) -> dict[str, str]:
    """Read the docstring beneath each field of a dataclass, base classes included.

    Returns:
        Text by field name; fields without a docstring, or without source, are left out.
    """
    docs: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                docs[field.target.id] = inspect.cleandoc(text.value.value)
    return docs


def describe(schema: type[Any], indent: str = "") -> str:
    """Explain every key of a schema: type, bounds, default, meaning, and available strategies.

    Args:
        schema: A recipe's dataclass.
        indent: Prefix of each line.
    """
    return "\n".join(_describe(schema, indent, ()))


def _describe(schema: type[Any], indent: str, inside: tuple[Registry[Any], ...]) -> Iterator[str]:
    """Explain a schema; `inside` are the registries of the strategies that contain it."""
    hints, docs = hints_of(schema), field_docs(schema)
    for field in dataclasses.fields(schema):
        if not field.init:
            continue
        registry = registry_of(field)
        kind = "strategy" if registry is not None else type_name(hints[field.name])
        if get_origin(hints[field.name]) in (list, tuple) and registry is not None:
            kind = "list[strategy]"
        if is_keyed(field):
            kind = "dict[str, strategy]"
        default = default_of(field)
        nested = _nested(hints[field.name])
        if default is dataclasses.MISSING:
            ending = "  (required)"
        elif nested is not None and dataclasses.is_dataclass(default):
            ending = ""
        else:
            ending = f" = {_show(default)}"
        yield f"{indent}{field.name}: {kind}{ending}"
        yield from _paragraph(docs.get(field.name, ""), indent + "    ")
        if isinstance(registry, Registry):
            if registry in inside:
                yield f"{indent}    any {registry.kind} of this list"
            else:
                yield from _choices(registry, indent + "    ", inside)
        elif nested is not None:
            yield from _describe(nested, indent + "    ", inside)


def _choices(
    registry: Registry[Any], indent: str, inside: tuple[Registry[Any], ...]
) -> Iterator[str]:
    for name in registry.names():
        cls = registry.get(name)
        yield f"{indent}- name: {name}"
        yield from _paragraph((inspect.getdoc(cls) or "").partition("\n")[0], indent + "      ")
        yield from _describe(cls, indent + "  ", (*inside, registry))


def _nested(hint: Any) -> type[Any] | None:
    """Return the schema inside a type such as `Model`, `Model | None`, `list[Model]`."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint
    if get_origin(hint) in (Union, types.UnionType, list, tuple, dict):
        found = [_nested(part) for part in get_args(hint)]
        return next((part for part in found if part is not None), None)
    return None


def _paragraph(text: str, indent: str) -> list[str]:
    width = max(40, 96 - len(indent))
    return [indent + line for line in textwrap.wrap(" ".join(text.split()), width)]


def _show(value: Any) -> str:
    """Format a default value as YAML."""
    plain = to_plain(value)
    if plain is None or isinstance(plain, bool):
        return {None: "null", True: "true", False: "false"}[plain]
    if isinstance(plain, dict):
        return "{" + ", ".join(f"{key}: {_show(item)}" for key, item in plain.items()) + "}"
    if isinstance(plain, list):
        return "[" + ", ".join(_show(item) for item in plain) + "]"
    # Empty and multi-line strings need quotes.
    return repr(plain) if plain == "" or "\n" in str(plain) else str(plain)
