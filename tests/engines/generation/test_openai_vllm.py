"""vLLM's own server: the same greedy texts over HTTP as from transformers in this process."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from consomme.datasets import scenes
from consomme.engines.generation.registry import GENERATION_ENGINES
from consomme.engines.generation.requests import GenerationFailure, Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.vllm_environment import prepare_environment
from consomme.storage.model_folder import model_folder

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.long]
START_S = 240
OPTIONS = {
    "host": "127.0.0.1",
    "served-model-name": "nano",
    "dtype": "float32",
    "max-model-len": "512",
    "kv-cache-memory-bytes": str(2**28),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    prepare_environment()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += ["--model", model_folder("package://models/nano"), "--port", str(port)]
    for name, value in OPTIONS.items():
        command += [f"--{name}", value]
    threads = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env=os.environ | threads,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_for(health: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    ends = time.monotonic() + START_S
    while time.monotonic() < ends and server.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


def test_texts_are_those_of_transformers(url: str) -> None:
    sampling = Sampling(max_tokens=48)
    requests = []
    for number in range(6):
        scene = scenes.make_scene(830_000 + number)
        image = scenes.render(scene)
        requests.append(Request.of_prompt("describe the image.", [image]))
        requests.append(Request.of_prompt(scenes.questions(scene, number)[0].question, [image]))
    requests.append(Request.of_prompt("what color is the circle?"))
    expected = TransformersEngine(model_folder("package://models/nano"), sampling).generate(
        requests
    )
    engine = GENERATION_ENGINES.build({"name": "openai", "url": url})("nano", sampling)
    assert engine.generate(requests) == expected

    long = Request.of_prompt("star " * 2000, [Image.new("RGB", (64, 64))])
    found = engine.generate([requests[0], long, requests[1]])
    assert [found[0], found[2]] == expected[:2]
    assert isinstance(found[1], GenerationFailure)
    assert found[1].reason == "model_refused"
    assert "512" in found[1].detail
    engine.close()
