"""What fails for every conversation is an error of the model, when it is opened."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.support.families import QWEN_TEMPLATE, chatml, noise, qwen2_vl

from consomme.base.errors import CheckpointError
from consomme.base.sample import Turn
from consomme.curate.perplexity import token_nll
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import save_vlm

FAULTS = {
    "fails": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    "drops the answer": (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|vision_start|><|image_pad|>"
        "<|vision_end|>{% endif %}{% endfor %}",
        "does not write the assistant's text",
    ),
    "drops the image": (chatml(""), "the chat template drops the image"),
    "changes the answer": (
        QWEN_TEMPLATE.replace("{{ p['text'] }}", "{{ p['text'] | upper }}"),
        "does not write the assistant's text",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_template_that_cannot_be_used_stops_at_load(tmp_path: Path, fault: str) -> None:
    model, processor = qwen2_vl()
    processor.chat_template, message = FAULTS[fault]
    folder = save_vlm(tmp_path / "model", model, processor)
    with pytest.raises(CheckpointError, match=message):
        TransformersScorer(folder, token_nll)
    with pytest.raises(CheckpointError, match=message):
        TransformersEngine(folder)


def test_a_model_without_a_template_stops_at_load(tmp_path: Path) -> None:
    model, processor = qwen2_vl()
    processor.chat_template = processor.tokenizer.chat_template = None
    folder = save_vlm(tmp_path / "model", model, processor)
    for open_engine in (TransformersEngine, lambda path: TransformersScorer(path, token_nll)):
        with pytest.raises(CheckpointError, match="no chat template beside the model"):
            open_engine(folder)


def parts_with(prepare: Any) -> tuple[Any, Any]:
    """Return a config, and a processor whose images go through `prepare` first."""
    model, processor = qwen2_vl()
    inner = processor.image_processor

    class FamilyImageProcessor(type(inner)):  # type: ignore[misc]
        def __call__(self, images: Any, **options: Any) -> Any:
            return inner(prepare(images), **options)

    processor.image_processor = FamilyImageProcessor()
    return model.config, processor


def test_a_processor_that_fails_on_every_picture_stops_at_load() -> None:
    def fail(images: Any) -> Any:
        raise IndexError("tuple index out of range")

    with pytest.raises(CheckpointError, match="a question about a picture: IndexError"):
        chat_encoder_for(*parts_with(fail))


def test_a_processor_that_takes_no_nested_lists_gets_none() -> None:
    def flat_only(images: Any) -> Any:
        if not all(isinstance(image, Image.Image) for image in images):
            raise ValueError("expected a list of images")
        return images

    turns = [Turn(role="user", content="star?"), Turn(role="assistant", content="a red circle")]
    row = chat_encoder_for(*parts_with(flat_only)).encode(turns, noise(0, 64, 48))
    model, processor = qwen2_vl()
    expected = chat_encoder_for(model.config, processor).encode(turns, noise(0, 64, 48))
    assert row.input_ids == expected.input_ids
    assert row.pixels is not None
