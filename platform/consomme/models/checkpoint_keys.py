"""Name tensors so that both transformers and vLLM load one checkpoint.

A CLIP or SigLIP vision encoder is stored as `vision_tower.vision_model.*`.
transformers 5.19 writes `vision_tower.*`, which vLLM 0.32 refuses; both read the longer name
(transformers reports no missing and no unexpected key, and generates the same tokens). Everything
else that transformers writes keeps its name: InternVL's own encoder has the short name in both.
"""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

_ENCODER_PREFIXES = ("vision_tower.", "model.vision_tower.")
_WRAPPER = "vision_model."
_ENCODERS = ("clip_vision_model", "siglip_vision_model")


def vllm_key(key: str) -> str:
    """Return the stored name of a LLaVA tensor; other names are returned unchanged."""
    for prefix in _ENCODER_PREFIXES:
        if key.startswith(prefix) and not key.startswith(prefix + _WRAPPER):
            return prefix + _WRAPPER + key.removeprefix(prefix)
    return key


def rewrite_for_vllm(folder: Path) -> int:
    """Rename the vision encoder's tensors in a saved folder where necessary; safe to repeat.

    Each safetensors file is written to a temporary name and renamed, so a reader sees the old or
    the new file, never a part of one.

    Returns:
        The number of tensors renamed.
    """
    config = json.loads((folder / "config.json").read_text())
    if config.get("vision_config", {}).get("model_type") not in _ENCODERS:
        return 0
    renamed = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            keys = list(stored.keys())
            metadata = stored.metadata() or {"format": "pt"}
            changed = sum(vllm_key(key) != key for key in keys)
            tensors = {vllm_key(key): stored.get_tensor(key) for key in keys} if changed else {}
        if changed:
            temporary = path.with_suffix(".tmp")
            save_file(tensors, temporary, metadata=metadata)
            temporary.replace(path)
            renamed += changed
    index = folder / "model.safetensors.index.json"
    if renamed and index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] = {vllm_key(k): v for k, v in content["weight_map"].items()}
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    return renamed
