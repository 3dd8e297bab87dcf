"""Engines give the same results on a GPU as on a CPU."""

from pathlib import Path

import pytest
import torch

from consomme.base.sample import Turn
from consomme.curate.perplexity import token_nll
from consomme.datasets import scenes
from consomme.engines.generation.requests import Generation, Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.scoring.requests import Score, ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.models.debug import make_debug_vlm
from consomme.storage.model_folder import model_folder

PROMPT = "describe the image."
NUM = 64


@pytest.fixture(scope="module")
def nano() -> str:
    return model_folder("package://models/nano")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Hide the GPU from what is opened until the test says `undo`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return monkeypatch


def questions(num: int = NUM) -> list[ScoringRequest]:
    """Captions of scenes: half of them true, half of them of the next scene."""
    found = []
    for number in range(num):
        scene = scenes.make_scene(820_000 + number)
        said = scenes.caption(scenes.make_scene(820_000 + number + number % 2))
        found.append(ScoringRequest.of_caption(PROMPT, said, scenes.render(scene)))
    return found


def scored(scorer: TransformersScorer, asked: list[ScoringRequest]) -> list[Score]:
    found = [one for one in scorer.score(asked) if isinstance(one, Score)]
    assert len(found) == len(asked)
    return found


def test_scores_are_those_of_a_cpu(nano: str, on_cpu: pytest.MonkeyPatch) -> None:
    asked = questions()
    expected = scored(TransformersScorer(nano, token_nll), asked)
    on_cpu.undo()
    exact = TransformersScorer(nano, token_nll, dtype="float32")
    assert exact.device.type == "cuda"
    for one, other in zip(scored(exact, asked), expected, strict=True):
        assert one.nll == pytest.approx(other.nll, rel=1e-4, abs=1e-4)
        assert one.nll_text == pytest.approx(other.nll_text, rel=1e-4, abs=1e-4)
        assert one.num_tokens == other.num_tokens
    # bfloat16, the default on a GPU, has eight significant bits: the order stays.
    rough = scored(TransformersScorer(nano, token_nll), asked)
    order = torch.tensor([[one.nll for one in some] for some in (rough, expected)])
    assert torch.corrcoef(order)[0, 1] > 0.999
    assert sum(order[0]) == pytest.approx(float(sum(order[1])), rel=0.01)


def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path) -> None:
    scorer = TransformersScorer(
        make_debug_vlm(tmp_path / "vlm", width=512), token_nll, dtype="float32"
    )
    asked = questions(600)
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    calm = scored(scorer, asked)
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_stats().get("num_ooms", 0)
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((held + 0.6 * (peak - held)) / whole)
    try:
        halved = scored(scorer, asked)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.memory_stats()["num_ooms"] > before
    for one, other in zip(halved, calm, strict=True):
        assert one.nll == pytest.approx(other.nll, rel=1e-4, abs=1e-4)


def test_greedy_texts_are_those_of_a_cpu(nano: str, on_cpu: pytest.MonkeyPatch) -> None:
    requests = [Request.of_prompt(PROMPT, [one.image]) for one in questions(32)]
    turns = (Turn(role="user", content="what color is the circle?"),)
    requests.append(Request(turns=turns, images=()))
    sampling = Sampling(max_tokens=48)
    expected = TransformersEngine(nano, sampling).generate(requests)
    on_cpu.undo()
    engine = TransformersEngine(nano, sampling, dtype="float32")
    assert engine.device.type == "cuda"
    assert engine.generate(requests) == expected
    assert all(isinstance(one, Generation) for one in expected)
    # In bfloat16 a few words differ, and a text depends on its batch.
    rough = TransformersEngine(nano, sampling).generate(requests)
    assert sum(one == other for one, other in zip(rough, expected, strict=True)) > 20
