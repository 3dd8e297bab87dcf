"""Load a recipe: a YAML file that becomes a frozen dataclass, with all problems reported at once.

OmegaConf reads the file, applies dotted overrides and resolves `${…}`, of keys and of `oc.env`;
`consomme.base.schema` checks and converts the values. Relative paths in a recipe are relative to
the current directory; `package://x/y` is a file in the consomme package (storage resolves it).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from consomme.base.errors import RecipeError
from consomme.base.schema import (
    StrategyParser,
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
from consomme.base.suggest import did_you_mean

__all__ = [
    "check_recipe",
    "fingerprint",
    "load_recipe",
    "load_values",
    "located",
    "recipe_problems",
    "runtime",
    "strategy",
    "to_plain",
    "to_yaml",
]

T = TypeVar("T")


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
    recipe, found = parse(schema, values)
    if problems or found:
        raise RecipeError.from_problems(str(path), [*problems, *found])
    return cast(T, recipe)


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
    """Write a recipe with all defaults filled in; loading it gives the same recipe."""
    import yaml

    return yaml.safe_dump(to_plain(recipe), sort_keys=False, allow_unicode=True, width=100)


def fingerprint(recipe: Any, inputs: Mapping[str, str]) -> str:
    """Hash what determines the output: runs with the same fingerprint have the same output.

    Fields declared with `runtime` or `located` are left out, at any depth and inside strategies.
    Integral floats and ints are hashed alike, so `1` and `1.0` in a YAML file make no difference.

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


def _hashable(value: Any) -> Any:
    """Return plain values without runtime fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _hashable_strategy(field, getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init and not (is_runtime(field) or is_located(field))
        }
    if isinstance(value, Mapping):
        return {str(key): _hashable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hashable(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _hashable_strategy(field: "dataclasses.Field[Any]", value: Any) -> Any:
    registry = registry_of(field)
    if registry is None or value is None:
        return _hashable(value)
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
        return OmegaConf.to_container(config, resolve=True), problems
    except OmegaConfBaseException as error:
        reason = " ".join(str(error).splitlines()[0].split())
        raise RecipeError.from_problems(str(path), [*problems, reason]) from error


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
