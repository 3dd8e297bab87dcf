"""Options chosen by likelihood: the nano VLM, and a language model with real weights."""

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluate.test_file_kinds import build, write_tsv

from consomme.base.errors import RecipeError
from consomme.curate.perplexity import token_nll
from consomme.datasets import scenes
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.models.weights import open_model
from consomme.pipelines.evaluate.stage import Answer, likely_answers
from consomme.storage.model_folder import model_folder

pytestmark = pytest.mark.slow

NANO = "package://models/nano"
COLORS = ["red", "blue", "green", "yellow", "purple", "orange", "black", "pink"]
NUM = 24


@pytest.fixture(scope="module")
def nano() -> TransformersScorer:
    return TransformersScorer(model_folder(NANO), token_nll, dtype="float32")


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Questions about the colors of scenes, each with four options, and one without an image."""
    import base64

    rng, rows = random.Random(0), []
    for seed in range(700_000, 700_200):
        scene = scenes.make_scene(seed)
        asked = next((q for q in scenes.questions(scene, seed) if q.kind == "color"), None)
        if asked is None or len(rows) == NUM:
            continue
        options = [asked.answer, *rng.sample([c for c in COLORS if c != asked.answer], 3)]
        rng.shuffle(options)
        image = base64.b64encode(scenes.encode(scenes.render(scene))).decode()
        rows.append(
            {"index": len(rows), "image": image, "question": asked.question,
             **dict(zip("ABCD", options, strict=True)),
             "answer": "ABCD"[options.index(asked.answer)]}
        )  # fmt: skip
    return write_tsv(tmp_path_factory.mktemp("colors") / "colors.tsv", rows)


def likeliest_answers(scorer: TransformersScorer, benchmark: Any) -> list[str]:
    items = benchmark.items()
    found = likely_answers(scorer, benchmark, items, range(len(items)))
    return [one.text if isinstance(one, Answer) else "" for one in found]


def share(scorer: TransformersScorer, benchmark: Any) -> float:
    found: float = benchmark.measure(likeliest_answers(scorer, benchmark))["accuracy_fraction"]
    return found


def test_the_nano_model_sees_colors_and_guesses_without(
    nano: TransformersScorer, colors: str
) -> None:
    options: dict[str, Any] = {"answer_by": "text_likelihood", "prompt": "{question}"}
    assert share(nano, build("multiple_choice", colors, **options)) >= 0.95
    blank = share(nano, build("multiple_choice", colors, blank=True, **options))
    assert blank <= 0.55, "chance is 0.25"


def test_likelihoods_are_those_of_the_plain_model(nano: TransformersScorer, colors: str) -> None:
    benchmark = build("multiple_choice", colors, answer_by="text_likelihood", prompt="{question}")
    model, processor = open_model(model_folder(NANO))
    item, names = benchmark.items()[0], benchmark.candidates(0)
    expected = {}
    for letter, text in names.items():
        turns = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.prompt}]},
            {"role": "assistant", "content": [{"type": "text", "text": text}]},
        ]
        whole = processor.apply_chat_template(turns, tokenize=False)
        begin = processor.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[whole.rstrip()], images=list(item.images), return_tensors="pt")
        head = processor(text=[begin], images=list(item.images), return_tensors="pt")
        start = head["input_ids"].shape[1]
        with torch.inference_mode():
            logp = model(**inputs).logits[0].double().log_softmax(-1)
        ids = inputs["input_ids"][0]
        expected[letter] = -float(sum(logp[k - 1, ids[k]] for k in range(start, len(ids))))
    (chosen, *_) = likeliest_answers(nano, benchmark)
    assert chosen == min(names, key=lambda letter: expected[letter] / len(names[letter]))


def test_by_character_or_by_letter(colors: str) -> None:
    benchmark = build("multiple_choice", colors, answer_by="text_likelihood", prompt="{question}")
    texts = benchmark.candidates(0)
    nlls = {letter: float(len(text)) for letter, text in texts.items()}
    shortest, longest = (f(texts, key=lambda k: len(texts[k])) for f in (min, max))
    assert benchmark.choose(nlls | {longest: nlls[longest] - 0.5}, 0) == longest
    by_letter = build("multiple_choice", colors, answer_by="letter_likelihood")
    assert by_letter.candidates(0) == {letter: letter for letter in "ABCD"}
    assert by_letter.choose(nlls, 0) == shortest
    assert build("multiple_choice", colors).candidates(0) is None
    with pytest.raises(RecipeError, match=r"found no \{options\}"):
        build("multiple_choice", colors, answer_by="letter_likelihood", prompt="{question}")


def test_a_question_that_cannot_be_asked_is_wrong(nano: TransformersScorer, tmp_path: Path) -> None:
    rows = [
        {"question": "q", "A": "red", "B": "blue", "answer": "A"},
        {"question": "q " * 3000, "A": "red", "B": "blue", "answer": "A"},
    ]
    benchmark = build("multiple_choice", write_tsv(tmp_path / "q.tsv", rows),
                      answer_by="text_likelihood")  # fmt: skip
    answers = likeliest_answers(nano, benchmark)
    assert answers[0] in ("A", "B")
    assert answers[1] == ""
    assert benchmark.measure(answers)["num_answers_empty"] == 1


def test_a_table_with_long_cells_is_read(colors: str) -> None:
    with Path(colors).open(newline="") as file:
        assert len(list(csv.reader(file, delimiter="\t"))) == NUM + 1
    assert np.isclose(
        build("multiple_choice", colors).measure(["A"] * NUM)["chance_fraction"], 0.25
    )


def test_true_captions_are_more_likely_than_swapped_ones(
    nano: TransformersScorer, tmp_path: Path
) -> None:
    """What a model that sees finds easy, and one that is shown grey cannot know."""
    import base64

    rng, rows = random.Random(0), []
    for seed in range(710_000, 710_012):
        scene = scenes.make_scene(seed)
        caption, color = scenes.caption(scene), scene.objects[0].color
        other = rng.choice([c for c in COLORS if c not in caption])
        image = base64.b64encode(scenes.encode(scenes.render(scene))).decode()
        rows.append(
            {"image": image, "caption": caption, "negative_caption": caption.replace(color, other)}
        )
    path = write_tsv(tmp_path / "swapped.tsv", rows)
    assert share(nano, build("pairs", path, prompt="describe the image.")) >= 0.9
    blank = share(nano, build("pairs", path, prompt="describe the image.", blank=True))
    assert 0.1 <= blank <= 0.9, "chance is 0.5"
    likely = {
        name: share_of_characters(nano, write_tsv(tmp_path / f"{name}.tsv", [
            {"image": row["image"], "question": "describe the image.", "answer": row[name]}
            for row in rows
        ]))
        for name in ("caption", "negative_caption")
    }  # fmt: skip
    assert likely["caption"] > likely["negative_caption"]


def share_of_characters(scorer: TransformersScorer, path: str) -> float:
    benchmark = build("likelihood", path)
    found: float = next(iter(benchmark.measure(likeliest_answers(scorer, benchmark)).values()))
    return found
