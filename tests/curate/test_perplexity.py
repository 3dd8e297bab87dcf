"""Perplexity: exact against an independent reference, whatever the batch."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from consomme.base.sample import REJECT_REASONS, ImageFile
from consomme.curate.perplexity import token_nll
from consomme.engines.scoring.requests import NotScored, Score, ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.models.weights import open_vlm

pytestmark = pytest.mark.slow
PROMPT = "describe the image."
CAPTIONS = (
    "a large red circle at the top left.",
    "star",
    "BUY now!!! 50% off, free shipping — größer",
    "what color is the square? blue, left of a small black triangle, and more of it",
    "日本語",
    "a red circle",
)


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 128, (count, 1, 1, 3)) + rng.integers(0, 128, (count, 40, 40, 3))
    return [Image.fromarray(picture) for picture in noise.astype(np.uint8)]


def ask(
    images: list[Image.Image], captions: list[str], prompt: str = PROMPT
) -> list[ScoringRequest]:
    return [
        ScoringRequest.of_caption(prompt, caption, image)
        for image, caption in zip(images, captions, strict=True)
    ]


def score(
    scorer: TransformersScorer,
    images: list[Image.Image],
    captions: list[str],
    prompt: str = PROMPT,
) -> list[Score]:
    found = scorer.score(ask(images, captions, prompt))
    assert all(isinstance(item, Score) for item in found), found
    return [item for item in found if isinstance(item, Score)]


def reference(
    folder: Path, image: Image.Image | None, prompt: str, caption: str
) -> tuple[float, int]:
    """One sample in float64, its tokens put together by hand, all logits at once."""
    model, processor = open_vlm(folder, torch.float64)
    placeholder = "<image>" * 16 if image else ""
    encode = processor.tokenizer.encode
    context = encode(f"<bos><user>{placeholder}{prompt}<assistant>", add_special_tokens=False)
    spoken = encode(f"{caption}<end>", add_special_tokens=False)
    inputs = {"input_ids": torch.tensor([context + spoken])}
    if image:
        pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
        inputs["pixel_values"] = pixels.double()
    with torch.no_grad():
        logp_TV = model(**inputs).logits[0].log_softmax(dim=-1)
    start = len(context)
    total = sum(float(logp_TV[start + k - 1, token]) for k, token in enumerate(spoken))
    return -total, len(spoken)


def test_uniform_logits_give_the_size_of_the_vocabulary() -> None:
    nll_N = token_nll(torch.full((3, 50), 7.0), torch.tensor([3, 5, 1]))
    assert torch.exp(nll_N).tolist() == pytest.approx([50, 50, 50], rel=1e-6)


def test_bfloat16_logits_are_taken_as_they_are_and_summed_in_float32() -> None:
    torch.manual_seed(1)
    logits_NV = (5 * torch.randn(300, 40)).bfloat16()
    labels_N = torch.randint(0, 40, (300,))
    exact = -logits_NV.double().log_softmax(-1)[torch.arange(300), labels_N]
    assert torch.allclose(token_nll(logits_NV, labels_N).double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 300, 1000])
def test_chunks_do_not_matter(chunk: int) -> None:
    torch.manual_seed(2)
    logits_NV, labels_N = torch.randn(300, 40), torch.randint(0, 40, (300,))
    whole = token_nll(logits_NV, labels_N)
    assert torch.equal(token_nll(logits_NV, labels_N, chunk=chunk), whole)
    assert token_nll(logits_NV[:0], labels_N[:0]).shape == (0,)


@pytest.mark.parametrize("token_budget", [1, 100, 4096])
def test_scores_equal_the_reference_for_any_token_budget(
    debug_vlm: Path, token_budget: int
) -> None:
    images = pictures(len(CAPTIONS))
    scorer = TransformersScorer(debug_vlm, token_nll, token_budget=token_budget)
    for image, caption, found in zip(
        images, CAPTIONS, score(scorer, images, list(CAPTIONS)), strict=True
    ):
        nll, count = reference(debug_vlm, image, PROMPT, caption)
        nll_text, _ = reference(debug_vlm, None, PROMPT, caption)
        assert found.num_tokens == count
        assert found.nll == pytest.approx(nll, rel=1e-4)
        assert found.nll_text == pytest.approx(nll_text, rel=1e-4)


def test_neighbours_and_order_do_not_matter(debug_vlm: Path) -> None:
    images = pictures(len(CAPTIONS))
    scorer = TransformersScorer(debug_vlm, token_nll)
    together = score(scorer, images, list(CAPTIONS))
    backwards = score(scorer, images[::-1], list(CAPTIONS[::-1]))[::-1]
    assert backwards == together
    for image, caption, found in zip(images, CAPTIONS, together, strict=True):
        alone = score(scorer, [image], [caption])[0]
        assert alone.nll == pytest.approx(found.nll, rel=1e-5)
        assert alone.nll_text == pytest.approx(found.nll_text, rel=1e-5)


def test_the_picture_changes_the_score_and_not_the_text_only_score(debug_vlm: Path) -> None:
    scorer = TransformersScorer(debug_vlm, token_nll)
    first, second = score(scorer, pictures(2), [CAPTIONS[0]] * 2)
    assert abs(first.nll - second.nll) > 1e-2
    assert first.nll_text == second.nll_text


def test_the_prompt_is_context_and_is_not_counted(debug_vlm: Path) -> None:
    image = pictures(1)
    scorer = TransformersScorer(debug_vlm, token_nll)
    short = score(scorer, image, [CAPTIONS[0]], "a")[0]
    long_prompt = "describe the image. " * 8
    long = score(scorer, image, [CAPTIONS[0]], long_prompt)[0]
    assert short.num_tokens == long.num_tokens
    assert short.nll != long.nll, "the prompt is context"
    # Its own tokens would add several nats each.
    assert long.nll == pytest.approx(
        reference(debug_vlm, image[0], long_prompt, CAPTIONS[0])[0], rel=1e-4
    )


def test_a_caption_that_cannot_be_scored_costs_one_sample(debug_vlm: Path) -> None:
    scorer = TransformersScorer(debug_vlm, token_nll, max_caption_tokens=40)
    images = pictures(4)
    texts = [CAPTIONS[0], "red <end> circle", "words " * 200, CAPTIONS[1]]
    found = scorer.score(ask(images, texts))
    bad = [item for item in found if isinstance(item, NotScored)]
    assert [item.reason for item in bad] == ["text_not_encodable", "caption_too_long"]
    assert {item.reason for item in bad} <= REJECT_REASONS
    assert "'<end>'" in bad[0].detail
    assert "at most 40" in bad[1].detail
    undisturbed = score(scorer, [images[0], images[3]], [CAPTIONS[0], CAPTIONS[1]])
    assert [found[0], found[3]] == undisturbed


def test_image_gain_is_what_the_picture_saves_per_token(debug_vlm: Path, tmp_path: Path) -> None:
    from consomme.base.sample import Sample, caption_turns
    from consomme.execution.stage import DecodedSample
    from consomme.pipelines.score.recipe import ScoreRecipe
    from consomme.pipelines.score.stage import PerplexityStage
    from consomme.storage.ledger.run_folder import RunFolder

    recipe = ScoreRecipe(
        name="s",
        model=str(debug_vlm),
        inputs=("x",),
        prompt=PROMPT,
        labels=("noise",),
        token_budget=4096,
    )
    folder = RunFolder.at(str(tmp_path / "run"))
    stage = PerplexityStage(recipe, str(debug_vlm), folder=folder)
    check = json.loads(folder.store.read("selfcheck.json"))
    assert (check["kind"], check["way"], check["failed"]) == ("scoring", "shared prefixes", {})
    images = pictures(2)
    samples = [
        DecodedSample(
            row=number,
            images=(image,),
            sample=Sample(
                sample_id=f"s{number}",
                images=(ImageFile(data=f"{number}".encode(), name="s.png"),),
                turns=caption_turns(caption),
                source="t",
                meta={"noise": "spam"} if number else {},
            ),
        )
        for number, (image, caption) in enumerate(zip(images, CAPTIONS[:2], strict=True))
    ]
    outcome = stage.work(samples)
    for row, image in zip(outcome.table.to_pylist(), images, strict=True):
        caption = CAPTIONS[row["row"]]
        nll, count = reference(debug_vlm, image, PROMPT, caption)
        nll_text, _ = reference(debug_vlm, None, PROMPT, caption)
        assert row["num_tokens"] == count
        assert row["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-3)
        assert row["image_gain"] == pytest.approx((nll_text - nll) / count, rel=1e-3, abs=1e-4)
    assert outcome.table["noise"].to_pylist() == [None, "spam"]
    assert outcome.sums["nll"] == pytest.approx(sum(outcome.table["nll"].to_pylist()), rel=1e-6)
    assert not outcome.rejects
