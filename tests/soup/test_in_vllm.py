"""Candidates mixed in vLLM's memory answer as vLLM does with the written soup."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.engines.generation.test_stops import SOUPS, wide_base
from tests.support.families import noise

from consomme.base.errors import CheckpointError
from consomme.base.sample import Turn
from consomme.engines.generation.requests import Generation, Request, Sampling
from consomme.engines.generation.vllm import VLLMEngine
from consomme.engines.scoring.requests import Score, ScoringRequest
from consomme.engines.scoring.vllm import VLLMScorer
from consomme.engines.vllm_engine import EngineOptions
from consomme.models.weights import open_model, save_vlm
from consomme.soup.ingredients import open_ingredient
from consomme.soup.mixing import ModelMix, mixed_tensors
from consomme.soup.writing import write_soup

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

QUICK = ("llava",)
OPTIONS = EngineOptions(kv_cache_gb=0.1, prefix_caching=True)
REQUESTS = [
    *(Request.of_prompt("star?", [noise(k, 64, 48)]) for k in range(3)),
    Request.of_prompt("what color is it?"),
]


def tuned(base: Path, folder: Path, number: int) -> Path:
    """Write a model with other weights, buffers included."""
    model, processor = open_model(base)
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    save_vlm(folder, model, processor)
    return folder


class Answers:
    """What one engine says: texts, and nats of given ones."""

    def __init__(self, folder: Path) -> None:
        self.writer = VLLMEngine(str(folder), Sampling(max_tokens=12), OPTIONS)
        self.scorer = VLLMScorer(folder, options=OPTIONS, opened=self.writer.opened)

    def __call__(self) -> tuple[list[str], list[float]]:
        texts = []
        for one in self.writer.generate(REQUESTS):
            assert isinstance(one, Generation)
            texts.append(one.text)
        nats = []
        asked = Turn(role="user", content="star?")
        turns = (asked, Turn(role="assistant", content="a large blue square"))
        for one in self.scorer.score(
            [ScoringRequest(images=(noise(k, 64, 48),), turns=turns) for k in range(2)]
        ):
            assert isinstance(one, Score), one
            nats.append(float(one.nll))
        return texts, nats

    def close(self) -> None:
        self.scorer.close()
        self.writer.close()


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in SOUPS],
)
def test_a_soup_in_vllm_is_the_written_soup(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = wide_base(name, tmp_path, monkeypatch)
    ingredients = [open_ingredient(tuned(base, tmp_path / str(k), k)) for k in (1, 2)]
    mixes = [ModelMix.of(ingredients, weights) for weights in ([0.25, 0.75], [0.9, 0.1])]
    found = []
    answers = Answers(ingredients[0].folder)
    alone = answers()
    for mix in mixes:
        answers.writer.load_weights(dict(mixed_tensors(mix)))
        found.append(answers())
    # As it was at first: nothing of the others is left, in the caches neither.
    answers.writer.load_weights(load_file(ingredients[0].folder / "model.safetensors"))
    assert answers() == alone
    answers.close()
    for k, mix in enumerate(mixes):
        written = Answers(write_soup(tmp_path / f"soup{k}", mix))
        expected = written()
        written.close()
        assert found[k] == expected
        assert found[k][1] != alone[1]


def test_missing_weights_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = wide_base("qwen2_5_vl", tmp_path, monkeypatch)
    engine = VLLMEngine(str(base), Sampling(max_tokens=4), OPTIONS)
    weights = load_file(base / "model.safetensors")
    lost = next(name for name in weights if name.endswith("layernorm.weight"))
    del weights[lost]
    try:
        with pytest.raises(CheckpointError, match=r"does not take all weights .*layernorm"):
            engine.load_weights(weights)
    finally:
        engine.close()
