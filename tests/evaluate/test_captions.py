"""Captions from files: CIDEr-D and BLEU-4 against values of COCO's own evaluation."""

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from tests.evaluate.test_file_kinds import in_text

from consomme.base.errors import DataError
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.evaluate.caption_metrics import bleu_4, cider_d, tokens_of

REFERENCES = [
    ["a red circle is left of a blue square", "there is a red circle and a blue square"],
    ["a man rides a brown horse on the beach", "a person riding a horse by the sea",
     "a man on a horse"],
    ["two dogs play with a ball in the park"],
    ["a kitchen with a white stove and a wooden table", "a small kitchen with white appliances"],
]  # fmt: skip
SAID = [
    "a red circle left of a square",
    "a man riding a horse on a beach",
    "a cat sleeps on the sofa",
    "a kitchen with a stove and a table a table a table",
]
# Printed by pycocoevalcap 1.2, Cider().compute_score and Bleu(4).compute_score.
CIDER = [3.274784696686424, 2.4965801381144765, 0.10494024257526895, 1.5681797915403548]
BLEU = 0.2298124247892345


def test_cider_and_bleu_are_those_of_coco() -> None:
    assert cider_d(SAID, REFERENCES) == pytest.approx(CIDER, rel=1e-12)
    assert bleu_4(SAID, REFERENCES) == pytest.approx(BLEU, rel=1e-9)


def test_cider_equals_its_formula_on_random_captions() -> None:
    rng = random.Random(3)
    words = "a red blue big dog cat runs on the".split()

    def made() -> str:
        return " ".join(rng.choices(words, k=rng.randrange(0, 9)))

    references = [[made() or "a" for _ in range(rng.randrange(1, 4))] for _ in range(15)]
    said = [made() for _ in references]

    def runs(text: str, n: int) -> Counter[tuple[str, ...]]:
        found = text.split()
        return Counter(tuple(found[k : k + n]) for k in range(len(found) - n + 1))

    def idf(run: tuple[str, ...]) -> float:
        held = sum(any(run in runs(text, len(run)) for text in texts) for texts in references)
        return math.log(len(references) / max(1, held))

    for value, one, texts in zip(cider_d(said, references), said, references, strict=True):
        total = 0.0
        for n in (1, 2, 3, 4):
            for text in texts:
                mine, other = runs(one, n), runs(text, n)
                norm = math.prod(
                    math.sqrt(sum((c[r] * idf(r)) ** 2 for r in c)) for c in (mine, other)
                )
                if not norm:
                    continue
                shared = sum(min(mine[r], other[r]) * other[r] * idf(r) ** 2 for r in mine)
                gap = sum(runs(one, 2).values()) - sum(runs(text, 2).values())
                total += shared / norm * math.exp(-(gap**2) / 72)
        assert value == pytest.approx(10 * total / (4 * len(texts)), abs=1e-9)


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog's ball, isn't it?", ["a", "dog", "'s", "ball", "is", "n't", "it"]),
        ("T-shirt & 3.5 m", ["t-shirt", "3.5", "m"]),
        ("一只狗 (dog)", ["一", "只", "狗", "dog"]),
        ("  …!  ", []),
    ],
)
def test_words_are_those_that_count(caption: str, tokens: list[str]) -> None:
    assert tokens_of(caption) == tokens


def write(folder: Path, rows: list[dict[str, object]]) -> str:
    path = folder / "coco.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_file_is_measured_and_bad_rows_count_as_wrong(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": in_text("red"), "captions": texts, "category": "indoor" if k % 2 else "outdoor"}
        for k, texts in enumerate(REFERENCES)
    ]
    file = write(tmp_path, rows)
    benchmark = BENCHMARKS.build({"name": "caption", "file": file})
    found = benchmark.measure([f"<think>hm</think>{SAID[0].upper()}.", *SAID[1:]])
    assert next(iter(found)) == "cider"
    assert found["cider"] == pytest.approx(sum(CIDER) / 4)
    assert found["bleu_4"] == pytest.approx(BLEU)
    assert found["cider_low"] < found["cider"] < found["cider_high"]
    assert found["cider_indoor"] == pytest.approx((CIDER[1] + CIDER[3]) / 2)
    assert {item.prompt for item in benchmark.items()} == {"Describe the image in one sentence."}
    bad = write(tmp_path, [*rows, {"image": in_text("red"), "captions": []}, {"captions": ["a"]}])
    worse = BENCHMARKS.build({"name": "caption", "file": bad, "metric": "bleu_4"}).measure(SAID)
    assert next(iter(worse)) == "bleu_4"
    assert worse["num_unreadable_rows"] == 2
    assert worse["cider"] == pytest.approx(sum(CIDER) / 6)
    assert worse["bleu_4"] < BLEU


def test_a_file_without_captions_says_what_it_has(tmp_path: Path) -> None:
    file = write(tmp_path, [{"image": in_text("red"), "label": "x"}])
    with pytest.raises(DataError, match="it has no caption: none of the columns captions"):
        BENCHMARKS.build({"name": "caption", "file": file}).items()
