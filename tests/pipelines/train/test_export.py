"""A trained model: dtype, side files and stop tokens of its base; what cannot be saved says so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.families import make, noise

from consomme.base.errors import CheckpointError
from consomme.models.imports import import_peft, import_transformers
from consomme.models.weights import cast_weights, open_vlm, stored_dtype
from consomme.pipelines.train.context import TrainContext
from consomme.pipelines.train.export import check_export, export
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.storage.model_folder import model_content_hash, model_folder
from consomme.train.parts import FROZEN, Part

NANO = "package://models/nano"
CONTRADICTORY = {"do_sample": False, "temperature": 0.1, "eos_token_id": 2}


def context_of(base: str, folder: Path, **changes: Any) -> TrainContext:
    source = TrainSource(inputs=("unused.parquet",))
    recipe = TrainRecipe(name="t", model=base, data=(source,), **changes)
    url = str(folder)
    return TrainContext(recipe=recipe, start=base, folder_url=url, is_private=True)


def exported(base: str, folder: Path, **changes: Any) -> Path:
    export(context_of(base, folder, **changes), (0,), {})
    return folder / "model"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The shipped model with further files, and a generation config that contradicts itself."""
    folder = tmp_path / "base"
    shutil.copytree(model_folder(NANO), folder)
    (folder / "generation_config.json").write_text(json.dumps(CONTRADICTORY))
    for name in ("LICENSE", "special_notes.txt", "pytorch_model.bin"):
        (folder / name).write_text("text")
    return folder


def test_a_generation_config_that_transformers_does_not_write_is_carried_over(
    base: Path, tmp_path: Path
) -> None:
    context = context_of(str(base), tmp_path)
    check_export(context)
    export(context, (0,), {})
    made = tmp_path / "model"
    assert json.loads((made / "generation_config.json").read_text()) == CONTRADICTORY
    names = {path.name for path in made.iterdir()}
    assert names == {p.name for p in base.iterdir()} - {"README.md", "pytorch_model.bin"}
    for name in names - {"config.json", "model.safetensors"}:
        assert (made / name).read_bytes() == (base / name).read_bytes(), name
    open_vlm(made)


def test_what_cannot_be_saved_is_refused_before_training(base: Path, tmp_path: Path) -> None:
    (base / "generation_config.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError, match=r"generation_config.json.* found no JSON object"):
        check_export(context_of(str(base), tmp_path))


def test_generation_stops_where_the_template_ends_a_turn(tmp_path: Path) -> None:
    """Idefics 2 as transformers makes it stops at `</s>` only, which the template never writes."""
    base = make("idefics2", tmp_path / "base")
    found = json.loads((base / "generation_config.json").read_text())["eos_token_id"]
    made = exported(str(base), tmp_path)
    model, processor = open_vlm(made)
    end = processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    assert model.generation_config.eos_token_id == [found, end]


@pytest.mark.parametrize(
    ("key", "expected"),
    [("auto", torch.bfloat16), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_weights_have_the_dtype_of_the_base_or_of_the_recipe(
    tmp_path: Path, key: str, expected: torch.dtype
) -> None:
    made = exported(NANO, tmp_path, export_dtype=key)
    before = load_file(Path(model_folder(NANO)) / "model.safetensors")
    after = load_file(made / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {expected}
    assert json.loads((made / "config.json").read_text())["dtype"] == str(expected)[6:]
    assert all(torch.equal(after[name], before[name].to(expected)) for name in before)


def test_most_weights_decide_what_the_dtype_of_a_base_is(debug_vlm: Path) -> None:
    assert stored_dtype(debug_vlm) == torch.float32
    assert stored_dtype(model_folder(NANO)) == torch.bfloat16


def test_weights_that_would_become_infinite_are_refused(debug_vlm: Path) -> None:
    model, _ = open_vlm(debug_vlm)
    model.lm_head.weight.data[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"lm_head.weight has weights beyond the range"):
        cast_weights(model, torch.float16)


def test_an_adapter_opens_in_peft_on_the_base_that_it_names(tmp_path: Path) -> None:
    lora = Part(state="lora", rank=2)
    context = context_of(
        NANO,
        tmp_path,
        language_model=lora,
        projector=FROZEN,
        save_adapter=True,
        export_dtype="float32",
    )
    from consomme.pipelines.train.export import open_trained

    model, _, _ = open_trained(context, (0, 3), {})
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.1
        for name, tensor in model.state_dict().items()
        if ".lora_" in name
    }
    export(context, (0, 3), weights)
    peft, hf = import_peft(), import_transformers()
    name = peft.PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path
    plain = hf.AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    merged, processor = open_vlm(tmp_path / "model")
    inputs = processor(text=["<image> a"], images=[noise(0, 40, 40)], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            adapted(**inputs).logits, merged(**inputs).logits, atol=1e-3, rtol=1e-4
        )


def test_harmless_edits_of_a_base_leave_its_trainings_as_they_are(base: Path) -> None:
    known = model_content_hash(base, generates=False)
    generation = base / "generation_config.json"
    generation.write_text(json.dumps({"do_sample": True, "eos_token_id": 2}))
    (base / "README.md").write_text("other notes")
    (base / "LICENSE.txt").write_text("other terms")
    assert model_content_hash(base, generates=False) == known
    generation.write_text(json.dumps({"eos_token_id": [2, 3]}))
    assert model_content_hash(base, generates=False) != known, "other tokens end an answer"
