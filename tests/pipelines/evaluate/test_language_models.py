"""Language alone, asked of a language model with real weights, and of the nano VLM."""

from pathlib import Path

import pytest
from tests.support import smollm2

from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.pipelines.evaluate.in_memory import InMemoryAnswerer
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_content_hash, model_folder

NANO = "package://models/nano"


def figures(folder: str, run: Path) -> list[dict[str, float]]:
    answerer = InMemoryAnswerer(
        folder, model_hash=model_content_hash(folder), template={}, run=RunFolder.at(str(run))
    )
    found = []
    for name in ("emoji_words", "emoji_glosses"):
        benchmark = BENCHMARKS.build({"name": name})
        found.append(benchmark.measure(answerer.answer(benchmark).texts))
    return found


@pytest.mark.long
def test_smollm2_knows_words_and_predicts_texts(tmp_path: Path) -> None:
    words, texts = figures(str(smollm2.make(tmp_path / "smollm2")), tmp_path / "run")
    # Measured: 0.336, 95 % from 0.289 to 0.386.
    assert words["num_questions"] > 300
    assert words["accuracy_low_fraction"] > words["chance_fraction"] == 0.25
    assert 0.30 < words["accuracy_fraction"] < 0.38
    # Measured: 2.35 bits per character, where the nano VLM needs 3.96.
    assert 2.2 < texts["bits_per_character"] < 2.5
    assert texts["character_probability_low_fraction"] > 0.16
    _, of_nano = figures(model_folder(NANO), tmp_path / "nano")
    assert of_nano["bits_per_character"] > texts["bits_per_character"]


@pytest.mark.slow
def test_what_the_nano_model_writes_is_what_it_finds_likely(tmp_path: Path) -> None:
    folder = model_folder(NANO)
    answerer = InMemoryAnswerer(
        folder, model_hash=model_content_hash(folder), template={}, run=RunFolder.at(str(tmp_path))
    )

    def accuracy(name: str, **options: bool) -> dict[str, float]:
        benchmark = BENCHMARKS.build({"name": name, "num": 8, **options})
        return benchmark.measure(answerer.answer(benchmark).texts)

    written, chosen = accuracy("scene_questions"), accuracy("scene_choices")
    assert written["accuracy_low_fraction"] > 0.8
    assert chosen["accuracy_low_fraction"] > 0.8
    blank = accuracy("scene_choices", blank=True)
    assert blank["accuracy_low_fraction"] <= blank["accuracy_of_fixed_answers_fraction"]
    assert blank["accuracy_high_fraction"] < 0.6
