"""A vLLM engine in a process of its own that hangs or dies fails all pending requests."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from consomme.base.errors import EngineLostError
from consomme.datasets import scenes
from consomme.engines.generation.requests import Generation, Request, Sampling
from consomme.engines.generation.vllm import VLLMEngine
from consomme.engines.vllm_engine import EngineOptions
from consomme.storage.model_folder import model_folder

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.long]
STALL_S = 2.0


@pytest.fixture(params=["hangs", "dies"])
def failing_engine(request: pytest.FixtureRequest) -> Iterator[tuple[str, VLLMEngine]]:
    engine = VLLMEngine(
        model_folder("package://models/nano"),
        Sampling(max_tokens=400),
        EngineOptions(kv_cache_gb=0.25, own_process=True),
        stall_s=STALL_S,
    )
    yield request.param, engine
    engine.close()


def captions(count: int) -> list[Request]:
    return [
        Request.of_prompt(
            "describe the image.", [scenes.render(scenes.make_scene(820_000 + number))]
        )
        for number in range(count)
    ]


def test_all_pending_requests_fail(failing_engine: tuple[str, VLLMEngine]) -> None:
    failure, engine = failing_engine
    assert all(isinstance(one, Generation) for one in engine.generate(captions(8)))

    (core,) = engine.opened.processes()
    family = [psutil.Process(core.pid), *psutil.Process(core.pid).children(recursive=True)]
    begun = threading.Barrier(4)

    def work(count: int) -> EngineLostError | None:
        begun.wait()
        try:
            engine.generate(captions(count) * 20)
        except EngineLostError as error:
            return error
        return None

    with ThreadPoolExecutor(3) as threads:
        units = [threads.submit(work, count) for count in (1, 10, 30)]
        begun.wait()
        time.sleep(0.5)
        os.kill(core.pid, signal.SIGSTOP if failure == "hangs" else signal.SIGKILL)
        errors = [unit.result(timeout=60) for unit in units]

    assert all(errors), "no caller may wait forever"
    message = "no token in 2 s" if failure == "hangs" else "ended by itself|EngineDeadError"
    for error in errors:
        with pytest.raises(EngineLostError, match=message):
            raise error
    with pytest.raises(EngineLostError, match=message):
        engine.generate(captions(1))
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
