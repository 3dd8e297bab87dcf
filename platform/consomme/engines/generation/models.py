"""Which model an engine runs: where any machine finds it, and what its content is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from consomme.base.secrets import named
from consomme.engines.generation.registry import EngineChoice
from consomme.storage.model_files import ADAPTER
from consomme.storage.model_folder import model_folder, model_hash, portable_path


@dataclass(frozen=True, kw_only=True)
class EngineModel:
    """A model, and the adapter that an engine merges into it."""

    model: str
    """Where any node finds the model, as `portable_path` has it, or its name on a server."""

    adapter: str | None
    """Where any node finds the adapter."""

    marks: Mapping[str, str]
    """Fingerprints of both, by `model` and `adapter`, as inputs of a run."""

    @property
    def model_hash(self) -> str:
        """Hash of the content, adapter included; or the name and the server's URL."""
        return self.marks["model"]

    def local(self, engine: EngineChoice) -> tuple[str, EngineChoice]:
        """Bring both to this machine.

        Returns:
            The folder of the model, or its name on a server; and the engine, with the folder of the
            adapter.
        """
        path = self.model if engine.is_remote else model_folder(self.model)
        if self.adapter is None:
            return path, engine
        # Engines without weights here have no adapter either.
        folder = model_folder(self.adapter, kind=ADAPTER)
        return path, replace(cast("Any", engine), adapter=folder)


def find_model(model: str, engine: EngineChoice) -> EngineModel:
    """Find the model and adapter that an engine runs, and hash their content."""
    if engine.is_remote:
        marks = {"model": f"{named(model)} at {named(cast('Any', engine).url)}"}
        return EngineModel(model=model, adapter=None, marks=marks)
    model = portable_path(model)
    marks = {"model": model_hash(model)}
    own_adapter = cast("Any", engine).adapter
    adapter = portable_path(own_adapter, ADAPTER) if own_adapter else None
    if adapter:
        marks["adapter"] = model_hash(adapter, kind=ADAPTER)
        marks["model"] += "+" + marks["adapter"]
    return EngineModel(model=model, adapter=adapter, marks=marks)
