"""One contract for every generation engine: the same texts, whatever the batch or thread."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tests.support.chat_server import serving

from consomme.base.errors import EngineLostError, RecipeError
from consomme.base.sample import Turn
from consomme.datasets import scenes
from consomme.engines.generation.openai import OpenAIEngine
from consomme.engines.generation.registry import GENERATION_ENGINES
from consomme.engines.generation.requests import (
    Generation,
    GenerationEngine,
    GenerationFailure,
    QueueLoad,
    Request,
    Sampling,
)
from consomme.engines.generation.transformers import TransformersEngine
from consomme.models.imports import import_transformers
from consomme.storage.model_folder import model_folder

MAX_TOKENS = 48
CAPTION = "describe the image."


def user(text: str) -> Turn:
    return Turn(role="user", content=text)


def picture(number: int) -> Image.Image:
    return scenes.render(scenes.make_scene(810_000 + number))


def requests() -> list[Request]:
    """Captions, questions, a conversation, and questions without a picture."""
    found = []
    for number in range(6):
        scene = scenes.make_scene(810_000 + number)
        found.append(Request.of_prompt(CAPTION, [picture(number)]))
        asked = scenes.questions(scene, number)[0]
        found.append(Request.of_prompt(asked.question, [picture(number)]))
    found[2] = Request.of_prompt(CAPTION, [picture(1).convert("L")])
    found[4] = Request.of_prompt(CAPTION, [picture(2).resize((90, 47)).convert("RGBA")])
    found.append(Request.of_prompt("what color is the circle?"))
    found.append(Request.of_prompt(CAPTION))
    turns = (user(CAPTION), Turn(role="assistant", content="a red star."), user(CAPTION))
    found.append(Request(turns=turns, images=(picture(0),)))
    return found


@pytest.fixture(scope="module")
def folder() -> str:
    return model_folder("package://models/nano")


@pytest.fixture(scope="module")
def expected(folder: str) -> list[Generation]:
    """Texts from transformers itself, one request at a time, without our code."""
    hf = import_transformers()
    processor = hf.AutoProcessor.from_pretrained(folder, backend="pil")
    model = hf.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for request in requests():
        image = request.images[0].convert("RGB") if request.images else None
        placeholder = "<image>" if image else ""
        prompt = "<bos>"
        for turn in request.turns:
            prompt += f"<user>{placeholder}{turn.content}" if turn.role == "user" else ""
            prompt += f"<assistant>{turn.content}<end>" if turn.role == "assistant" else ""
            placeholder = ""
        inputs = processor(images=image, text=prompt + "<assistant>", return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :].tolist()
        text = processor.tokenizer.decode(new, skip_special_tokens=True)
        is_done = new[-1] == processor.tokenizer.eos_token_id
        reason = "stop" if is_done else "length"
        found.append(Generation(text=text, num_tokens=len(new), finish_reason=reason))
    assert len({one.text for one in found}) > 8, "texts must depend on picture and question"
    return found


@pytest.fixture(
    scope="module",
    params=["transformers", "openai", pytest.param("vllm", marks=pytest.mark.vllm)],
)
def engine(request: pytest.FixtureRequest, folder: str) -> Iterator[GenerationEngine]:
    """Each engine, started once."""
    sampling = Sampling(max_tokens=MAX_TOKENS)
    if request.param == "openai":
        served = TransformersEngine(folder, sampling)
        with serving(served) as server:
            node = {"name": "openai", "url": server.url, "max_retries": 0}
            made = GENERATION_ENGINES.build(node)("nano", sampling)
            made.served = served
            yield made
            made.close()
        return
    options = {"kv_cache_gb": 0.25} if request.param == "vllm" else {"batch_size": 6}
    made = GENERATION_ENGINES.build({"name": request.param, **options})(folder, sampling)
    yield made
    made.close()


@pytest.fixture
def set_sampling(engine: Any) -> Iterator[Callable[[Sampling], None]]:
    """Change the engine's sampling for one test; a second engine would start too slowly."""
    before = engine.sampling

    def change(sampling: Sampling) -> None:
        engine.sampling = sampling
        if isinstance(engine, OpenAIEngine):
            engine.served.sampling = sampling

    yield change
    change(before)


def texts(found: list[Generation | GenerationFailure]) -> list[str]:
    assert all(isinstance(one, Generation) for one in found), found
    return [one.text for one in found if isinstance(one, Generation)]


def test_greedy_texts_are_those_of_transformers(
    engine: GenerationEngine, expected: list[Generation]
) -> None:
    assert engine.generate(requests()) == expected
    assert engine.generate([]) == []
    assert re.match(r"(vllm|transformers|openai) \d", engine.version)


