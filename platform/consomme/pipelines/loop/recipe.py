"""The recipe of `loop`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from consomme.base.checked import rule
from consomme.pipelines.loop.chain import LoopChain
from consomme.pipelines.loop.steps import round_problems, step_problems


@dataclass(frozen=True, kw_only=True)
class LoopRecipe(LoopChain):
    """A chain of stages, optionally with rounds."""

    @rule
    def _steps(self) -> Iterator[str]:
        yield from dict.fromkeys(step_problems(self))

    @rule
    def _rounds(self) -> Iterator[str]:
        if self.rounds:
            yield from round_problems(self, self.rounds)
