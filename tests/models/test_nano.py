"""The shipped nano VLM is as its card says: small, standard, and it uses the image."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from consomme.engines.generation.requests import Generation, GenerationFailure, Request
from consomme.engines.generation.transformers import TransformersEngine
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.storage.model_folder import model_folder


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(model_folder("package://models/nano"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> TransformersEngine:
    return TransformersEngine(folder)


def text_of(result: Generation | GenerationFailure) -> str:
    assert isinstance(result, Generation), result
    return result.text.strip()


def measure(engine: TransformersEngine, **node: object) -> float:
    benchmark = BENCHMARKS.build(node)
    requests = [
        Request(turns=item.turns, images=tuple(item.images), max_tokens=benchmark.max_tokens)
        for item in benchmark.items()
    ]
    answers = [text_of(one) for one in engine.generate(requests)]
    return next(iter(benchmark.measure(answers).values()))


def test_it_is_a_small_llava_of_twelve_layers_in_standard_files(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["text_config"]["num_hidden_layers"] >= 12
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10_000_000
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".jinja", ".safetensors", ".md"}
    with safe_open(folder / "model.safetensors", "pt") as stored:
        assert all(
            key.startswith(("language_model.", "multi_modal", "vision_tower."))
            for key in stored.keys()
        )


@pytest.mark.parametrize(
    ("node", "at_least", "blank_at_most"),
    [
        ({"name": "scene_questions", "num": 40}, 0.93, 0.45),
        ({"name": "scene_captions", "num": 40}, 0.95, 0.55),
        ({"name": "emoji_names", "every": 10}, 0.33, 0.02),
    ],
    ids=["questions", "captions", "names"],
)
@pytest.mark.slow
def test_it_answers_from_the_image_and_guesses_if_it_is_blank(
    engine, node, at_least, blank_at_most
):
    assert measure(engine, **node) >= at_least
    assert measure(engine, **node, blank=True) <= blank_at_most
