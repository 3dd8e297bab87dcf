"""Importing consomme does no work in the process, and the order of imports carries no meaning."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

IMPORT_ALL = """
import atexit, gc, importlib, json, pkgutil, sys

registered = []
register = atexit.register

def record(function, *args, **kwargs):
    registered.append(f"{function.__module__}.{function.__qualname__}")
    return register(function, *args, **kwargs)

atexit.register = record

import consomme

every = [one.name for one in pkgutil.walk_packages(consomme.__path__, "consomme.")]
# They are classes of transformers, which is imported for them.
own = [name for name in every if name.startswith("consomme.models.consomme_vlm.")]
names = [name for name in every if name not in own]
for name in names:
    importlib.import_module(name)

import torch

print(json.dumps({
    "names": names,
    "frozen": gc.get_freeze_count(),
    "is_collecting": gc.isenabled(),
    "operators": [n for n in ("nms", "qnms") if hasattr(torch.ops.torchvision, n)],
    "registered": registered,
    "modules": list(sys.modules),
    "hidden": [name for name, module in sys.modules.items() if module is None],
}))

for name in sorted(own, reverse=True):
    importlib.import_module(name)
"""

TRANSFORMERS_FIRST = """
import sys
from transformers import AutoConfig, AutoTokenizer, LogitsProcessor
from consomme.models.lora import LoraShape, add_lora
from consomme.models.weights import open_vlm

model, processor = open_vlm(sys.argv[1])
add_lora(model, ["model.language_model.layers.0.mlp.up_proj"], LoraShape(rank=2, alpha=2), "a")
print(type(model).__name__, type(processor).__name__)
"""


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    # Another test of this process may have prepared its children for vLLM.
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    plain = [path for path in paths if not (Path(path) / "sitecustomize.py").exists()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(plain)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_importing_every_module_does_no_work() -> None:
    found: dict[str, Any] = json.loads(run(IMPORT_ALL).splitlines()[-1])
    assert {"consomme.models.weights", "consomme.engines.vllm_engine"} <= set(found["names"])
    assert (found["frozen"], found["is_collecting"]) == (0, True)
    assert not [
        name
        for name in found["registered"]
        if name.startswith("consomme.") or name.endswith((".unfreeze", ".freeze"))
    ]
    # With working operators, torchvision defines them itself once something imports it.
    assert not found["operators"] or "torchvision" in found["modules"]
    assert not {"torchaudio", "torchcodec"} & set(found["hidden"])
    assert not {"transformers", "peft", "vllm"} & set(found["modules"])


@pytest.mark.slow
def test_models_open_after_other_code_imported_transformers(debug_vlm: Path) -> None:
    found = run(TRANSFORMERS_FIRST, str(debug_vlm))
    assert found.split() == ["LlavaForConditionalGeneration", "LlavaProcessor"]
