"""Models are shown other questions before a question, or refuse it with the reason."""

from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_file_kinds import build, in_text, write_tsv
from tests.support.families import make

from consomme.curate.perplexity import token_nll
from consomme.engines.generation.requests import Request
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.pipelines.evaluate.stage import Answer, Refusal, likely_answers, written_answers
from consomme.storage.model_folder import model_folder

pytestmark = pytest.mark.slow


@pytest.fixture
def file(tmp_path: Path) -> str:
    rows = [
        {"image": in_text(color), "question": "what color is it?", "A": color, "B": "pink",
         "answer": color}
        for color in ("red", "blue", "green")
    ]  # fmt: skip
    return write_tsv(tmp_path / "colors.tsv", rows)


def test_shots_are_turns_of_the_conversation(file: str) -> None:
    engine = TransformersEngine(model_folder("package://models/nano"), dtype="float32")
    benchmark = build("open", file, shots=1, prompt="{question}", max_tokens=6)
    items = benchmark.items()
    found = written_answers(engine, benchmark, items, range(3))
    for item, answer in zip(items, found, strict=True):
        request = Request(turns=item.turns, images=tuple(item.images), max_tokens=6)
        assert len(request.images) == 2
        assert [turn.role for turn in request.turns] == ["user", "assistant", "user"]
        (expected,) = engine.generate([request])
        assert answer == Answer(text=expected.text.strip(), is_cut=answer.is_cut)
    none = build("open", file, prompt="{question}", max_tokens=6)
    assert written_answers(engine, none, none.items(), range(3)) != found


@pytest.mark.parametrize("name", ["open", "multiple_choice"])
def test_a_model_of_one_image_refuses_them(name: str, file: str, tmp_path: Path) -> None:
    folder = make("paligemma", tmp_path / "model")
    options: dict[str, Any] = {"prompt": "{question}"}
    engine: Any = TransformersEngine(folder, dtype="float32")
    answers = written_answers
    if name == "multiple_choice":
        options["answer_by"] = "text_likelihood"
        engine, answers = TransformersScorer(folder, token_nll, dtype="float32"), likely_answers
    plain = build(name, file, **options)
    found = answers(engine, plain, plain.items(), range(3))
    assert all(isinstance(one, Answer) for one in found), found
    shot = build(name, file, shots=1, **options)
    for one in answers(engine, shot, shot.items(), range(3)):
        assert isinstance(one, Refusal)
        assert one.reason == "conversation_unsupported"
        assert "image" in one.detail
