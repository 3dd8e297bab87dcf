"""A model whose family does not support a verb stops it at load; no sample is rejected for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.families import write
from tests.support.new_families import florence2
from tests.support.table_families import blip2

from consomme.base.errors import CheckpointError
from consomme.base.manifest import Manifest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FAULTS: dict[str, tuple[Callable[[], tuple[Any, Any]], str]] = {
    "processor": (blip2, "changes the tokens of a conversation after its tokenizer"),
    "structure": (florence2, "with an encoder and a decoder of text"),
}
VERBS = ("score", "recaption", "tag", "train", "evaluate")


def run_verb(verb: str, root: str, data: str, model: str) -> Manifest:
    """Run a verb on a few samples with a model."""
    inputs = (f"{data}/data",)
    if verb == "score":
        from consomme.pipelines.score import run as score
        from consomme.pipelines.score.recipe import ScoreRecipe

        return score.run(ScoreRecipe(name="x", root=root, inputs=inputs, model=model))
    if verb == "recaption":
        from consomme.pipelines.recaption import run as recaption
        from consomme.pipelines.recaption.recipe import RecaptionRecipe

        return recaption.run(RecaptionRecipe(name="x", root=root, inputs=inputs, model=model))
    if verb == "tag":
        from consomme.pipelines.tag import run as tag
        from consomme.pipelines.tag.recipe import TagRecipe

        taggers = ({"name": "embedding", "model": model},)
        return tag.run(TagRecipe(name="x", root=root, inputs=inputs, taggers=taggers))
    if verb == "train":
        from consomme.pipelines.train import run as train
        from consomme.pipelines.train.recipe import TrainRecipe, TrainSource

        recipe = TrainRecipe(
            name="x", root=root, model=model, data=(TrainSource(inputs=inputs),), num_steps=1,
            global_batch=2, num_workers=1,
        )  # fmt: skip
        return train.run(recipe)
    from consomme.pipelines.evaluate import run as evaluate
    from consomme.pipelines.evaluate.recipe import EvaluateRecipe

    benchmarks = ({"name": "scene_questions", "num": 4},)
    return evaluate.run(
        EvaluateRecipe(name="x", root=root, models={"m": model}, benchmarks=benchmarks)
    )


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", ["processor", pytest.param("structure", marks=pytest.mark.long)])
def test_a_fault_of_the_family_stops_at_load(
    verb: str, fault: str, pairs: Manifest, tmp_path: Path
) -> None:
    build, message = FAULTS[fault]
    folder = write(build, tmp_path / "model")
    root = tmp_path / "runs"
    with pytest.raises(CheckpointError, match=message):
        run_verb(verb, str(root), pairs.url, str(folder))
    rejects = [path for path in root.rglob("*") if "reject" in path.name and path.stat().st_size]
    assert rejects == []
    assert not list(root.rglob("manifest.json"))
