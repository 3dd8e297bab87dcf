"""vLLM's prompt log-probabilities are the scores of our own forward pass."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consomme.base.errors import CheckpointError
from consomme.base.sample import Turn
from consomme.curate.perplexity import token_nll
from consomme.datasets import scenes
from consomme.engines.scoring.requests import NotScored, Score, ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.engines.scoring.vllm import VLLMScorer
from consomme.engines.vllm_engine import EngineOptions
from consomme.storage.model_folder import model_folder

pytestmark = pytest.mark.vllm
LIMIT = 60


@pytest.fixture(scope="module")
def engine() -> Iterator[VLLMScorer]:
    folder = model_folder("package://models/nano")
    made = VLLMScorer(folder, max_caption_tokens=LIMIT, options=EngineOptions(kv_cache_gb=0.25))
    yield made
    made.close()


def questions() -> list[ScoringRequest]:
    found = []
    for number in range(6):
        scene = scenes.make_scene(700_000 + number)
        image = scenes.render(scene)
        found.append(ScoringRequest.of_caption("describe the image.", scenes.caption(scene), image))
        asked = scenes.questions(scene, number)[:2]
        turns = [
            turn
            for question in asked
            for turn in (
                Turn(role="user", content=question.question),
                Turn(role="assistant", content=question.answer),
            )
        ]
        found.append(ScoringRequest(turns=tuple(turns), images=(image,)))
    found.append(ScoringRequest.of_caption("describe the image.", "no picture here"))
    found.append(ScoringRequest.of_caption("describe the image.", "star, star " * 40, image))
    found.append(ScoringRequest.of_caption("describe the image.", "a <image> in the text", image))
    return found


def nats(found: list[Score | NotScored]) -> list[Any]:
    return [
        one.reason
        if isinstance(one, NotScored)
        else [
            one.nll,
            *([] if one.nll_text is None else [one.nll_text]),
            one.max_token_nll,
            *(turn.nll for turn in one.turns),
        ]
        for one in found
    ]


def test_scores_equal_our_own_forward_pass(engine: VLLMScorer) -> None:
    own = TransformersScorer(
        model_folder("package://models/nano"), token_nll, max_caption_tokens=LIMIT
    )
    expected, found = nats(own.score(questions())), nats(engine.score(questions()))
    assert found[-2:] == expected[-2:] == ["caption_too_long", "text_not_encodable"]
    for one, other in zip(found[:-2], expected[:-2], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4)


def test_long_answers_are_truncated_in_the_same_place(engine: VLLMScorer) -> None:
    folder = model_folder("package://models/nano")
    own = TransformersScorer(folder, token_nll, max_caption_tokens=7, truncates=True)
    limits, engine.limits = engine.limits, own.limits
    try:
        found = nats(engine.score(questions()[:4]))
    finally:
        engine.limits = limits
    for one, other in zip(found, nats(own.score(questions()[:4])), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        VLLMScorer(tmp_path / "nothing")
