"""Templates of reasoning models: thinking is off, and an empty thought is no part of an answer."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.families import noise, qwen2_vl

from consomme.base.errors import CheckpointError
from consomme.base.recipe import check_recipe
from consomme.base.sample import Turn
from consomme.engines.generation.transformers import TransformersEngine
from consomme.models.chat import ChatEncoder
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.thoughts import answer_start
from consomme.models.weights import save_vlm
from consomme.pipelines.score.recipe import ScoreRecipe

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
CONTENT = (
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}"
    + IMAGE
    + "{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
)
NO_THINKING = "{% if enable_thinking is defined and not enable_thinking %}"

TEMPLATES = {
    # The last answer has an empty thought, earlier ones have none.
    "qwen3": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        f"{CONTENT}<|im_end|>\n{{% endfor %}}{{% if add_generation_prompt %}}"
        f"<|im_start|>assistant\n{NO_THINKING}<think>\n\n</think>\n\n{{% endif %}}{{% endif %}}"
    ),
    # All answers have an empty thought, and the prompt says that there is to be none.
    "glm": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}<think></think>\n{% endif %}"
        f"{CONTENT}{{% if m['role'] == 'user' %}}{NO_THINKING}/nothink{{% endif %}}{{% endif %}}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        f"{NO_THINKING}<think></think>\n{{% endif %}}{{% endif %}}"
    ),
    # Only the prompt has an empty thought.
    "gemma4": (
        f"{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n{CONTENT}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        f"{NO_THINKING}<|channel>thought\n<channel|>{{% endif %}}{{% endif %}}"
    ),
    # The prompt begins a thought, always.
    "deepseek_r1": (
        f"{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n{CONTENT}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
    # Turns are trimmed, the prompt is not.
    "trimmed": (
        f"{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}:{CONTENT}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    ),
}
TURNS = [
    Turn(role="user", content="star?"),
    Turn(role="assistant", content="a red circle"),
    Turn(role="user", content="what color is it?"),
    Turn(role="assistant", content="it is red"),
]


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    model, processor = qwen2_vl()
    return model.config, processor


def encoder(parts: tuple[Any, Any], template: str, **options: bool) -> ChatEncoder:
    config, processor = parts
    processor.chat_template = template
    made = chat_encoder_for(config, processor, options)
    assert isinstance(made, ChatEncoder)
    return made


@pytest.mark.parametrize("image", [None, noise(0, 64, 48)], ids=["text", "image"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_found_beside_empty_thoughts(
    parts: tuple[Any, Any], name: str, image: Any
) -> None:
    knows = "enable_thinking" in TEMPLATES[name]
    for options in ({}, {"enable_thinking": True}) if knows else ({},):
        chat = encoder(parts, TEMPLATES[name], **options)
        for turns in (TURNS, TURNS[:2]):
            row = chat.encode(turns, [image] if image else [])
            found = [chat.tokenizer.decode(row.input_ids[slice(*span)]) for span in row.spans]
            assert found == [f"{t.content}<|im_end|>" for t in turns if t.role == "assistant"]


def test_thinking_is_off_unless_the_recipe_says_otherwise(parts: tuple[Any, Any]) -> None:
    for name, thought in (("qwen3", "<think>\n\n</think>\n\n"), ("glm", "/nothink<|im_end|>")):
        for options, is_off in (({}, True), ({"enable_thinking": True}, False)):
            chat = encoder(parts, TEMPLATES[name], **options)
            prompt = chat.tokenizer.decode(chat.encode_prompt(TURNS[:1]).input_ids)
            assert (thought in prompt) == is_off


def test_the_writer_takes_options(parts: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = qwen2_vl()
    processor.chat_template = TEMPLATES["qwen3"]
    folder = save_vlm(tmp_path / "model", model, processor)
    lengths = [
        len(TransformersEngine(folder, template=options).chat.encode_prompt(TURNS[:1]).input_ids)
        for options in ({}, {"enable_thinking": True})
    ]
    assert lengths[0] > lengths[1]


def test_unknown_options_are_refused(parts: tuple[Any, Any]) -> None:
    with pytest.raises(CheckpointError, match="template: found enable_thinkin, but the model's"):
        encoder(parts, TEMPLATES["qwen3"], enable_thinkin=False)


def test_options_stand_in_recipes() -> None:
    values = {"name": "a", "model": "m", "inputs": ["x.tar"], "template": {"enable_thinking": True}}
    assert check_recipe(ScoreRecipe, values).template == {"enable_thinking": True}


def test_a_real_thought_is_no_empty_one() -> None:
    assert answer_start("A:", "A:<think>why</think>red", "red") is None
    assert answer_start("A:", "A:<think>\n</think> red", "red") == len("A:<think>\n</think> ")
    assert answer_start("A:", "A:<think>why</think>red", "<think>why</think>red") == 2
    assert answer_start("A:", "B:red", "red") is None
