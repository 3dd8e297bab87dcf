"""Samples of any number of images, in their places: scores equal a naive float64 reference."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.families import FAMILIES
from tests.support.families import write as write_family
from tests.support.image_conversations import (
    CASES,
    Case,
    PlainReference,
    images_of,
    says,
    user,
)
from tests.support.more_families import MORE_FAMILIES

from consomme.base.sample import ImageRef, Turn, without_images
from consomme.curate.perplexity import token_nll
from consomme.engines.scoring.requests import NotScored, Score, ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer

pytestmark = pytest.mark.slow

NEW = (
    "qwen3_5",
    "lfm2_vl",
    "gemma4",
    "cohere2_vision",
    "mllama",
    "llama4",
    "granite4_vision",
    "minicpmv4_6",
)
ONE_IMAGE_ONLY = {"paligemma"}
QWEN = "<|vision_start|><|image_pad|><|vision_end|>"


QUICK = {"llava", "llava_onevision", "qwen2_vl", "idefics3", "gemma3", "lfm2_vl", "mllama"}
"""Families that differ in how they prepare images; the others are of the same kinds."""


def some(names: Sequence[str]) -> list[Any]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in names]


def folder_of(name: str, folders: Any, tmp_path: Path) -> Path:
    if name in FAMILIES:
        found: Path = folders(name)
        return found
    return write_family(MORE_FAMILIES[name], tmp_path / name)


@pytest.mark.parametrize("name", some([*FAMILIES, *NEW]))
def test_scores_equal_a_naive_reference(folders: Any, tmp_path: Path, name: str) -> None:
    folder = folder_of(name, folders, tmp_path)
    scorer = TransformersScorer(folder, token_nll)
    reference = PlainReference(folder, name)
    cases = CASES if name not in ONE_IMAGE_ONLY else CASES[:0]
    requests = [
        ScoringRequest(
            turns=case.turns,
            images=images_of(case),
            keys=tuple(f"image {number}" for number in range(case.num_images)),
        )
        for case in cases
    ]
    for budget in (1, 4096):
        scorer.token_budget = budget
        for case, found in zip(cases, scorer.score(requests), strict=True):
            assert isinstance(found, Score), (case.name, found)
            expected = reference.nlls(case.turns, images_of(case))
            assert [turn.num_tokens for turn in found.turns] == [n for _, n in expected], case.name
            for turn, (nll, _) in zip(found.turns, expected, strict=True):
                assert turn.nll == pytest.approx(nll, rel=1e-4), case.name
            if case.num_images:
                blind = reference.nlls(without_images(case.turns), ())
                assert found.nll_text == pytest.approx(sum(nll for nll, _ in blind), rel=1e-4)
            else:
                assert found.nll_text is None
    # Without the pass over the text alone, all else is the same.
    both = scorer.score(requests)
    alone = scorer.score([replace(request, scores_text=False) for request in requests])
    for one, other in zip(both, alone, strict=True):
        assert isinstance(one, Score)
        assert isinstance(other, Score)
        assert other.nll_text is None
        assert other.nll == pytest.approx(one.nll, rel=1e-5)
        assert [turn.nll_text for turn in other.turns] == [None] * len(one.turns)


MARKS = {
    "gemma3": "<start_of_image>",
    "internvl": "<IMG_CONTEXT>",
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), QWEN),
}
DOCUMENT = ("a walk. ", 0, " a star on top", 1, "then a large circle, and ", 2, "green")


@pytest.mark.parametrize("name", some(sorted(set(FAMILIES) - ONE_IMAGE_ONLY)))
def test_each_text_of_a_document_is_scored(folders: Any, name: str) -> None:
    folder = folders(name)
    parts = tuple(ImageRef(part) if isinstance(part, int) else part for part in DOCUMENT)
    images = images_of(Case(name="", turns=(), num_images=3))
    request = ScoringRequest(turns=(Turn(role="assistant", content=parts),), images=images)
    (found,) = TransformersScorer(folder, token_nll).score([request])
    assert isinstance(found, Score), found
    mark = MARKS.get(name, "<image>")
    expected = PlainReference(folder, name).document_nlls(DOCUMENT, images, mark)
    assert [turn.num_tokens for turn in found.turns] == [count for _, count in expected]
    for turn, (nll, _) in zip(found.turns, expected, strict=True):
        assert turn.nll == pytest.approx(nll, rel=1e-4)
    assert found.nll_text is not None
    assert found.nll_text != pytest.approx(found.nll, rel=1e-6)


def test_an_image_is_encoded_once_however_many_samples_show_it(folders: Any) -> None:
    scorer = TransformersScorer(folders("qwen2_vl"), token_nll)
    first, second, third = images_of(Case(name="", turns=(), num_images=3))
    requests = [
        ScoringRequest(
            turns=(user(0, 1, f"which of {number}?"), says("the first")),
            images=pair,
            keys=keys,
        )
        for number in range(100)
        for pair, keys in [((first, second), "ab"), ((second, third), "bc")]
    ]
    scorer.score(requests[:1])
    encoded: list[object] = []
    assert scorer.vision_cache is not None
    inner = scorer.vision_cache.encode
    scorer.vision_cache.encode = lambda images: encoded.extend(images) or inner(images)
    assert all(isinstance(one, Score) for one in scorer.score(requests))
    assert sorted(map(str, encoded)) == ["a", "b", "c"]


def test_a_family_of_one_image_refuses_two(folders: Any) -> None:
    scorer = TransformersScorer(folders("paligemma"), token_nll)
    for case in CASES[2:]:
        request = ScoringRequest(turns=case.turns, images=images_of(case))
        (found,) = scorer.score([request])
        assert isinstance(found, NotScored)
        assert found.reason == "conversation_unsupported", found
