"""Guided decoding equals the formula on two naive passes, in every family and any batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.engines.generation.test_families import spelled
from tests.engines.generation.test_many_images import in_each_suite
from tests.engines.scoring.test_many_images import NEW, ONE_IMAGE_ONLY, folder_of
from tests.support.families import FAMILIES, noise

from consomme.base.errors import RecipeError
from consomme.base.sample import ImageRef, Turn
from consomme.engines.contrast import Contrast
from consomme.engines.generation import guided_decoding
from consomme.engines.generation.openai import OpenAIEngine
from consomme.engines.generation.requests import (
    Generation,
    GenerationFailure,
    Request,
    Sampling,
    check_unguided,
)
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.generation.writing_check import SINGLE
from consomme.models import selfcheck
from consomme.models.imports import import_transformers
from consomme.vision.masking import Region, masked

pytestmark = pytest.mark.slow
MAX_TOKENS = 5
SIZES = [(40, 40), (90, 30), (25, 70)]
QUESTIONS = [
    "describe the image.",
    "what color is the triangle that is below the blue star at the top left?",
    "star?",
]
ALPHA = 1.0


def without(image: Image.Image) -> Image.Image:
    width, height = image.size
    box = (width * 0.1, height * 0.1, width * 0.8, height * 0.9)
    return masked(image, [Region(box=box)])


def guided(request: Request, alpha: float = ALPHA) -> Request:
    images = tuple(without(image) for image in request.images)
    return replace(request, contrast=Contrast(alpha=alpha, images=images))


def requests_about_one() -> list[Request]:
    return [
        Request.of_prompt(question, [noise(number, *SIZES[number])])
        for number, question in enumerate(QUESTIONS)
    ]


def request_about_two() -> Request:
    turns = (Turn(role="user", content=(ImageRef(0), "star?", ImageRef(1), "and this?")),)
    return Request(turns=turns, images=(noise(0, 40, 40), noise(2, 25, 70)))


class Recorder:
    """Records guided logits by how many tokens were written before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[torch.Tensor] = []
        inner = guided_decoding.guided_logits

        def record(*given: Any) -> torch.Tensor:
            found = inner(*given)
            self.steps.append(found.clone())
            return found

        monkeypatch.setattr(guided_decoding, "guided_logits", record)


class Forced:
    """Writes given tokens, and records the logits of each step."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens, self.logits = list(tokens), []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = self.tokens[len(self.logits)]
        self.logits.append(scores[0].float())
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)


def naive_logits(
    engine: TransformersEngine, turns: Any, images: Any, tokens: Sequence[int]
) -> torch.Tensor:
    """Logits (steps, V) of one unpadded prompt alone by `generate`, along given tokens."""
    hf = import_transformers()
    forced = Forced(tokens)
    prompt = engine.chat.encode_prompt(turns, images)
    engine.model.generation_config = hf.GenerationConfig()
    with torch.inference_mode():
        engine.model.generate(
            **selfcheck.plain_inputs(engine.model, prompt),
            max_new_tokens=len(tokens),
            do_sample=False,
            pad_token_id=0,
            logits_processor=hf.LogitsProcessorList([forced]),
        )
    return torch.stack(forced.logits)


def check_formula(
    engine: TransformersEngine, requests: Sequence[Request], recorder: Recorder
) -> list[Generation]:
    """Compare each step of each text with the formula on two naive passes."""
    recorder.steps.clear()
    found = engine.generate(requests)
    assert all(isinstance(one, Generation) for one in found), found
    # Recorded rows stand in the order of batches: those of similar length together.
    rows = torch.cat([step for step in recorder.steps])
    effect = 0.0
    for request, one in zip(requests, found, strict=True):
        tokens = [int(token) for token in one.text.split()]
        a = naive_logits(engine, request.turns, request.images, tokens)
        b = naive_logits(engine, request.turns, request.contrast.images, tokens)
        expected = (1 + ALPHA) * a - ALPHA * b
        effect = max(effect, float((a - b).abs().max() / a.abs().max()))
        assert expected.argmax(dim=1).tolist() == tokens
        for step in expected:
            apart = (rows - step).abs().amax(dim=1).min()
            assert apart <= 1e-5 * step.abs().max(), float(apart)
    assert effect > 1e-3, "the masked region makes no difference"
    return found


def open_gates(model: Any) -> None:
    """Let images have an effect: gates of cross-attention are closed before training."""
    for name, value in model.named_parameters():
        if name.endswith("_gate"):
            value.data.fill_(0.7)


def engine_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TransformersEngine:
    engine = TransformersEngine(folder, Sampling(max_tokens=MAX_TOKENS), dtype="float32")
    open_gates(engine.model)
    # Random models write tokens that are no text.
    monkeypatch.setattr(engine, "_decode_ids", spelled)
    return engine


@pytest.mark.parametrize("name", [in_each_suite(one) for one in (*FAMILIES, *NEW)])
def test_logits_equal_the_formula_on_two_naive_passes(
    folders: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(folder_of(name, folders, tmp_path), monkeypatch)
    recorder = Recorder(monkeypatch)
    requests = [guided(one) for one in requests_about_one()]
    if name not in ONE_IMAGE_ONLY:
        requests.append(guided(request_about_two()))
    found = check_formula(engine, requests, recorder)
    # One at a time, and by two calls of `generate` that take turns: the same.
    assert [engine.generate([one])[0] for one in requests] == found
    engine.check = replace(engine.check, way=SINGLE)
    engine.batch_size = 1
    assert check_formula(engine, requests, recorder) == found


@pytest.fixture
def engine(debug_vlm: Path, monkeypatch: pytest.MonkeyPatch) -> TransformersEngine:
    return engine_of(debug_vlm, monkeypatch)


def test_without_strength_or_region_it_is_the_plain_model(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the second branch ran")

    monkeypatch.setattr(guided_decoding, "guided_logits", refuse)
    plain = requests_about_one()
    base = engine.generate(plain)
    assert engine.generate([guided(one, alpha=0) for one in plain]) == base
    unmasked = [
        replace(one, contrast=Contrast(alpha=1, images=tuple(masked(i, []) for i in one.images)))
        for one in plain
    ]
    assert engine.generate(unmasked) == base


def test_equal_branches_write_what_the_model_writes(engine: TransformersEngine) -> None:
    """a = b: the guided logits are the model's own."""
    plain = requests_about_one()
    copies = [
        replace(one, contrast=Contrast(alpha=3, images=tuple(i.copy() for i in one.images)))
        for one in plain
    ]
    assert engine.generate(copies) == engine.generate(plain)