@pytest.mark.slow
def test_a_text_depends_neither_on_its_batch_nor_on_other_threads(
    engine: GenerationEngine, expected: list[Generation]
) -> None:
    asked = requests()
    order = [(7 * k) % len(asked) for k in range(len(asked))]
    with ThreadPoolExecutor(4) as threads:
        units = [
            threads.submit(engine.generate, [asked[k] for k in order]),
            threads.submit(engine.generate, asked[:5]),
            threads.submit(engine.generate, [asked[3]]),
            threads.submit(engine.generate, asked * 2),
        ]
        found = [unit.result() for unit in units]
    assert found[0] == [expected[k] for k in order]
    assert found[1] == expected[:5]
    assert found[2] == [expected[3]]
    assert found[3] == expected * 2


def test_sampled_texts_depend_on_the_seed_alone(
    engine: GenerationEngine, set_sampling: Callable[[Sampling], None]
) -> None:
    set_sampling(Sampling(max_tokens=16, temperature=2.0, top_p=0.98))
    # The model has no preferred text for a grey image.
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    drawn = [Request.of_prompt(CAPTION, [grey], seed=k) for k in range(9)]
    first = texts(engine.generate(drawn))
    assert texts(engine.generate(drawn[::-1]))[::-1] == first
    assert [texts(engine.generate([one]))[0] for one in drawn[:3]] == first[:3]
    assert len(set(first)) >= 8, "different seeds, different texts"


def test_a_small_nucleus_is_greedy(
    engine: GenerationEngine, set_sampling: Callable[[Sampling], None], expected: list[Generation]
) -> None:
    set_sampling(Sampling(max_tokens=MAX_TOKENS, temperature=0.7, top_p=1e-6))
    assert engine.generate(requests()) == expected


def test_a_stop_string_ends_a_text(
    engine: GenerationEngine, set_sampling: Callable[[Sampling], None], expected: list[Generation]
) -> None:
    set_sampling(Sampling(max_tokens=MAX_TOKENS, stop=(" at the", " circle")))
    (found,) = engine.generate([requests()[0]])
    whole = expected[0].text
    assert " at the" in whole
    assert isinstance(found, Generation)
    assert found.text == min(whole.split(" at the")[0], whole.split(" circle")[0], key=len)
    assert (found.finish_reason, found.num_tokens < expected[0].num_tokens) == ("stop", True)


def test_max_tokens_cut_a_text_off(
    engine: GenerationEngine, set_sampling: Callable[[Sampling], None], expected: list[Generation]
) -> None:
    set_sampling(Sampling(max_tokens=3))
    (found,) = engine.generate([requests()[0]])
    assert isinstance(found, Generation)
    assert (found.num_tokens, found.finish_reason) == (3, "length")
    assert expected[0].text.startswith(found.text)


def test_a_request_may_have_a_limit_of_its_own(
    engine: GenerationEngine, expected: list[Generation]
) -> None:
    asked = requests()[:3]
    limits = (3, None, 5)
    own = [replace(one, max_tokens=limit) for one, limit in zip(asked, limits, strict=True)]
    first, second, third = engine.generate(own)
    assert second == expected[1]
    for found, whole, limit in ((first, expected[0], 3), (third, expected[2], 5)):
        assert isinstance(found, Generation)
        assert found.num_tokens == min(limit, whole.num_tokens)
        assert whole.text.startswith(found.text)


def test_a_bad_request_fails_alone(engine: GenerationEngine, expected: list[Generation]) -> None:
    asked = requests()
    bad = [
        Request.of_prompt("star " * 2000, [picture(0)]),
        Request.of_prompt("what <image> is this?", [picture(0)]),
        Request.of_prompt(CAPTION, [Image.new("RGB", (0, 5))]),
    ]
    found = engine.generate([asked[0], bad[0], asked[1], bad[1], bad[2], asked[2]])
    assert [found[k] for k in (0, 2, 5)] == expected[:3]
    reasons = [one.reason for one in found if isinstance(one, GenerationFailure)]
    if isinstance(engine, OpenAIEngine):
        # Only the server knows its special tokens.
        assert reasons == ["model_refused", "model_refused", "image_not_encodable"]
        assert "sequence_too_long" in found[1].detail
    else:
        assert reasons == ["sequence_too_long", "text_not_encodable", "image_not_encodable"]
        assert "0 x 5" in found[4].detail


