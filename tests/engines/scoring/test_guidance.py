"""Guided likelihoods equal the formula on two plain passes, in every family and any batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.generation.test_guidance import open_gates, without
from tests.engines.scoring.test_many_images import NEW, ONE_IMAGE_ONLY, folder_of, some
from tests.support.families import FAMILIES, noise

from consomme.base.errors import RecipeError
from consomme.base.sample import ImageRef, Turn
from consomme.curate.perplexity import token_nll
from consomme.engines.contrast import Contrast
from consomme.engines.scoring import transformers
from consomme.engines.scoring.requests import NotScored, Score, ScoringRequest
from consomme.engines.scoring.rerank import rank_regions, rank_texts
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.engines.scoring.vllm import VLLMScorer
from consomme.engines.scoring.ways import SINGLE
from consomme.models import selfcheck
from consomme.vision.masking import Region

pytestmark = pytest.mark.slow
ALPHA = 1.0
CAPTIONS = ["a red star", "a blue circle below", "größer — 日本語", "a red star"]


def said(text: str) -> tuple[Turn, ...]:
    return (Turn(role="user", content="describe."), Turn(role="assistant", content=text))


def requests(*, named: bool) -> list[ScoringRequest]:
    """Captions of two images, one of which has several."""
    found = []
    for k, caption in enumerate(CAPTIONS):
        image = noise(k % 2, *((40, 40), (70, 30))[k % 2])
        keys = (f"image {k % 2}",) if named else None
        contrast = Contrast(alpha=ALPHA, images=(without(image),))
        found.append(
            ScoringRequest(turns=said(caption), images=(image,), keys=keys, contrast=contrast)
        )
    return found


def about_two() -> ScoringRequest:
    turns = (
        Turn(role="user", content=(ImageRef(0), "star?", ImageRef(1), "and this?")),
        Turn(role="assistant", content="a circle"),
    )
    images = (noise(0, 40, 40), noise(2, 25, 70))
    # The region is one of the second image.
    contrast = Contrast(alpha=ALPHA, images=(images[0], without(images[1])))
    return ScoringRequest(turns=turns, images=images, contrast=contrast)


def naive_nll(scorer: TransformersScorer, request: ScoringRequest) -> float:
    """By two plain forward passes of the family's own model, each of one unpadded conversation."""
    logits = []
    for images in (request.images, request.contrast.images):
        chat = scorer.chat.encode(request.turns, images)
        with torch.inference_mode():
            inputs = selfcheck.plain_inputs(scorer.model, chat)
            logits.append(scorer.model(**inputs).logits[0].float())
    alpha = request.contrast.alpha
    logp_TV = ((1 + alpha) * logits[0] - alpha * logits[1]).log_softmax(-1)
    scored = [t for begin, end in chat.spans for t in range(begin, end)]
    return -sum(float(logp_TV[t - 1, chat.input_ids[t]]) for t in scored)


@pytest.mark.parametrize("name", some([*FAMILIES, *NEW]))
def test_scores_equal_the_formula_on_two_plain_passes(
    folders: Any, tmp_path: Path, name: str
) -> None:
    scorer = TransformersScorer(folder_of(name, folders, tmp_path), token_nll, dtype="float32")
    open_gates(scorer.model)
    asked = [*requests(named=False), *requests(named=True)]
    if name not in ONE_IMAGE_ONLY:
        asked.append(about_two())
    expected = [naive_nll(scorer, one) for one in asked]
    plain = scorer.score([replace(one, contrast=None) for one in asked])
    for budget in (1, 100_000):
        scorer.token_budget = budget
        found = scorer.score(asked)
        for one, nats, base in zip(found, expected, plain, strict=True):
            assert isinstance(one, Score), one
            assert one.nll == pytest.approx(nats, rel=1e-5)
            assert one.nll_text is None
            assert one.num_tokens == base.num_tokens
        apart = max(abs(a.nll - b.nll) / b.nll for a, b in zip(found, plain, strict=True))
        assert apart > 1e-4, apart
    scorer.way = SINGLE
    for one, nats in zip(scorer.score(asked), expected, strict=True):
        assert one.nll == pytest.approx(nats, rel=1e-5)


@pytest.fixture(scope="module")
def scorer(debug_vlm: Path) -> TransformersScorer:
    return TransformersScorer(debug_vlm, token_nll, dtype="float32", max_caption_tokens=60)


