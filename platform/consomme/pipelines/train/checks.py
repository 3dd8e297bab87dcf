"""What is checked in a train recipe across its keys, before Ray starts."""

from __future__ import annotations

from consomme.base.errors import RecipeError
from consomme.train.parts import Trainability


def _check_adapter(parts: Trainability) -> None:
    """See to it that what was learned can be kept apart, before it is learned."""
    states = {
        name: part
        for name, part in parts.resolved(is_whole=False).items()
        if part.state != "frozen"
    }
    others = {name: part.state for name, part in states.items() if part.state != "lora"}
    shapes = {(part.rank, part.alpha) for part in states.values()}
    if not states or others or len(shapes) > 1:
        found = ", ".join(
            f"{name}: {part.state}" + (f" of rank {part.rank}" if part.has_adapters else "")
            for name, part in states.items()
        )
        raise RecipeError(
            f"save_adapter: an adapter is all that differs from the start only if every trained"
            f" part is lora, with one rank and alpha; found {found or 'nothing trained'}. Freeze"
            " the others, or take model/, which holds everything"
        )
