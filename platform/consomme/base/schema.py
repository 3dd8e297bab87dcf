"""Typed schemas: turn plain values of a YAML file into frozen dataclasses, or say what is wrong.

A schema is a dataclass whose fields are bool, int, float, str, `Literal`, `| None`, list, tuple,
dict, or another schema. Conversion is strict (the text "3" is not a number) and reports all
problems: types, bounds (`consomme.base.bounds`) and rules across fields (`consomme.base.checked`).
`consomme.base.recipe` reads files and overrides; each registry knows its strategies.
"""

import copy
import dataclasses
import importlib
import types
from collections.abc import Iterable, Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from consomme.base.bounds import bound_problems, hints_of, interval_of, interval_text
from consomme.base.checked import WRONG, is_usable, rule_problems
from consomme.base.errors import ConsommeError, RecipeError
from consomme.base.own_modules import module_problems
from consomme.base.suggest import did_you_mean

_REGISTRY = "consomme.registry"
_KEYED = "consomme.keyed"
_RUNTIME = "consomme.runtime"
_LOCATED = "consomme.located"
_ADDED = "consomme.added"
_MODULES = "consomme.modules"
_NO_DEFAULT: Any = object()


class StrategyParser(Protocol):
    """The part of `consomme.base.registry.Registry` that a schema uses."""

    def parse(self, node: Any, path: str) -> tuple[Any, list[str]]:
        """Build the strategy that a node describes, and list the node's problems."""
        ...


def strategy(
    registry: str,
    *,
    default: Any = _NO_DEFAULT,
    keyed: bool = False,
    was_added: bool = False,
) -> Any:
    """Declare a `dict[str, Any]` field that holds a strategy's registered name and parameters.

    A list field holds several strategies; a `keyed` field maps keys to strategies. The registry is
    imported when a recipe is checked, not when the schema is defined.

    Args:
        registry: `"module:NAME"` of the registry, as in
            `"consomme.curate.keep.registry:KEEP_POLICIES"`.
        default: Node (or list of nodes, or None) to use if the recipe does not set the field;
            without a default the field is required. A recipe that sets `name` replaces the default
            node; one that sets only parameters changes those and keeps the others.
        keyed: Whether the field maps keys that the user chooses to strategies.
        was_added: Whether recipes did not have the field before; see `added`.
    """
    return _field(default, {_REGISTRY: registry, _KEYED: keyed, _ADDED: was_added})


def runtime(default: Any) -> Any:
    """Declare a field that changes how a run executes but not its output (workers, threads).

    Such fields are not part of the fingerprint: a run may resume with more workers.
    """
    return _field(default, {_RUNTIME: True})


def located(default: Any = _NO_DEFAULT) -> Any:
    """Declare a field that says where something lies that a run reads.

    Such fields are not part of the fingerprint either, which has what lies there instead: the verb
    names it among the run's inputs. So data that are moved stay the same data.
    """
    return _field(default, {_LOCATED: True})


def own_modules() -> Any:
    """Declare a field with the user's modules that register what other fields name.

    They are loaded before the other fields are read. The verb names their contents among the run's
    inputs; see `consomme.base.own_modules`.
    """
    return _field((), {_LOCATED: True, _MODULES: True})


def added(default: Any) -> Any:
    """Declare a field that recipes did not have before: at its default, the output is as before.

    Then it is not part of the fingerprint, so that runs of before are still found done.
    """
    return _field(default, {_ADDED: True})


def is_added(field: "dataclasses.Field[Any]") -> bool:
    """Return whether a field was declared with `added`."""
    return bool(field.metadata.get(_ADDED))


def is_located(field: "dataclasses.Field[Any]") -> bool:
    """Return whether a field was declared with `located`."""
    return bool(field.metadata.get(_LOCATED))


def is_runtime(field: "dataclasses.Field[Any]") -> bool:
    """Return whether a field was declared with `runtime`."""
    return bool(field.metadata.get(_RUNTIME))


def is_keyed(field: "dataclasses.Field[Any]") -> bool:
    """Return whether a field maps keys to strategies."""
    return bool(field.metadata.get(_KEYED))