def test_guided_and_plain_requests_share_an_engine(engine: TransformersEngine) -> None:
    plain = requests_about_one()
    mixed = [*plain, *(guided(one) for one in plain), *(guided(one, 0.5) for one in plain)]
    alone = [engine.generate([one])[0] for one in mixed]
    assert engine.generate(mixed) == alone
    assert alone[:3] != alone[3:6]


def test_sampling_draws_from_the_guided_distribution(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(0, 40, 40)
    requests = [
        guided(Request.of_prompt("star?", [image], seed=seed), alpha=2) for seed in range(600)
    ]
    requests = [replace(one, max_tokens=1) for one in requests]
    engine.sampling = Sampling(max_tokens=1, temperature=1.0)
    engine.batch_size = 64
    drawn = [int(one.text.split()[0]) for one in engine.generate(requests)]
    again = [int(engine.generate([one])[0].text.split()[0]) for one in requests[:5]]
    assert again == drawn[:5], "a text depends on its batch"
    a = naive_logits(engine, requests[0].turns, [image], [0])[0]
    b = naive_logits(engine, requests[0].turns, [without(image)], [0])[0]
    probs = (3 * a - 2 * b).softmax(-1)
    # Ten groups of tokens of about equal probability.
    order = probs.argsort()
    group = (probs[order].cumsum(0) * 10).floor().clamp(max=9).int()
    where = torch.zeros(len(probs), dtype=torch.int).scatter(0, order, group)
    expected = torch.zeros(10).index_add(0, where, probs) * len(drawn)
    seen = torch.bincount(where[torch.tensor(drawn)], minlength=10)
    statistic = float(((seen - expected) ** 2 / expected.clamp(min=1e-9)).sum())
    assert statistic < 30, (seen, expected)


def test_patterns_stay_patterns(debug_vlm: Path) -> None:
    engine = TransformersEngine(debug_vlm, Sampling(max_tokens=8), dtype="float32")
    requests = [replace(guided(one), pattern="(yes|no)") for one in requests_about_one()]
    assert all(one.text in ("yes", "no") for one in engine.generate(requests))


def test_an_error_of_either_branch_comes_home(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.check = replace(engine.check, way=SINGLE)
    engine.batch_size = 1
    inner = engine._run
    for number in (0, 1):
        calls: list[int] = []

        def fail(*given: Any, number: int = number, calls: list[int] = calls) -> torch.Tensor:
            calls.append(1)
            if len(calls) == number + 1:
                raise ZeroDivisionError
            return inner(*given)

        monkeypatch.setattr(engine, "_run", fail)
        with pytest.raises(ZeroDivisionError):
            engine.generate([guided(requests_about_one()[0])])
    monkeypatch.setattr(engine, "_run", inner)
    assert isinstance(engine.generate([guided(requests_about_one()[0])])[0], Generation)


def test_a_model_whose_tokens_depend_on_the_content_is_refused(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: Callable[..., Any] = engine.chat.encode_prompt

    def crop(turns: Any, images: Any) -> Any:
        found = inner(turns, images)
        is_dark = images and images[0].convert("L").getpixel((20, 15)) == 0
        return replace(found, input_ids=found.input_ids[1:]) if is_dark else found

    monkeypatch.setattr(engine.chat, "encode_prompt", crop)
    (found,) = engine.generate([guided(requests_about_one()[0])])
    assert isinstance(found, GenerationFailure)
    assert found.reason == "image_not_encodable"
    assert "token by token" in found.detail


def test_other_images_than_those_of_the_request_are_refused(engine: TransformersEngine) -> None:
    one = requests_about_one()[0]
    for images in ((), (noise(0, 41, 40),)):
        with pytest.raises(ValueError, match="masked"):
            engine.generate([replace(one, contrast=Contrast(alpha=1, images=images))])


def test_engines_without_logits_refuse() -> None:
    requests = [guided(requests_about_one()[0])]
    with pytest.raises(RecipeError, match="logits"):
        OpenAIEngine("http://127.0.0.1:1/v1", "model").generate(requests)
    with pytest.raises(RecipeError, match="vLLM does not give"):
        check_unguided(requests, "vLLM")
