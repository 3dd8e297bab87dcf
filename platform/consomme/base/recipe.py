"""Load a recipe: a YAML file that becomes a frozen dataclass, with all problems reported at once.

OmegaConf reads the file, applies dotted overrides and resolves `${…}`, of keys and of `oc.env`;
`consomme.base.schema` checks and converts the values. Relative paths in a recipe are relative to
the current directory; `package://x/y` is a file in the consomme package (storage resolves it).
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from consomme.base.errors import RecipeError
from consomme.base.schema import (
    StrategyParser,
    added,
    default_of,
    is_added,
    is_keyed,
    is_located,
    is_runtime,
    located,
    parse,
    registry_of,
    runtime,
    strategy,
    to_plain,
)
from consomme.base.secrets import (
    REDACTED,
    SecretText,
    conceal,
    from_environment,
    stable,
    written,
)
from consomme.base.suggest import did_you_mean

__all__ = [
    "added",
    "check_recipe",
    "fingerprint",
    "load_recipe",
    "load_values",
    "located",
    "recipe_problems",
    "runtime",
    "strategy",
    "strategy_identity",
    "to_plain",
    "to_written",
    "to_yaml",
]

T = TypeVar("T")
_NO_DEFAULT: Any = object()


def load_recipe(schema: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read a recipe file, apply overrides, and check it.

    Args:
        schema: The recipe's dataclass.
        path: The YAML file.
        overrides: `key=value` texts; `keep.fraction=0.5` reaches into a node, `inputs=[a,b]`
            replaces a list, `keep={name: random}` replaces a whole node.

    Returns:
        The recipe, with the defaults of its strategies filled in.

    Raises:
        RecipeError: The file cannot be read, or anything in it is wrong; all problems at once.
    """
    values, problems = _read_values(Path(path), overrides)
    problems += _redacted(values)
    _find_modules(values, Path(path).parent)
    recipe, found = parse(schema, values)
    if problems or found:
        raise RecipeError.from_problems(str(path), [*problems, *found])
    return cast(T, recipe)


def _find_modules(values: Any, folder: Path) -> None:
    """Take modules that are not in the current directory from beside the recipe."""
    modules = values.get("modules") if isinstance(values, dict) else None
    if isinstance(modules, list):
        values["modules"] = [
            str(folder / one)
            if isinstance(one, str) and not Path(one).exists() and (folder / one).is_file()
            else one
            for one in modules
        ]


def load_values(path: str | Path) -> dict[str, Any]:
    """Read a recipe file as plain values, for a recipe that is based on another one.

    Raises:
        RecipeError: The file cannot be read.
    """
    return cast(dict[str, Any], _read_values(Path(path), ())[0])


def check_recipe(schema: type[T], values: Mapping[str, Any], where: str = "recipe") -> T:
    """Check plain values against a schema, as for a recipe nested in another one.

    Raises:
        RecipeError: Anything is wrong; all problems at once, each with its key path.
    """
    recipe, problems = parse(schema, values)
    if problems:
        raise RecipeError.from_problems(where, problems)
    return cast(T, recipe)


def recipe_problems(schema: type[Any], values: Any, path: str = "") -> list[str]:
    """List the problems of plain values, so that a caller can add its own."""
    return parse(schema, values, path)[1]


def to_yaml(recipe: Any) -> str:
    """Write a recipe with all defaults filled in; loading it gives the same recipe.

    What came from the environment is written as the expression, other secrets not at all.
    """
    import yaml

    return yaml.safe_dump(to_written(recipe), sort_keys=False, allow_unicode=True, width=100)


def to_written(recipe: Any) -> Any:
    """Return a recipe as plain values that may be written down; see `consomme.base.secrets`."""
    return written(to_plain(recipe))


