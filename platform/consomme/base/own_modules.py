"""Python files of a user that register benchmarks or metrics, and how they come to workers.

A recipe names them under `modules`. They are loaded where the recipe is checked. Whatever is sent
to a worker takes the text of the file along, so nodes need no common disk; what the file imports
has to be installed on all of them.
"""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consomme.base.errors import RecipeError

OWN_MODULE = "own_module"
"""Key of a strategy's node, on its way to a worker, with the module that registers it."""


@dataclass(frozen=True, kw_only=True)
class OwnModule:
    """One Python file."""

    path: str
    """As the recipe names it."""

    source: str
    """Its text."""

    @property
    def content(self) -> str:
        """Hash of its text."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def to_dict(self) -> dict[str, str]:
        """Return plain values, for nodes."""
        return {"path": self.path, "source": self.source}


@dataclass
class _Loaded:
    module: OwnModule
    name: str
    """In `sys.modules`."""

    forgets: list[Callable[[], Any]] = field(default_factory=list)
    """Take back each name that it has registered."""


_loaded: dict[str, _Loaded] = {}
"""By path: a file that was changed replaces what it was before."""

_loading: list[_Loaded] = []
_lock = threading.RLock()


def module_inputs(paths: Sequence[str]) -> dict[str, str]:
    """Load the modules of a recipe; return their contents as inputs of its run.

    Raises:
        RecipeError: One cannot be loaded, or registers nothing.
    """
    found = {}
    for number, path in enumerate(paths):
        key = f"modules[{number}]"
        try:
            found[key] = load_file(path).content
        except RecipeError as error:
            raise RecipeError(f"{key}: {error}") from error
    return found


def module_problems(paths: Any, where: str) -> list[str]:
    """Load the modules that a recipe names, and list what is wrong with them."""
    if not isinstance(paths, list | tuple):
        return []
    problems = []
    for number, path in enumerate(paths):
        try:
            if isinstance(path, str):
                load_file(path)
        except RecipeError as error:
            problems.append(f"{where}[{number}]: {error}")
    return problems


def load_file(path: str) -> OwnModule:
    """Read a file and load it.

    Raises:
        RecipeError: There is no such file; or see `load`.
    """
    file = Path(path)
    if file.suffix != ".py" or not file.is_file():
        raise RecipeError(
            f"found {path!r}, expected a Python file (.py) on this machine; workers get its text"
        )
    try:
        module = OwnModule(path=path, source=file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    load(module)
    return module


def load(module: OwnModule) -> None:
    """Run a module, unless it was run with this text before.

    Raises:
        RecipeError: It fails, registers nothing, or takes a name that exists.
    """
    with _lock:
        before = _loaded.get(module.path)
        if any(one.module.source == module.source for one in _loaded.values()):
            return
        if before is not None:
            _forget(before)
        stem = re.sub(r"\W", "_", Path(module.path).stem)
        loaded = _Loaded(module=module, name=f"consomme_own_{stem}_{module.content[:8]}")
        namespace = types.ModuleType(loaded.name)
        namespace.__file__ = module.path
        # Dataclasses look their modules up.
        sys.modules[loaded.name] = namespace
        _loading.append(loaded)
        try:
            exec(compile(module.source, module.path, "exec"), vars(namespace))
        except RecipeError as error:
            _forget(loaded)
            raise RecipeError(f"{module.path}: {error}") from error
        # Whatever a user's file raises, that it does is the user's to mend.
        except (Exception, SystemExit) as error:
            _forget(loaded)
            raise RecipeError(
                f"{module.path} fails to import{_line(error, module.path)}:"
                f" {type(error).__name__}: {error}"
            ) from error
        finally:
            _loading.pop()
        if not loaded.forgets:
            _forget(loaded)
            raise RecipeError(
                f"{module.path} registers nothing; expected a dataclass under"
                ' @BENCHMARKS.register("name"), or a function under @register_metric("name")'
            )
        _loaded[module.path] = loaded


def claim(kind: str, name: str, *, is_taken: bool, forget: Callable[[], Any]) -> bool:
    """Note that a name is being registered; whether that is by a user's module.

    Args:
        kind: What is registered, for messages.
        name: Its name.
        is_taken: Whether the name exists.
        forget: Takes the registration back.

    Raises:
        RecipeError: A user's module takes a name that exists.
    """
    if not _loading:
        return False
    if is_taken:
        raise RecipeError(f"registers the {kind} {name!r}, which exists; choose another name")
    _loading[-1].forgets.append(forget)
    return True


def own_module_of(defined: Any) -> OwnModule | None:
    """Return the user's module that defines a class or function; None if none does."""
    name = getattr(defined, "__module__", None)
    return next((one.module for one in _loaded.values() if one.name == name), None)


def unpacked(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Load the module that came with a node, and return the node without it.

    Raises:
        RecipeError: The module cannot be loaded here.
    """
    if OWN_MODULE not in node:
        return node
    load(OwnModule(**node[OWN_MODULE]))
    return {key: value for key, value in node.items() if key != OWN_MODULE}


def _forget(loaded: _Loaded) -> None:
    for forget in loaded.forgets:
        forget()
    sys.modules.pop(loaded.name, None)
    if _loaded.get(loaded.module.path) is loaded:
        del _loaded[loaded.module.path]


def _line(error: BaseException, path: str) -> str:
    """Say in which line of a file an error was raised."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = []
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == path:
            lines.append(step.tb_lineno)
        step = step.tb_next
    return f", line {lines[-1]}" if lines else ""
