"""Perplexity of every family of models: equal to a naive reference, however it is batched."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support import families
from tests.support.families import FAMILIES, noise
from tests.support.messages import to_messages

from consomme.base.sample import Turn
from consomme.curate.perplexity import points_script_nll, token_nll
from consomme.engines.scoring.requests import NotScored, Score, ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.models.weights import open_model

pytestmark = pytest.mark.slow
PROMPT = "describe the image."
SIZES = [(40, 40), (90, 30), (25, 70), (40, 40), (64, 48)]
CAPTIONS = [
    "a large red circle at the top left",
    "star",
    "BUY now!!! 50% off, free shipping — größer",
    "日本語",
    "a small blue square beside it, and more of it: what color is the triangle? green",
]


def picture(number: int) -> Image.Image:
    return noise(number, *SIZES[number])


def conversation(caption: str) -> tuple[Turn, ...]:
    return (Turn(role="user", content=PROMPT), Turn(role="assistant", content=caption))


class Reference:
    """One sample at a time in float64, all logits, no padding; the span found by search."""

    def __init__(self, folder: Path) -> None:
        self.model, self.processor = open_model(folder, torch.float64)
        # LLaVA's template ends answers with a space; the model was trained with this token.
        self.end = "</s>" if folder.name == "llava" else ""

    def nll(self, turns: tuple[Turn, ...], image: Image.Image | None) -> tuple[float, int]:
        if getattr(self.processor, "chat_template", None) is None:
            return self.suffix_nll(turns[0].content, turns[1].content, image)
        ended = [
            replace(turn, content=turn.content + self.end) if turn.role == "assistant" else turn
            for turn in turns
        ]
        text = self.processor.apply_chat_template(
            to_messages(ended, has_image=image is not None), tokenize=False
        )
        bos = self.processor.tokenizer.bos_token
        special = not (bos and text.startswith(bos))
        images = {} if image is None else {"images": [[image]]}
        inputs = self.processor(
            text=[text], **images, return_tensors="pt", add_special_tokens=special
        )
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.no_grad():
            logp_TV = self.model(**inputs).logits[0].log_softmax(dim=-1)
        ids = inputs["input_ids"][0].tolist()
        total, count = 0.0, 0
        for turn in turns:
            if turn.role == "assistant":
                begin, end = self.span(ids, turn.content)
                total -= sum(float(logp_TV[t - 1, ids[t]]) for t in range(begin, end))
                count += end - begin
        return total, count

    def suffix_nll(
        self, question: str, answer: str, image: Image.Image | None
    ) -> tuple[float, int]:
        """PaliGemma attends to its prefix in both directions; its processor labels the suffix."""
        words = self.processor.tokenizer
        if image is None:
            head = words(f"<bos>{question}\n", add_special_tokens=False)["input_ids"]
            tail = words(f"{answer}<eos>", add_special_tokens=False)["input_ids"]
            types = torch.tensor([[0] * len(head) + [1] * len(tail)])
            inputs = {"input_ids": torch.tensor([head + tail]), "token_type_ids": types}
        else:
            inputs = dict(
                self.processor(
                    text=[f"<image>{question}"],
                    images=[[image]],
                    suffix=[answer],
                    return_tensors="pt",
                )
            )
            inputs.pop("labels")
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.no_grad():
            logp_TV = self.model(**inputs).logits[0].log_softmax(dim=-1)
        ids, types_T = inputs["input_ids"][0].tolist(), inputs["token_type_ids"][0].tolist()
        scored = [t for t, kind in enumerate(types_T) if kind == 1]
        return -sum(float(logp_TV[t - 1, ids[t]]) for t in scored), len(scored)

    def span(self, ids: list[int], answer: str) -> tuple[int, int]:
        words = self.processor.tokenizer
        fits = [
            (begin, end)
            for begin in range(1, len(ids))
            for end in range(begin + 1, min(len(ids), begin + 90) + 1)
            if words.decode(ids[begin:end]).strip() == answer
        ]
        begin, end = min(fits, key=lambda span: (span[1] - span[0], -span[0]))
        special = {token for token, added in words.added_tokens_decoder.items() if added.special}
        return begin, end + (end < len(ids) and ids[end] in special)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_equal_a_naive_reference_for_any_batch(folders: Any, name: str) -> None:
    folder = folders(name)
    reference = Reference(folder)
    questions = [
        ScoringRequest(turns=conversation(caption), images=(picture(number),))
        for number, caption in enumerate(CAPTIONS)
    ]
    for budget in (1, 200, 100_000):
        scores = TransformersScorer(folder, token_nll, token_budget=budget).score(questions)
        for question, score in zip(questions, scores, strict=True):
            assert isinstance(score, Score), score
            nll, count = reference.nll(question.turns, question.images[0])
            nll_text, _ = reference.nll(question.turns, None)
            assert score.num_tokens == count
            assert score.nll == pytest.approx(nll, rel=1e-4)
            assert score.nll_text == pytest.approx(nll_text, rel=1e-4)
        gains = [abs(score.nll_text - score.nll) / score.nll for score in scores]
        assert max(gains) > 1e-2, "the image makes no difference"


@pytest.mark.parametrize("name", FAMILIES)
def test_captions_of_one_image_share_its_encoding(
    folders: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = TransformersScorer(folders(name), token_nll)
    apart = scorer.score(
        [
            ScoringRequest(turns=conversation(c), images=(picture(k % 2),))
            for k, c in enumerate(CAPTIONS)
        ]
    )
    sizes: list[int] = []
    cache = scorer.vision_cache
    inner = cache._encode_batch
    monkeypatch.setattr(cache, "_encode_batch", lambda some: sizes.append(len(some)) or inner(some))
    shared = scorer.score(
        [
            ScoringRequest(
                turns=conversation(c), images=(picture(k % 2),), keys=(f"picture {k % 2}",)
            )
            for k, c in enumerate(CAPTIONS)
        ]
    )
    assert sum(sizes) == 2
    for one, other in zip(shared, apart, strict=True):
        assert one.nll == pytest.approx(other.nll, rel=1e-5)
        assert one.nll_text == pytest.approx(other.nll_text, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "paligemma"])
def test_conversations_are_scored_turn_by_turn(folders: Any, name: str) -> None:
    turns = (
        Turn(role="user", content="what color is the triangle?"),
        Turn(role="assistant", content="it is green"),
        Turn(role="user", content="what is below the star?"),
        Turn(role="assistant", content="a small blue square"),
    )
    folder = folders(name)
    (score,) = TransformersScorer(folder, token_nll).score(
        [ScoringRequest(turns=turns, images=(picture(1),))]
    )
    assert isinstance(score, Score), score
    nll, count = Reference(folder).nll(turns, picture(1))
    assert len(score.turns) == 2
    assert sum(turn.num_tokens for turn in score.turns) == score.num_tokens == count
    assert score.nll == pytest.approx(nll, rel=1e-4)
    assert sum(turn.nll for turn in score.turns) == pytest.approx(score.nll)
    assert score.max_token_nll <= max(turn.nll for turn in score.turns)


def test_paligemma_refuses_conversations(folders: Any) -> None:
    turns = conversation("star") + conversation("green")
    scorer = TransformersScorer(folders("paligemma"), token_nll)
    (found,) = scorer.score([ScoringRequest(turns=turns, images=(picture(0),))])
    assert isinstance(found, NotScored)
    assert found.reason == "text_not_encodable"
    assert "one question and one answer" in found.detail


@pytest.mark.parametrize("name", FAMILIES)
def test_a_request_that_cannot_be_encoded_fails_alone(folders: Any, name: str) -> None:
    scorer = TransformersScorer(folders(name), token_nll, max_caption_tokens=60)
    token = scorer.chat.special[0]
    texts = [CAPTIONS[0], f"a {token} b", "words and words " * 40, CAPTIONS[1]]
    found = scorer.score(
        [ScoringRequest(turns=conversation(c), images=(picture(k),)) for k, c in enumerate(texts)]
    )
    reasons = [one.reason if isinstance(one, NotScored) else None for one in found]
    assert reasons == [None, "text_not_encodable", "caption_too_long", None]


def test_the_points_script_is_reproduced(folders: Any) -> None:
    """As in the script, a caption is a turn of its own, without header and line break, rounded."""
    folder = folders("qwen2_vl")
    model, processor = open_model(folder)
    prompt = "please generate a caption for this image."
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    head = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    scorer = TransformersScorer(folder, points_script_nll)
    for number, caption in enumerate(CAPTIONS):
        inputs = dict(processor(text=[head], images=[[picture(number)]], return_tensors="pt"))
        turn = f"<|im_start|>user\n{caption}<|im_end|>\n"
        skipped = len(processor.tokenizer("<|im_start|>user\n")["input_ids"])
        said = torch.tensor([processor.tokenizer(turn)["input_ids"][skipped:]])
        size = said.shape[1]
        for name, more in (
            ("input_ids", said),
            ("attention_mask", torch.ones_like(said)),
            ("mm_token_type_ids", torch.zeros_like(said)),
        ):
            inputs[name] = torch.cat([inputs[name], more], dim=1)
        with torch.no_grad():
            logits = model(**inputs).logits[0, -size - 1 : -2]
        chances = logits.float().softmax(-1).gather(1, said[0, :-1, None])[:, 0].bfloat16().tolist()
        expected = torch.exp(-torch.tensor(chances).log().mean())
        (score,) = scorer.score([ScoringRequest.of_caption(prompt, caption, picture(number))])
        assert isinstance(score, Score)
        assert score.num_tokens == len(chances)
        # A probability may be rounded differently: one part in 256 of one token.
        found = np.exp(score.nll / score.num_tokens)
        assert found == pytest.approx(float(expected), rel=2e-3)


def test_an_image_that_the_processor_refuses_fails_alone(folders: Any) -> None:
    scorer = TransformersScorer(folders("qwen2_vl"), token_nll)
    strip = Image.new("RGB", (4000, 4))
    found = scorer.score(
        [
            ScoringRequest(turns=conversation("star"), images=(image,))
            for image in (picture(0), strip)
        ]
    )
    assert isinstance(found[0], Score)
    assert isinstance(found[1], NotScored)
    assert found[1].reason == "image_not_encodable"
    assert "4000 x 4" in found[1].detail


def test_long_answers_can_be_truncated(folders: Any) -> None:
    folder = folders("qwen2_vl")
    long = "a large red circle at the top left " * 10
    question = ScoringRequest(turns=conversation(long), images=(picture(0),))
    (whole,) = TransformersScorer(folder, token_nll, max_caption_tokens=10_000).score([question])
    scorer = TransformersScorer(folder, token_nll, max_caption_tokens=12, truncates=True)
    (cut,) = scorer.score([question])
    assert isinstance(cut, Score)
    assert isinstance(whole, Score)
    assert (cut.num_tokens, cut.is_truncated, whole.is_truncated) == (12, True, False)
    assert cut.nll < whole.nll


def test_a_batch_that_does_not_fit_is_halved(folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = TransformersScorer(folders("llava"), token_nll)
    questions = [
        ScoringRequest(turns=conversation(caption), images=(picture(k),))
        for k, caption in enumerate(CAPTIONS)
    ]
    calm = scorer.score(questions)
    sizes: list[int] = []
    inner = scorer._forward

    def small(trees: Any, features: Any) -> Any:
        sizes.append(sum(len(tree.suffixes) for tree in trees))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(trees, features)

    monkeypatch.setattr(scorer, "_forward", small)
    halved = scorer.score(questions)
    # Five captions with an image, and a tree of five without, which is halved too.
    assert sizes[0] == 10
    assert sum(size for size in sizes if size <= 2) == 10
    for one, other in zip(halved, calm, strict=True):
        assert one.nll == pytest.approx(other.nll, rel=1e-5)


def test_a_model_without_a_vision_encoder_scores_the_text_alone(tmp_path: Path) -> None:
    words = families.tokenizer(
        "bytes", families.IM, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    words.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    model = families.hf.LlamaForCausalLM(families.text_config(families.hf.LlamaConfig))
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    questions = [
        ScoringRequest(turns=conversation(c), images=(picture(k),)) for k, c in enumerate(CAPTIONS)
    ]
    scores = TransformersScorer(tmp_path, token_nll).score(questions)
    double = model.double().eval()
    for caption, score in zip(CAPTIONS, scores, strict=True):
        assert isinstance(score, Score), score
        head = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
        begin = len(words(head)["input_ids"])
        ids = words(f"{head}{caption}<|im_end|>")["input_ids"]
        with torch.no_grad():
            logp_TV = double(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        nll = -sum(float(logp_TV[t - 1, ids[t]]) for t in range(begin, len(ids)))
        assert score.num_tokens == len(ids) - begin
        assert score.nll == pytest.approx(nll, rel=1e-4)
        assert score.nll_text == score.nll
