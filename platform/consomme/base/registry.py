"""Registries of named strategies: build an object from the recipe node `{name: …, parameter: …}`.

A strategy is a frozen dataclass whose fields are its YAML keys, so building the object checks the
recipe. A registry is filled by importing the modules that define its strategies.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

from consomme.base.errors import RecipeError
from consomme.base.own_modules import claim, unpacked
from consomme.base.schema import parse
from consomme.base.suggest import did_you_mean

T = TypeVar("T")
C = TypeVar("C")


class Registry(Generic[T]):
    """All strategies of one kind, by the name used in recipes.

    Args:
        kind: Kind of strategy for messages, such as `"keep policy"`.
        module: File that defines them, for messages, such as `"consomme/curate/keep/policy.py"`.
        needed: Attributes and methods that a class of a user has to have.
    """

    def __init__(self, kind: str, module: str = "", needed: Sequence[str] = ()) -> None:
        self.kind = kind
        self.module = module
        self.needed = tuple(needed)
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[C]], type[C]]:
        """Register a frozen dataclass under `name`.

        Raises:
            TypeError: The class is not a dataclass, or the name is taken; both are our own bugs.
            RecipeError: A user's module takes a name that exists, or its class lacks something.
        """

        def add(cls: type[C]) -> type[C]:
            if not dataclasses.is_dataclass(cls):
                raise TypeError(f"{self.kind} {name!r}: {cls.__qualname__} is not a dataclass")
            is_taken = name in self._classes
            if claim(
                self.kind, name, is_taken=is_taken, forget=lambda: self._classes.pop(name, None)
            ):
                self._check_own(name, cls)
            elif is_taken and self._classes[name].__qualname__ != cls.__qualname__:
                raise TypeError(f"{self.kind} {name!r} is registered twice")
            self._classes[name] = cast(type[T], cls)
            return cls

        return add

    def _check_own(self, name: str, cls: type[Any]) -> None:
        known = {one.name for one in dataclasses.fields(cls)}
        missing = [one for one in self.needed if one not in known and not hasattr(cls, one)]
        if missing:
            raise RecipeError(
                f"registers the {self.kind} {name!r}, whose {cls.__qualname__} has no"
                f" {', no '.join(missing)}"
            )

    def build(self, node: Mapping[str, Any], path: str = "") -> T:
        """Build the strategy that a recipe node describes.

        Args:
            node: `{"name": …, parameter: …}`.
            path: Key path of the node, for messages.

        Raises:
            RecipeError: Unknown name, unknown or missing parameter, wrong type, value out of
                bounds, broken rule; all problems at once.
        """
        built, problems = self.parse(node, path)
        if problems:
            raise RecipeError.from_problems(path or self.kind, problems)
        return cast(T, built)

    def names(self) -> list[str]:
        """List the registered names, sorted."""
        return sorted(self._classes)

    def get(self, name: str) -> type[T]:
        """Return the class registered under `name`."""
        return self._classes[name]

    def problems(self, node: Any, path: str = "") -> list[str]:
        """List the problems of a recipe node, one sentence each; empty if it can be built."""
        return self.parse(node, path)[1]

    def parse(self, node: Any, path: str = "") -> tuple[T | None, list[str]]:
        """Build the strategy, or list all problems of its node."""
        where = path or self.kind
        if isinstance(node, str) and node in self._classes:
            return None, [f"{where}: found {node!r}, expected a mapping; write {{name: {node}}}"]
        if not isinstance(node, Mapping):
            return None, [f"{where}: found {node!r}, expected {{name: …}} with {self._choices()}"]
        try:
            node = unpacked(node)
        except RecipeError as error:
            return None, [f"{where}: {error}"]
        name = node.get("name")
        if name is None:
            return None, [f"{where}.name: missing; expected {self._choices()}"]
        if name not in self._classes:
            hint = did_you_mean(str(name), self._classes)
            message = f"{where}.name: unknown {self.kind} {name!r}{hint}"
            return None, [message if hint else f"{message}; expected {self._choices()}"]
        rest = {key: value for key, value in node.items() if key != "name"}
        built, problems = parse(self._classes[name], rest, path)
        return cast("T | None", built), problems

    def _choices(self) -> str:
        see = f" (see {self.module})" if self.module else ""
        return f"one of {', '.join(self.names()) or 'no strategies at all'}{see}"