def fingerprint(recipe: Any, inputs: Mapping[str, str]) -> str:
    """Hash what determines the output: runs with the same fingerprint have the same output.

    Fields declared with `runtime` or `located` are left out, at any depth and inside strategies;
    those declared with `added`, at their default. Integral floats and ints are hashed alike, so `1`
    and `1.0` in a YAML file make no difference.
    Secrets do not count, so a run with another password is the same run.

    Args:
        recipe: A recipe dataclass.
        inputs: Fingerprints of the run's inputs, by name; among them one for each `located` field
            that is set.

    Returns:
        Eight hexadecimal digits.
    """
    content = {"recipe": _hashable(recipe), "inputs": dict(inputs)}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def strategy_identity(registry: StrategyParser, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a strategy's node says that determines the output; see `fingerprint`."""
    found: dict[str, Any] = _hashable_node(registry, node, "")
    return found


def _hashable(value: Any, key: str = "") -> Any:
    """Return plain values without runtime fields and secrets."""
    if isinstance(value, str):
        return stable(value, key)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _hashable_strategy(field, getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
            and not (is_runtime(field) or is_located(field))
            and not (is_added(field) and _is_default(field, getattr(value, field.name)))
        }
    if isinstance(value, Mapping):
        return {str(name): _hashable(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hashable(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _is_default(field: "dataclasses.Field[Any]", value: Any) -> bool:
    """Whether a value counts like the default of its field, in which it may differ by options."""
    default = default_of(field)
    if isinstance(value, list | tuple) and isinstance(default, list | tuple):
        return list(value) == list(default)
    if value == default:
        return True
    if registry_of(field) is not None and value is not None and default is not None:
        return bool(_hashable_strategy(field, value) == _hashable_strategy(field, default))
    return dataclasses.is_dataclass(value) and _hashable(value) == _hashable(default)


def _hashable_strategy(field: "dataclasses.Field[Any]", value: Any) -> Any:
    registry = registry_of(field)
    if registry is None or value is None:
        return _hashable(value, field.name)
    if is_keyed(field):
        return {key: _hashable_node(registry, node, field.name) for key, node in value.items()}
    if isinstance(value, list | tuple):
        return [_hashable_node(registry, node, field.name) for node in value]
    return _hashable_node(registry, value, field.name)


def _hashable_node(registry: StrategyParser, node: Any, path: str) -> Any:
    built, problems = registry.parse(node, path)
    if problems:
        raise RecipeError.from_problems(path, problems)
    return {"name": node["name"], **_hashable(built)}


def _read_values(path: Path, overrides: Sequence[str]) -> tuple[Any, list[str]]:
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        near = did_you_mean(path.name, [item.name for item in folder.glob("*.yaml")])
        raise RecipeError(f"{path}: no such recipe file{near}")
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(config, DictConfig):
        raise RecipeError(f"{path}: found a list, expected keys and values at the top")
    problems = []
    for text in overrides:
        problem = _override(config, text)
        problems += [problem] if problem else []
    try:
        return conceal(_resolved(config)), problems
    except OmegaConfBaseException as error:
        reason = " ".join(str(error).splitlines()[0].split())
        raise RecipeError.from_problems(str(path), [*problems, reason]) from error


def _resolved(config: Any) -> Any:
    """Resolve `${…}`; a text that holds a part of the environment becomes a `SecretText`."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    read: dict[str, str] = {}

    def env(name: str, default: Any = _NO_DEFAULT) -> Any:
        value = oc.env(name) if default is _NO_DEFAULT else oc.env(name, default)
        if name in os.environ:
            read[name] = os.environ[name]
        return value

    def walk(raw: Any, node: Any, key: str) -> Any:
        if isinstance(raw, Mapping):
            return {name: walk(item, _child(node, name), str(name)) for name, item in raw.items()}
        if isinstance(raw, list):
            return [walk(item, _child(node, number), key) for number, item in enumerate(raw)]
        if not isinstance(raw, str) or "${" not in raw:
            return raw
        read.clear()
        value = _plain(node)
        variables = dict(read)
        return _from_variables(value, raw, variables, key) if variables else value

    raw = OmegaConf.to_container(config, resolve=False)
    OmegaConf.register_resolver("oc.env", env, replace=True)
    try:
        return walk(raw, lambda: config, "")
    finally:
        OmegaConf.register_resolver("oc.env", oc.env, replace=True)


def _child(node: Callable[[], Any], key: Any) -> Callable[[], Any]:
    return lambda: node()[key]


def _plain(node: Callable[[], Any]) -> Any:
    """Resolve one node."""
    from omegaconf import OmegaConf

    value = node()
    is_node = OmegaConf.is_config(value)
    return OmegaConf.to_container(value, resolve=True) if is_node else value


def _from_variables(value: Any, raw: str, variables: Mapping[str, str], key: str) -> Any:
    """Wrap all texts in a value that was made of environment variables."""
    if isinstance(value, Mapping):
        return {
            name: _from_variables(item, "", variables, str(name)) for name, item in value.items()
        }
    if isinstance(value, list):
        return [_from_variables(item, "", variables, key) for item in value]
    if not isinstance(value, str):
        return value
    # A reference to another key means nothing in a recipe of its own, such as that of a stage.
    if not raw or re.search(r"\$\{(?!oc\.)", raw):
        raw = value
        for name, part in variables.items():
            raw = raw.replace(part, f"${{oc.env:{name}}}") if part else raw
        variables = {name: part for name, part in variables.items() if part and part in value}
    return from_environment(value, raw, variables, key) if variables else value


def _redacted(values: Any, path: str = "") -> list[str]:
    """Name the keys of a stored recipe whose secrets were not stored."""
    if isinstance(values, Mapping):
        pairs = [(f"{path}.{key}" if path else str(key), item) for key, item in values.items()]
    elif isinstance(values, list):
        pairs = [(f"{path}[{number}]", item) for number, item in enumerate(values)]
    elif isinstance(values, str) and REDACTED in values:
        return [
            f"{path}: found {REDACTED}, which stands for a secret that was not stored; write it"
            " again, best as ${oc.env:NAME}"
        ]
    else:
        return []
    return [problem for where, item in pairs for problem in _redacted(item, where)]


def secret_in_override(text: str) -> bool:
    """Whether `key=value` holds a secret, and not an expression that is replaced by one."""
    key, _, value = text.partition("=")
    found = conceal(value, key.rpartition(".")[2])
    return isinstance(found, SecretText) and "${" not in value


def _override(config: Any, text: str) -> str | None:
    """Apply one `key=value`; return the problem, if there is one."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, equals, _ = text.partition("=")
    if not equals or not key.strip():
        return f"override {text!r}: expected key=value"
    try:
        parsed = OmegaConf.from_dotlist([f"value={text.partition('=')[2]}"])
        value = OmegaConf.to_container(parsed, resolve=False)
        OmegaConf.update(config, key.strip(), cast(dict[str, Any], value)["value"], merge=False)
    except (OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError, IndexError) as error:
        return f"override {text!r}: {' '.join(str(error).split())}"
    return None