def test_without_strength_or_region_it_is_the_plain_score(
    scorer: TransformersScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the second branch ran")

    monkeypatch.setattr(transformers, "guided_logits", refuse)
    asked = requests(named=True)
    plain = scorer.score([replace(one, contrast=None) for one in asked])
    for alpha, is_masked in ((0.0, True), (1.0, False)):
        contrasts = [
            Contrast(alpha=alpha, images=one.contrast.images if is_masked else one.images)
            for one in asked
        ]
        pairs = zip(asked, contrasts, strict=True)
        assert scorer.score([replace(one, contrast=other) for one, other in pairs]) == plain


def test_strengths_and_plain_requests_are_mixed(scorer: TransformersScorer) -> None:
    asked = requests(named=True)
    mixed = [
        replace(one, contrast=alpha and replace(one.contrast, alpha=alpha))
        for alpha in (1.0, None, 0.5)
        for one in asked
    ]
    found = scorer.score(mixed)
    for one, request in zip(found, mixed, strict=True):
        (alone,) = scorer.score([request])
        assert one.nll == pytest.approx(alone.nll, rel=1e-6)
    assert len({round(one.nll, 4) for one in (found[0], found[4], found[8])}) == 3


def test_long_captions_are_cut_in_both_branches(debug_vlm: Path) -> None:
    whole = TransformersScorer(debug_vlm, token_nll, dtype="float32")
    cut = TransformersScorer(
        debug_vlm, token_nll, dtype="float32", max_caption_tokens=3, truncates=True
    )
    one = replace(requests(named=False)[1], turns=said("a red star below a blue circle"))
    (found,) = cut.score([one])
    assert isinstance(found, Score)
    assert found.is_truncated
    assert found.num_tokens == 3
    (all_of_it,) = whole.score([one])
    assert found.nll < all_of_it.nll
    chat = whole.chat.encode(one.turns, one.images)
    begin, _ = chat.spans[0]
    logits = []
    for images in (one.images, one.contrast.images):
        inputs = selfcheck.plain_inputs(whole.model, whole.chat.encode(one.turns, images))
        with torch.inference_mode():
            logits.append(whole.model(**inputs).logits[0].float())
    logp_TV = (2 * logits[0] - logits[1]).log_softmax(-1)
    nats = -sum(float(logp_TV[t - 1, chat.input_ids[t]]) for t in range(begin, begin + 3))
    assert found.nll == pytest.approx(nats, rel=1e-5)


def test_the_best_box_does_not_depend_on_the_order_of_boxes(scorer: TransformersScorer) -> None:
    image = noise(3, 60, 60)
    boxes = [(0, 0, 30, 30), (30, 0, 60, 30), (0, 30, 30, 60), (10, 10, 50, 50)]

    def ranked(order: list[int]) -> list[tuple[int, float]]:
        regions = [Region(box=boxes[k]) for k in order]
        found = rank_regions(scorer, said("a red star"), image, regions)
        return [(order[one.index], pytest.approx(one.nll, rel=1e-6)) for one in found]

    first = [(index, value.expected) for index, value in ranked([0, 1, 2, 3])]
    assert first == ranked([3, 1, 0, 2]) == ranked([2, 3, 1, 0])
    nlls = [nll for _, nll in first]
    assert nlls == sorted(nlls)
    assert len(set(nlls)) == 4
    with pytest.raises(ValueError, match="all regions are equal"):
        rank_regions(scorer, said("a"), image, [], alpha=0)


def test_texts_are_ranked_with_guidance_and_without(scorer: TransformersScorer) -> None:
    image = noise(3, 60, 60)
    contrast = Contrast(alpha=2, images=(without(image),))
    asked = (Turn(role="user", content="describe."),)
    guided = rank_texts(scorer, asked, CAPTIONS[:3], [image], contrast)
    plain = rank_texts(scorer, asked, CAPTIONS[:3], [image], None)
    for one in guided:
        request = ScoringRequest(
            turns=said(CAPTIONS[one.index]), images=(image,), contrast=contrast
        )
        assert one.nll == pytest.approx(naive_nll(scorer, request), rel=1e-5)
    assert [one.nll for one in plain] == sorted(one.nll for one in plain)
    assert {one.nll for one in plain} != {one.nll for one in guided}


def test_a_model_whose_tokens_depend_on_the_content_is_refused(
    scorer: TransformersScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = scorer.chat.encode

    def crop(turns: Any, images: Any = (), *more: Any, **named: Any) -> Any:
        chat = inner(turns, images, *more, **named)
        is_dark = images and images[0].convert("L").getpixel((20, 15)) == 0
        return replace(chat, input_ids=chat.input_ids[1:]) if is_dark else chat

    monkeypatch.setattr(scorer.chat, "encode", crop)
    (found,) = scorer.score(requests(named=False)[:1])
    assert isinstance(found, NotScored)
    assert found.reason == "image_not_encodable"
    assert "token by token" in found.detail


def test_vllm_refuses() -> None:
    with pytest.raises(RecipeError, match="logits"):
        VLLMScorer.score(VLLMScorer.__new__(VLLMScorer), requests(named=False))
