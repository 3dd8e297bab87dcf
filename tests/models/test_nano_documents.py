"""The nano VLM's template writes `<user><image>`: the mark is found although both end alike."""

from pathlib import Path

import pytest

from consomme.datasets import scenes
from consomme.datasets.sources import SAMPLE_SOURCES
from consomme.models.chat import ChatEncoder
from consomme.models.weights import open_model
from consomme.storage.model_folder import model_folder


@pytest.fixture(scope="module")
def chat() -> ChatEncoder:
    model, processor = open_model(Path(model_folder("package://models/nano")))
    return ChatEncoder(model.config, processor)


@pytest.mark.parametrize("name", ["scene_which", "scene_changes", "scene_documents"])
def test_what_it_is_trained_on_holds_each_image_in_its_place(chat: ChatEncoder, name: str) -> None:
    words = chat.tokenizer
    for sample in SAMPLE_SOURCES.build({"name": name, "num": 4})():
        images = [scenes.render(scenes.make_scene(n)) for n in range(len(sample.images))]
        encoded = chat.encode(sample.turns, images)
        shown = words.decode(encoded.input_ids).replace("<image>" * 25, "<image>")
        if name == "scene_documents":
            text = "".join(p if isinstance(p, str) else "<image>" for p in sample.turns[0].parts)
            assert shown == f"{text}<end>", (
                "documents have no template, and this tokenizer adds nothing"
            )
        else:
            user, answer = sample.turns
            text = "".join(part if isinstance(part, str) else "<image>" for part in user.parts)
            before = "" if user.image_indices else "<image>" * len(images)
            assert shown == f"<bos><user>{before}{text}<assistant>{answer.text}<end>"
        labelled = [words.decode(encoded.input_ids[begin:end]) for begin, end in encoded.spans]
        assert labelled[-1] == f"{sample.turns[-1].parts[-1]}<end>"
