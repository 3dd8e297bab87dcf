"""transformers and vLLM both load the shipped nano VLM, and write the same."""

import pytest

from consomme.datasets import scenes
from consomme.engines.transformers_generator import TransformersGenerator
from consomme.engines.vllm_captioner import VLLMCaptioner
from consomme.models.chat import rendered_prompt
from consomme.pipelines.checkpoints import model_folder

pytestmark = pytest.mark.vllm


def test_captions_and_answers_are_the_same_text():
    folder = model_folder("package://models/nano")
    made = [scenes.make_scene(800_000 + number) for number in range(12)]
    asked = [
        (scenes.render(scene), text)
        for number, scene in enumerate(made)
        for text in ("describe the image.", scenes.questions(scene, number)[0].question)
    ]
    images = [image for image, _ in asked]
    here = TransformersGenerator(folder).generate(images, [text for _, text in asked], 64)
    engine = VLLMCaptioner(folder, max_tokens=64, kv_cache_gb=0.25)
    try:
        prompts = [rendered_prompt(folder, text) for _, text in asked]
        there = engine.caption(images, prompts, [0] * len(prompts))
    finally:
        engine.close()
    assert [generation.text.strip() for generation in there] == here
    assert sum(" at the " in text for text in here) >= 10, "captions name places"
