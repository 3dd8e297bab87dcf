"""Layers rotate only where they can."""

from typing import Any

import pytest

from consomme.base.errors import RecipeError
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.train.parts import Part

ROTATING = {"name": "rotating", "every_steps": 2}


def recipe(**changes: Any) -> TrainRecipe:
    return TrainRecipe(
        name="x", model="m", data=(TrainSource(inputs=("a.tar",)),), layers=ROTATING, **changes
    )


@pytest.mark.parametrize("parallelism", [{"name": "ddp"}, {"name": "fsdp2"}])
def test_layers_rotate_with_parallelisms_that_can(parallelism: dict[str, Any]) -> None:
    assert recipe(parallelism=parallelism).layers == ROTATING


def test_what_cannot_rotate_is_refused_with_all_reasons() -> None:
    with pytest.raises(RecipeError) as refused:
        recipe(
            parallelism={"name": "deepspeed"}, language_model=Part(state="lora", rank=2, alpha=4)
        )
    assert "language_model.state is lora, but rotating layers are trained in full" in str(
        refused.value
    )
    assert "deepspeed fixes the trained parameters at the start" in str(refused.value)
