"""What has to be known of an engine before it answers benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from consomme.vision.guidance import no_logits_problems

DEFAULT_ENGINE = {"name": "transformers", "dtype": "float32"}
"""Runs models and judges, if a recipe names no other engine."""


_BY_LIKELIHOOD = (
    "likelihood", "pairs", "aro_relation", "aro_attribution", "aro_order", "sugarcrepe",
    "winoground", "whatsup", "negatives", "scene_negatives", "scene_places", "scene_choices",
    "emoji_words", "emoji_glosses",
)  # fmt: skip
"""Benchmarks whose answers are likelihoods."""


def dtype_problems(engine: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yield why the answers of an engine cannot be known by its settings."""
    if engine.get("dtype", "float32") == "auto":
        yield (
            f"{where}.dtype: found auto, which depends on the machine; answers are cached by what"
            " decides them, so name it: float32, bfloat16 or float16"
        )


def likelihood_problems(node: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yield why a benchmark cannot be put to an engine that only writes."""
    how = node.get("answer_by", "generation")
    if node.get("name") in _BY_LIKELIHOOD or how != "generation":
        what = f"answer_by {how}" if how != "generation" else f"the kind {node['name']}"
        yield (
            f"{where}: {what} needs likelihoods of given texts, which the engine openai does not"
            " give; use {name: transformers} or {name: vllm}, or answer_by: generation"
        )
    for k, part in enumerate(node.get("parts", ())):
        yield from likelihood_problems(part["benchmark"], f"{where}.parts[{k}].benchmark")


def guidance_problems(node: Mapping[str, Any], engine: str, where: str) -> Iterator[str]:
    """Yield why a benchmark that guides the model cannot be put to an engine."""
    yield from no_logits_problems(node.get("guidance"), engine, f"{where}.guidance")
    for k, part in enumerate(node.get("parts", ())):
        yield from guidance_problems(part["benchmark"], engine, f"{where}.parts[{k}].benchmark")
