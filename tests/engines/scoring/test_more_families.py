"""Families that no test had before: scored as their plain forward pass scores, or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.scoring.test_families import CAPTIONS, Reference, conversation, picture
from tests.support.families import write
from tests.support.more_families import MORE_FAMILIES, TEXT_FAMILIES

from consomme.base.sample import Turn
from consomme.curate.perplexity import token_nll
from consomme.engines.scoring.requests import Score, ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.engines.scoring.ways import PADDED, SHARED, SINGLE
from consomme.models.weights import open_model

pytestmark = [pytest.mark.slow, pytest.mark.long]

LONG = "a large red circle and a small blue square beside it and more of it " * 3
TEXTS = [*CAPTIONS, LONG.strip(), f"{LONG}it is green"]
SHARING = {
    "qwen3", "phi3", "cohere2", "granite", "gemma2", "nanochat", "gemma3_text", "mistral", "olmo3",
    "gpt_oss", "exaone4", "internvl_gpt_oss", "cohere2_vision", "got_ocr2",
}  # fmt: skip
"""Every layer is attention with a mask of our own, or within a window that the config declares."""
ALONE = {"llama4", "mllama", "granite4_vision", "minicpmv4_6"}
"""The features of several images cannot be computed apart."""
MIXTURES = {"internvl_gpt_oss", "llama4", "ernie4_5_vl"}
"""Experts are computed in float32."""


class FlatReference(Reference):
    """The processor of GOT-OCR takes a list of images, one for each text."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        inner = self.processor

        class Flat:
            def __call__(self, images: Any = None, **more: Any) -> Any:
                if images is None:
                    return inner.tokenizer(**more)
                return inner(images=[image for some in images for image in some], **more)

            def __getattr__(self, name: str) -> Any:
                return getattr(inner, name)

        self.processor = Flat()


class TextReference:
    """One text at a time in float32, all logits, no padding; the span found by counting."""

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = open_model(folder, torch.float32)

    def nll(self, turns: tuple[Turn, ...], _: object) -> tuple[float, int]:
        head = f"<|im_start|>user\n{turns[0].content}<|im_end|>\n<|im_start|>assistant\n"
        begin = len(self.tokenizer(head)["input_ids"])
        whole = self.tokenizer(f"{head}{turns[1].content}<|im_end|>\n", return_tensors="pt")
        ids = whole["input_ids"][0].tolist()
        end = max(t for t, token in enumerate(ids) if token == ids[len(ids) - 2]) + 1
        with torch.no_grad():
            logp_TV = self.model(**whole).logits[0].log_softmax(dim=-1)
        return -sum(float(logp_TV[t - 1, ids[t]]) for t in range(begin, end)), end - begin


@pytest.mark.parametrize("name", MORE_FAMILIES)
def test_scores_equal_plain_forward_passes_for_any_batch(tmp_path: Path, name: str) -> None:
    folder = write(MORE_FAMILIES[name], tmp_path / name)
    kind: Any = Reference
    if name in TEXT_FAMILIES or name == "got_ocr2":
        kind = TextReference if name in TEXT_FAMILIES else FlatReference
    reference = kind(folder)
    if name in MIXTURES:
        reference.model = reference.model.float()
    scorer = TransformersScorer(folder, token_nll)
    expected_way = SHARED if name in SHARING else SINGLE if name in ALONE else PADDED
    assert scorer.way == expected_way, scorer.check
    questions = [
        ScoringRequest(turns=conversation(caption), images=(picture(k % 2),), keys=(k % 2,))
        for k, caption in enumerate(TEXTS)
    ]
    expected = [
        (*reference.nll(q.turns, next(iter(q.images), None)), reference.nll(q.turns, None)[0])
        for q in questions
    ]
    for budget in (1, 200, 100_000):
        scorer.token_budget = budget
        for score, (nll, count, nll_text) in zip(scorer.score(questions), expected, strict=True):
            assert isinstance(score, Score), score
            assert score.num_tokens == count
            assert score.nll == pytest.approx(nll, rel=1e-4)
            assert score.nll_text == pytest.approx(nll_text, rel=1e-4)
