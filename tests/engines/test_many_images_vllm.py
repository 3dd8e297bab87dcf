"""vLLM writes and scores as transformers does, with any number of images in their places."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.engines.generation.test_families import spelled
from tests.support.families import noise
from tests.support.image_conversations import CASES, Case
from tests.support.vllm_families import VLLM_FAMILIES, write_vllm_family

from consomme.curate.perplexity import token_nll
from consomme.engines.generation.requests import Generation, GenerationFailure, Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.generation.vllm import VLLMEngine
from consomme.engines.generation.vllm_loop import EngineLoop
from consomme.engines.scoring.requests import Score, ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.engines.scoring.vllm import VLLMScorer
from consomme.engines.vllm_engine import EngineOptions

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.long]
OPTIONS = EngineOptions(kv_cache_gb=0.125, max_num_seqs=8, max_model_len=1024)
MAX_TOKENS = 12
SIZES = {"llava": [(32, 32)] * 3, "qwen2_vl": [(32, 32), (64, 32), (48, 80)]}
"""Of images that are not resized: vLLM does that with another library."""


@pytest.fixture(scope="module", params=VLLM_FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vllm_family(request.param, tmp_path_factory.mktemp("folder") / request.param)


def images_of(case: Case, folder: Path) -> tuple[Image.Image, ...]:
    return tuple(noise(n, *SIZES[folder.name][n]) for n in range(case.num_images))


def requests(folder: Path) -> list[Request]:
    """The prompts of all cases, and of those with several images in other orders."""
    found = []
    for case in CASES:
        images = images_of(case, folder)
        for number in range(max(1, len(images))):
            shown = images[number:] + images[:number]
            found.append(Request(turns=case.turns[:-1], images=shown))
    return found


def spell_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write tokens as numbers: many of a random model's tokens are no valid text."""

    def finish(self: EngineLoop, output: Any) -> None:
        (first,) = output.outputs
        text = spelled(first.token_ids)
        reason = first.finish_reason
        generation = Generation(text=text, num_tokens=len(first.token_ids), finish_reason=reason)
        self._finish(output.request_id, generation)

    monkeypatch.setattr(EngineLoop, "_finish_output", finish)


def test_texts_are_those_of_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spell_outputs(monkeypatch)
    own = TransformersEngine(folder, Sampling(max_tokens=MAX_TOKENS))
    monkeypatch.setattr(own, "_decode_ids", spelled)
    expected = own.generate(requests(folder))
    assert all(isinstance(one, Generation) for one in expected), expected
    texts = [one.text for one in expected if isinstance(one, Generation)]
    assert len(set(texts)) >= 8, "texts must depend on the order of the images"
    engine = VLLMEngine(str(folder), Sampling(max_tokens=MAX_TOKENS), OPTIONS)
    try:
        assert engine.generate(requests(folder)) == expected
        too_many = Request.of_prompt("star?", images_of(CASES[2], folder) * 400)
        (refused,) = engine.generate([too_many])
        assert isinstance(refused, GenerationFailure)
        assert refused.reason == "sequence_too_long", refused
    finally:
        engine.close()


def test_scores_are_those_of_transformers(folder: Path) -> None:
    asked = [ScoringRequest(turns=case.turns, images=images_of(case, folder)) for case in CASES]
    expected = TransformersScorer(folder, token_nll).score(asked)
    scorer = VLLMScorer(folder, options=OPTIONS)
    try:
        found = scorer.score(asked)
    finally:
        scorer.close()
    for case, one, other in zip(CASES, found, expected, strict=True):
        assert isinstance(one, Score), (case.name, one)
        assert isinstance(other, Score), (case.name, other)
        assert one.num_tokens == other.num_tokens, case.name
        assert one.nll == pytest.approx(other.nll, rel=1e-4, abs=1e-4), case.name
        assert one.nll_text == (other.nll_text and pytest.approx(other.nll_text, rel=1e-4))