def registry_of(field: "dataclasses.Field[Any]") -> StrategyParser | None:
    """Import the registry of a field declared with `strategy`; None for any other field."""
    reference = field.metadata.get(_REGISTRY)
    if reference is None:
        return None
    module, _, attribute = str(reference).partition(":")
    return cast(StrategyParser, getattr(importlib.import_module(module), attribute))


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """Return a fresh copy of a field's default, or `dataclasses.MISSING`."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def parse(schema: type[Any], values: Any, path: str = "") -> tuple[Any, list[str]]:
    """Build `schema` from plain values.

    Args:
        schema: A dataclass.
        values: Content of the YAML node; should be a mapping.
        path: Key path of the node, used in messages; empty at the top.

    Returns:
        The dataclass (None if there is any problem) and the problems, one sentence each.
    """
    built, problems = _parse(schema, values, path)
    return (None if problems else built), problems


def _parse(schema: type[Any], values: Any, path: str) -> tuple[Any, list[str]]:
    """Build a dataclass; with problems, it is `WRONG` or an instance without its wrong fields."""
    if not isinstance(values, Mapping):
        return WRONG, [f"{path or 'recipe'}: found {_show(values)}, expected keys and values"]
    hints = get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema) if field.init}
    problems = [
        f"{_join(path, str(key))}: unknown key{did_you_mean(str(key), fields)}"
        for key in values
        if key not in fields
    ]
    for name in (name for name, field in fields.items() if field.metadata.get(_MODULES)):
        problems += module_problems(values.get(name), _join(path, name))
    arguments: dict[str, Any] = {}
    wrong: set[str] = set()
    for name, field in fields.items():
        given, where = values.get(name, _NO_DEFAULT), _join(path, name)
        arguments[name], found = _field_value(field, hints[name], given, where)
        out_of_bounds = list(bound_problems(hints_of(schema)[name], arguments[name], where))
        if out_of_bounds or not is_usable(arguments[name]):
            wrong.add(name)
        problems += [*found, *out_of_bounds]
    if problems:
        instance, broken = rule_problems(schema, arguments, wrong)
        return instance, problems + _with_path(path, broken)
    try:
        return schema(**arguments), []
    except RecipeError as error:
        return WRONG, _with_path(path, error.problems or [str(error)])
    except (ConsommeError, ValueError) as error:
        return WRONG, _with_path(path, [str(error)])


def _with_path(path: str, problems: Iterable[str]) -> list[str]:
    return [f"{path}: {problem}" if path else problem for problem in problems]


def type_name(hint: Any) -> str:
    """Write a type as a schema does, and its bounds in words: `int (at least 1) | None`."""
    if hint is type(None):
        return "None"
    if get_origin(hint) is Annotated:
        interval = interval_of(hint)
        bound = f" ({interval_text(interval)})" if interval else ""
        return f"{type_name(get_args(hint)[0])}{bound}"
    if get_origin(hint) is Literal:
        return " | ".join(repr(choice) for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(type_name(part) for part in get_args(hint))
    if get_args(hint):
        inner = ", ".join("..." if part is Ellipsis else type_name(part) for part in get_args(hint))
        return f"{get_origin(hint).__name__}[{inner}]"
    return getattr(hint, "__name__", str(hint))


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    if default is _NO_DEFAULT:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, list | dict | set):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _field_value(
    field: "dataclasses.Field[Any]", hint: Any, given: Any, path: str
) -> tuple[Any, list[str]]:
    default = default_of(field)
    if given is _NO_DEFAULT or (isinstance(given, str) and given == "???"):
        if default is dataclasses.MISSING:
            return WRONG, [f"{path}: missing; expected {type_name(hint)}"]
        given = default
    registry = registry_of(field)
    if registry is not None and is_keyed(field):
        return _keyed_strategies(registry, given, path)
    if registry is not None:
        return _strategies(registry, given, default, path)
    if given is default:
        return given, []
    return _value(hint, given, path)


def _strategies(
    registry: StrategyParser, given: Any, default: Any, path: str
) -> tuple[Any, list[str]]:
    """Check strategy nodes and fill in their defaults, so that the saved recipe is complete."""
    if given is None and default is None:
        return None, []
    if isinstance(given, list | tuple):
        pairs = [
            _strategies(registry, node, dataclasses.MISSING, f"{path}[{index}]")
            for index, node in enumerate(given)
        ]
        return [node for node, _ in pairs], [text for _, found in pairs for text in found]
    if isinstance(given, Mapping) and isinstance(default, Mapping) and "name" not in given:
        given = {**default, **given}
    built, problems = registry.parse(given, path)
    return (WRONG if problems else {"name": given["name"], **to_plain(built)}), problems


def _keyed_strategies(registry: StrategyParser, given: Any, path: str) -> tuple[Any, list[str]]:
    if not isinstance(given, Mapping):
        return WRONG, [f"{path}: found {_show(given)}, expected {{key: {{name: …}}, …}}"]
    pairs = {
        str(key): _strategies(registry, node, dataclasses.MISSING, _join(path, str(key)))
        for key, node in given.items()
    }
    problems = [text for _, found in pairs.values() for text in found]
    return {key: node for key, (node, _) in pairs.items()}, problems


def to_plain(value: Any) -> Any:
    """Convert schemas, tuples and mappings to the dicts, lists and scalars of YAML and JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def _value(hint: Any, value: Any, path: str) -> tuple[Any, list[str]]:
    """Convert one value to one type; containers go element by element."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return value, []
    if origin in (Union, types.UnionType):
        return _union(hint, value, path)
    if origin is Literal:
        return _literal(args, value, path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _parse(hint, value, path)
    if (origin or hint) in (list, tuple) and isinstance(value, list | tuple):
        return _sequence(hint, value, path)
    if (origin or hint) is dict and isinstance(value, Mapping):
        item_hint = args[1] if args else Any
        pairs = {
            str(key): _value(item_hint, item, _join(path, str(key))) for key, item in value.items()
        }
        problems = [text for _, found in pairs.values() for text in found]
        return {key: item for key, (item, _) in pairs.items()}, problems
    return _scalar(hint, value, path)


def _scalar(hint: Any, value: Any, path: str) -> tuple[Any, list[str]]:
    if isinstance(value, str) and value == "???":
        return WRONG, [f"{path}: missing; expected {type_name(hint)}"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int and is_number and (isinstance(value, int) or value.is_integer()):
        return int(value), []
    if hint is float and is_number:
        try:
            return float(value), []
        except OverflowError:
            return WRONG, [f"{path}: found a whole number too large for a float"]
    if hint is str and isinstance(value, int) and is_number:
        return str(value), []
    if hint in (bool, str) and isinstance(value, hint):
        return value, []
    return WRONG, [f"{path}: found {_show(value)}, expected {type_name(hint)}"]


def _literal(choices: tuple[Any, ...], value: Any, path: str) -> tuple[Any, list[str]]:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice, []
    hint = did_you_mean(str(value), [str(choice) for choice in choices])
    expected = ", ".join(repr(choice) for choice in choices)
    return WRONG, [f"{path}: found {value!r}, expected one of {expected}{hint}"]


def _union(hint: Any, value: Any, path: str) -> tuple[Any, list[str]]:
    args = get_args(hint)
    if value is None and type(None) in args:
        return None, []
    choices = [part for part in args if part is not type(None)]
    attempts = [_value(part, value, path) for part in choices]
    for converted, problems in attempts:
        if not problems:
            return converted, []
    likely = attempts if len(choices) == 1 else _likely(choices, attempts, value)
    if len(likely) == 1:
        return likely[0]
    return WRONG, [f"{path}: found {_show(value)}, expected {type_name(hint)}"]


def _likely(
    choices: list[Any], attempts: list[tuple[Any, list[str]]], value: Any
) -> list[tuple[Any, list[str]]]:
    """Return the attempts with schemas if a mapping is given: their problems say what is wrong."""
    pairs = zip(choices, attempts, strict=True)
    is_mapping = isinstance(value, Mapping)
    return [one for choice, one in pairs if is_mapping and dataclasses.is_dataclass(choice)]


def _sequence(hint: Any, value: Any, path: str) -> tuple[Any, list[str]]:
    args, make = get_args(hint), get_origin(hint) or hint
    if make is tuple and args and Ellipsis not in args:
        if len(value) != len(args):
            return WRONG, [f"{path}: found {len(value)} values, expected {len(args)}"]
        hints = list(args)
    else:
        hints = [args[0] if args else Any] * len(value)
    pairs = [
        _value(item_hint, item, f"{path}[{index}]")
        for index, (item_hint, item) in enumerate(zip(hints, value, strict=True))
    ]
    return make(item for item, _ in pairs), [text for _, found in pairs for text in found]


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _show(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"