def test_a_text_matches_its_pattern(engine: GenerationEngine, expected: list[Generation]) -> None:
    pattern = r"a (tiny|huge) (pink|grey) (cat|dog)\."
    bound = Request(turns=(user(CAPTION),), images=(picture(0),), pattern=pattern)
    if isinstance(engine, OpenAIEngine):
        with pytest.raises(RecipeError, match=r"generate with \{name: vllm\}"):
            engine.generate([bound])
        return
    found = engine.generate([requests()[0], bound, requests()[1], bound])
    assert [found[0], found[2]] == expected[:2]
    for one in (found[1], found[3]):
        assert isinstance(one, Generation)
        assert re.fullmatch(pattern, one.text)
        assert one.finish_reason == "stop"
    with pytest.raises(RecipeError, match=r"'\(a' is not a supported regular expression"):
        engine.generate([Request(turns=(user(CAPTION),), pattern="(a")])
    assert engine.generate(requests()[:1]) == expected[:1]


# A server's deadlines are in test_openai.py.
@pytest.mark.parametrize(
    "engine", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)], indirect=True
)
def test_a_deadline_costs_one_request(
    engine: Any,
    set_sampling: Callable[[Sampling], None],
    expected: list[Generation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_sampling(Sampling(max_tokens=300))
    # A clock that advances a second with each call, which is once a token.
    ticks = count()
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))
    owner = engine if isinstance(engine, TransformersEngine) else engine._loop
    module = "decoding" if isinstance(engine, TransformersEngine) else "vllm_loop"
    monkeypatch.setattr(f"consomme.engines.generation.{module}.time", clock)
    monkeypatch.setattr(owner, "deadline_s", 150.0)
    endless = Request(turns=(user(CAPTION),), images=(picture(0),), pattern="(a ){250}")
    found = engine.generate([requests()[0], endless, requests()[2]])
    assert [found[0], found[2]] == [expected[0], expected[2]]
    assert isinstance(found[1], GenerationFailure)
    assert found[1].reason == "model_timeout"
    assert "150 s" in found[1].detail
    assert engine.generate(requests()[:2]) == expected[:2]


def test_queue_load_counts_running_and_waiting_requests(engine: GenerationEngine) -> None:
    assert engine.queue_load() == QueueLoad(running=0, waiting=0)
    seen: list[QueueLoad] = []
    with ThreadPoolExecutor(1) as threads:
        unit = threads.submit(engine.generate, requests() * 2)
        while not unit.done():
            seen.append(engine.queue_load())
            time.sleep(0.002)
    assert max(load.running for load in seen) in range(1, 65)
    assert max(load.waiting for load in seen) > 0
    assert max(load.running + load.waiting for load in seen) <= 30
    assert engine.queue_load() == QueueLoad(running=0, waiting=0)


def test_a_closed_engine_generates_nothing(engine: GenerationEngine) -> None:
    begun = threading.Event()

    def work() -> str:
        begun.set()
        try:
            engine.generate(requests() * 40)
        except EngineLostError as error:
            return str(error)
        return "generated"

    with ThreadPoolExecutor(1) as threads:
        unit = threads.submit(work)
        begun.wait()
        time.sleep(0.1)
        engine.close()
        assert "closed" in unit.result(timeout=30)
    with pytest.raises(EngineLostError, match="closed"):
        engine.generate(requests()[:1])


def test_choosing_an_engine_imports_none() -> None:
    code = (
        "import sys, consomme.engines.generation.registry, consomme.engines.generation.requests\n"
        "print(sorted({'torch', 'vllm', 'transformers', 'openai', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "vlm"}, "did you mean 'vllm'"),
        ({"name": "vllm", "stall_s": 0}, "stall_s: found 0"),
        ({"name": "vllm", "max_model_length": 5}, "max_model_length: unknown key"),
        ({"name": "transformers", "batch_size": 0}, "batch_size: found 0"),
        ({"name": "openai"}, "url"),
        ({"name": "openai", "url": "localhost:8000"}, "expected http"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(node: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        GENERATION_ENGINES.build(node)


def test_where_an_engine_runs_is_known_before_it_starts() -> None:
    vllm = GENERATION_ENGINES.build({"name": "vllm", "tensor_parallel": 2})
    assert (vllm.is_remote, vllm.num_gpus) == (False, 2)
    served = GENERATION_ENGINES.build({"name": "openai", "url": "http://127.0.0.1:1/v1"})
    assert (served.is_remote, served.num_gpus) == (True, 0)
    assert GENERATION_ENGINES.build({"name": "transformers"}).num_gpus == 1
