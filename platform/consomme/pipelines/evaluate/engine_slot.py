"""Hold the engine of one model at a time, for units that are answered at the same time.

An actor answers several units at once, so that an engine's batches stay full. At the border between
two models, units of the next one wait until those of the one before are answered.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consomme.storage.ledger.run_folder import RunFolder

if TYPE_CHECKING:
    from consomme.pipelines.evaluate.asked import Asked


@dataclass(frozen=True, kw_only=True)
class _NoLoad:
    running: int = 0
    waiting: int = 0


class EngineSlot:
    """Opens engines, one at a time."""

    def __init__(
        self, engine: Mapping[str, Any], template: Mapping[str, Any], folder: RunFolder
    ) -> None:
        """Start without an engine.

        Args:
            engine: Node of the recipe.
            template: Options of the models' chat templates.
            folder: Of the run; the results of self-checks are written there.
        """
        self._engine, self._template, self._folder = dict(engine), dict(template), folder
        self._changed = threading.Condition()
        self._key: tuple[str, bool] | None = None
        self._opened: Any = None
        self._writer: Any = None
        """The same model to write, beside an opened one that scores."""

        self._num_users = 0
        self._scoring = threading.Lock()

    @contextlib.contextmanager
    def use(self, asked: Asked) -> Iterator[Any]:
        """Give the engine that answers: one that writes, or one that scores, to one user only."""
        key = asked.engine_key
        with self._changed:
            self._changed.wait_for(lambda: self._key == key or not self._num_users)
            if self._key != key:
                self._close()
                self._opened, self._key = self._open(asked), key
            self._num_users += 1
        try:
            # Scorers take one caller at a time.
            with contextlib.nullcontext() if asked.is_written else self._scoring:
                yield self._opened
        finally:
            with self._changed:
                self._num_users -= 1
                self._changed.notify_all()

    def queue_load(self) -> Any:
        """Return how busy the engine is, if there is one that writes."""
        opened = self._opened
        return opened.queue_load() if hasattr(opened, "queue_load") else _NoLoad()

    def writer(self, asked: Asked) -> Any:
        """Return the engine that writes with the model in use; beside one that scores, a second.

        Boxes of the model's own guide likelihoods: then its weights are in memory twice.
        """
        if asked.is_written:
            return self._opened
        if self._writer is None:
            self._writer = self._open(asked, writes=True)
        return self._writer

    def _close(self) -> None:
        opened = [one for one in (self._opened, self._writer) if hasattr(one, "close")]
        self._opened = self._writer = self._key = None
        while opened:
            opened.pop().close()
        gc.collect()

    def _open(self, asked: Asked, *, writes: bool = False) -> Any:
        from consomme.curate.perplexity import token_nll
        from consomme.engines.generation.registry import GENERATION_ENGINES
        from consomme.engines.generation.requests import Sampling

        path, engine = asked.model.local(GENERATION_ENGINES.build(self._engine, "engine"))
        model_hash = asked.model.model_hash
        opened: Any
        if asked.is_written or writes:
            # Each request says how long its answer may be.
            opened = engine(path, Sampling(), model_hash=model_hash, template=self._template)
        else:
            opened = engine.open_scorer(
                path, token_nll, model_hash=model_hash, template=self._template
            )
        self._folder.keep_self_check(opened, model_hash)
        return opened
