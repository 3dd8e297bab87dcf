"""What fails for every conversation is an error of the model, when it is opened."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tests.engines.scoring.test_families import conversation
from tests.support.families import QWEN_TEMPLATE, chatml, noise, qwen2_vl, write
from tests.support.new_families import (
    chameleon,
    florence2,
    instructblip,
    qianfan_ocr,
    t5gemma2,
)
from tests.support.table_families import blip2

from consomme.base.errors import CheckpointError, DataError
from consomme.base.sample import ImageRef, Turn
from consomme.curate.perplexity import token_nll
from consomme.engines.generation.requests import GenerationFailure
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.generation.vllm import VLLMEngine
from consomme.engines.generation.vllm_loop import PreparedRequest
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.models.chat import ChatEncoder
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.encoded import ImageRefusedError
from consomme.models.weights import build_from_config, open_model, open_processor, save_vlm
from consomme.storage.model_folder import model_folder

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
    row = chat_encoder_for(*parts_with(flat_only)).encode(turns, [noise(0, 64, 48)])
    model, processor = qwen2_vl()
    expected = chat_encoder_for(model.config, processor).encode(turns, [noise(0, 64, 48)])
    assert row.input_ids == expected.input_ids
    assert row.pixels is not None


def test_a_marker_that_the_processor_replaces_is_an_image_and_no_text(tmp_path: Path) -> None:
    """Qianfan-OCR's template writes a placeholder that is not its image token."""
    folder = write(qianfan_ocr, tmp_path / "model")
    chat = chat_encoder_for(*open_processor(folder))
    assert "<image>" not in (chat.image_token, *chat.tokenizer.all_special_tokens)
    row = chat.encode(conversation("star"), [noise(0, 40, 40)])
    assert row.pixels is not None
    assert row.pixels.num_tokens > 0
    # In a text it would be replaced too.
    with pytest.raises(DataError, match="holds the special token '<image>'"):
        chat.encode(conversation("a <image> in the text"), [noise(0, 40, 40)])


def test_a_token_after_the_conversation_is_not_the_answer(tmp_path: Path) -> None:
    """Chameleon's processor ends each text with a separator."""
    chat = chat_encoder_for(*open_processor(write(chameleon, tmp_path / "model")))
    row = chat.encode(conversation("star"), [noise(0, 40, 40)])
    ((begin, end),) = row.spans
    assert chat.tokenizer.decode(row.input_ids[begin:end]) == "star<|im_end|>"
    assert chat.tokenizer.decode(row.input_ids[-1:]) == "<|endoftext|>"


@pytest.mark.parametrize("build", [blip2, instructblip])
def test_tokens_that_are_put_together_after_the_tokenizer_stop_at_load(
    tmp_path: Path, build: Any
) -> None:
    folder = write(build, tmp_path / "model")
    message = "changes the tokens of a conversation after its tokenizer"
    with pytest.raises(CheckpointError, match=message):
        TransformersScorer(folder, token_nll)
    with pytest.raises(CheckpointError, match=message):
        TransformersEngine(folder)


@pytest.mark.parametrize("build", [florence2, t5gemma2])
def test_an_encoder_and_a_decoder_of_text_stop_at_load(tmp_path: Path, build: Any) -> None:
    folder = write(build, tmp_path / "model")
    for open_folder in (open_processor, open_model, build_from_config):
        with pytest.raises(CheckpointError, match="with an encoder and a decoder of text"):
            open_folder(folder)


def test_an_image_that_the_family_cannot_take_is_refused_and_no_crash(tmp_path: Path) -> None:
    """What a processor raises about one image is not always a ValueError."""
    chat = chat_encoder_for(*parts_with(lambda images: images))
    inner = chat._processing.image_processor._inner

    class Failing:
        def __call__(self, images: Any, **options: Any) -> Any:
            raise RuntimeError("Input and output sizes should be greater than 0")

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    chat._processing.image_processor._inner = Failing()
    with pytest.raises(ImageRefusedError, match="sizes should be greater than 0"):
        chat.encode(conversation("star"), [noise(0, 40, 40)])


def test_images_that_vllm_cannot_prepare_stop_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = VLLMEngine.__new__(VLLMEngine)
    engine.chat = chat_encoder_for(*parts_with(lambda images: images))
    engine._config = SimpleNamespace(model="some folder")
    failure = GenerationFailure(reason="image_not_encodable", detail="no such input")
    monkeypatch.setattr(VLLMEngine, "_prepare", lambda *_: failure)
    with pytest.raises(CheckpointError, match="does not take a question about an image") as error:
        engine._check_images()
    assert "no such input" in str(error.value)
    ready = PreparedRequest(prompt={}, params=None)
    monkeypatch.setattr(VLLMEngine, "_prepare", lambda *_: ready)
    engine._check_images()


def test_the_mark_of_an_image_is_all_that_the_template_writes_for_it() -> None:
    """The nano model's marks of an image and of a user's turn end with the same character."""
    chat = chat_encoder_for(*open_processor(model_folder("package://models/nano")))
    assert isinstance(chat, ChatEncoder)
    turns = (
        Turn(role="user", content=("is ", ImageRef(0), " like ", ImageRef(1), "?")),
        Turn(role="assistant", content="no"),
    )
    images = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    row = chat.encode(turns, images, ["red", "blue"])
    assert len(row.images) == 2
    assert row.images[0].num_tokens == row.images[1].num_tokens > 0
    assert row.input_ids.count(chat.image_token_id) == 2 * row.images[0].num_tokens
