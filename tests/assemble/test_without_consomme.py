"""Plain transformers opens what is of its classes, in a process that never imports consomme."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.assembled import PERCEIVER, inputs, made_of

from consomme.assemble.choices import MlpConnector, PixelShuffleConnector
from consomme.models.media_packages import MISSING_SCHEMAS
from consomme.models.weights import save_vlm

ASSEMBLIES = {
    "llava": {"connector": MlpConnector()},
    "llava_onevision": {"connector": MlpConnector(), "is_split": True},
    "idefics2": {"connector": PERCEIVER},
    "idefics3": {"connector": PixelShuffleConnector()},
}
PROGRAM = f"""
import sys
import torch
# There is no CPU build of these on the index.
for name, schema in {MISSING_SCHEMAS!r}.items():
    torch.library.define(f"torchvision::{{name}}", schema)
sys.modules["torchaudio"] = sys.modules["torchcodec"] = None
import transformers
from PIL import Image

for folder in sys.argv[1:]:
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    content = [{{"type": "image"}}, {{"type": "text", "text": "what is it?"}}]
    text = processor.apply_chat_template(
        [{{"role": "user", "content": content}}], add_generation_prompt=True, tokenize=False
    )
    image = Image.new("RGB", (64, 48), "teal")
    inputs = processor(text=[text], images=[[image]], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    print(model.config.model_type, inputs["input_ids"].shape[1], len(ids[0]))
assert "consomme" not in sys.modules
"""


@pytest.mark.long
def test_it_opens_and_writes(tmp_path: Path) -> None:
    expected = []
    for name, plan in ASSEMBLIES.items():
        made = made_of(**plan)
        save_vlm(tmp_path / name, made.model, made.processor)
        # The probe's image has the size of that of the program.
        expected.append((name, inputs(made.model, made.processor)["input_ids"].shape[1]))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(tmp_path / name) for name in ASSEMBLIES)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": ""},
    )
    found = [line.split() for line in done.stdout.splitlines() if line.count(" ") == 2]
    assert [(name, int(size)) for name, size, _ in found] == [
        (name, size) for name, size in expected
    ]
