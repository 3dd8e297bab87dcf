"""The processor with tilings: text and pixels agree, folders keep it, standard classes take it."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.families import hf, noise, write
from tests.support.tiled import TILED, tiled_llava

from consomme.base.errors import RecipeError
from consomme.models.tiling.image_processor import ConsommeTilingImageProcessor
from consomme.models.tiling.register import registered_transformers
from consomme.models.weights import open_vlm

SIZES = [(40, 40), (90, 30), (25, 70), (64, 48), (10, 200)]
ONE = "<|im_start|>user\n{mark}what color is the star?<|im_end|>\n<|im_start|>assistant\n"


def mark_of(processor: Any) -> str:
    return str(processor.image_token)


@functools.cache
def built(name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model, processor = TILED[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model.eval(), processor


@pytest.mark.parametrize("name", TILED)
def test_a_folder_keeps_the_processor(tmp_path: Path, name: str) -> None:
    _, processor = built(name)
    processor.save_pretrained(tmp_path)
    opened = registered_transformers().AutoProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(opened) is type(processor)
    images = [noise(k, *size) for k, size in enumerate(SIZES)]
    text = [ONE.format(mark=mark_of(processor) * len(images))]
    one, other = (
        dict(some(text=text, images=[images], return_tensors="pt")) for some in (processor, opened)
    )
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key
    alone = hf.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert torch.equal(alone(images, return_tensors="pt")["pixel_values"], one["pixel_values"])


def test_square_is_what_the_image_processor_of_clip_makes() -> None:
    theirs = hf.CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    ours = ConsommeTilingImageProcessor(
        tiling={"name": "square", "tile_px": 32, "resample": "bicubic"},
        image_mean=theirs.image_mean,
        image_std=theirs.image_std,
    )
    images = [noise(k, *size) for k, size in enumerate(SIZES)]
    expected = theirs(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours(images, return_tensors="pt")["pixel_values"], expected)


def test_dynamic_is_what_the_image_processor_of_internvl_makes() -> None:
    theirs = hf.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=6
    )
    ours = ConsommeTilingImageProcessor(
        tiling={"name": "dynamic", "tile_px": 32, "max_tiles": 6},
        image_mean=theirs.image_mean,
        image_std=theirs.image_std,
    )
    images = [noise(k, *size) for k, size in enumerate(SIZES)]
    expected = theirs(images, return_tensors="pt")
    found = ours(images, return_tensors="pt")
    assert found["num_tiles"].tolist() == expected["num_patches"].tolist()
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("name", TILED)
def test_tokens_of_a_size_are_those_of_the_picture(name: str) -> None:
    _, processor = built(name)
    draw = random.Random(name)
    mark = mark_of(processor)
    with_mark = len(processor.tokenizer(ONE.format(mark=mark))["input_ids"])
    for number in range(30):
        width, height = draw.randint(1, 300), draw.randint(1, 300)
        (predicted,) = processor._get_num_multimodal_tokens([(height, width)]).num_image_tokens
        output = processor(text=[ONE.format(mark=mark)], images=[[noise(number, width, height)]])
        assert len(output["input_ids"][0]) == with_mark - 1 + predicted
        (tiles,) = processor._get_num_multimodal_tokens([(height, width)]).num_image_patches
        assert len(output["pixel_values"]) == tiles


@pytest.mark.parametrize("name", TILED)
def test_a_batch_of_different_tile_counts_gives_what_each_alone_gives(name: str) -> None:
    model, processor = built(name)
    mark = mark_of(processor)
    several = [[noise(0, 90, 30)], [noise(1, 25, 70), noise(2, 40, 40)], [noise(3, 64, 200)]]
    texts = [ONE.format(mark=mark * len(images)) for images in several]
    processor.tokenizer.padding_side = "right"
    batch = processor(text=texts, images=several, padding=True, return_tensors="pt")
    with torch.no_grad():
        together = model(**batch).logits
        for row, (text, images) in enumerate(zip(texts, several, strict=True)):
            one = processor(text=[text], images=[images], return_tensors="pt")
            logits = model(**one).logits[0]
            length = len(logits)
            assert int(batch["attention_mask"][row].sum()) == length
            assert torch.allclose(together[row, :length], logits, atol=2e-4, rtol=1e-4)
        # The pictures are seen: others give something else.
        other = processor(text=[texts[0]], images=[[noise(9, 90, 30)]], return_tensors="pt")
        first = processor(text=[texts[0]], images=[several[0]], return_tensors="pt")
        assert (model(**other).logits - model(**first).logits).abs().max() > 1e-2


@pytest.mark.parametrize("name", TILED)
def test_generation_with_the_cache_is_that_without(name: str) -> None:
    model, processor = built(name)
    text = ONE.format(mark=mark_of(processor))
    inputs = processor(text=[text], images=[[noise(1, 90, 30)]], return_tensors="pt")
    with_cache, without = (
        model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert with_cache.tolist() == without.tolist()
    assert with_cache.shape[1] > inputs["input_ids"].shape[1]


def test_a_model_folder_is_opened_with_its_tiling(tmp_path: Path) -> None:
    write(TILED["catty_llava"], tmp_path)
    model, processor = open_vlm(tmp_path)
    assert processor.image_processor.tiling == {"name": "catty", "max_tiles": 4, "tile_px": 32}
    inputs = processor(
        text=[ONE.format(mark="<image>")], images=[[noise(0, 90, 30)]], return_tensors="pt"
    )
    assert len(inputs["pixel_values"]) == 4
    assert model(**inputs).logits.isfinite().all()


def test_separators_stand_between_tiles() -> None:
    _, processor = built("separated_llava")
    written = processor.replace_image_token({"tile_grids": [[2, 2]], "num_tiles": [5]}, 0)
    tile = "<image>" * 16
    rows = f"{tile} {tile}\n{tile} {tile}"
    assert written == f"<img>{rows}<all>\n{tile}</img>"


def test_pictures_are_split_where_a_call_says_so() -> None:
    _, processor = tiled_llava({"name": "split", "probability": 0.5})
    text, image = ONE.format(mark="<image>"), noise(0, 50, 40)
    counts = {}
    for is_split in (None, True, False):
        options = {} if is_split is None else {"is_split": is_split}
        output = processor(text=[text], images=[[image]], **options)
        (tiles,) = processor._get_num_multimodal_tokens([(40, 50)], **options).num_image_patches
        counts[is_split] = len(output["pixel_values"])
        assert counts[is_split] == tiles
    assert counts == {None: 5, True: 5, False: 1}


def test_pictures_are_taken_as_arrays_and_tensors_too() -> None:
    ours = ConsommeTilingImageProcessor(tiling={"name": "catty", "tile_px": 32})
    image = noise(0, 90, 30)
    pixels = np.asarray(image)
    expected = ours([image], return_tensors="pt")["pixel_values"]
    for given in (pixels, pixels.transpose(2, 0, 1), torch.tensor(pixels.transpose(2, 0, 1))):
        assert torch.equal(ours([given], return_tensors="pt")["pixel_values"], expected)
    grey = Image.fromarray(pixels[..., 0])
    assert torch.equal(
        ours([grey], return_tensors="pt")["pixel_values"],
        ours([grey.convert("RGB")], return_tensors="pt")["pixel_values"],
    )
    with pytest.raises(ValueError, match="found pixels of float64, expected whole numbers"):
        ours([pixels / 255])


def test_a_wrong_tiling_is_refused_before_any_picture() -> None:
    with pytest.raises(RecipeError, match="did you mean 'catty'"):
        ConsommeTilingImageProcessor(tiling={"name": "caty"})
    refusing = ConsommeTilingImageProcessor(
        tiling={"name": "catty", "tile_px": 32, "extreme": "refuse"}
    )
    with pytest.raises(ValueError, match="400 x 10, expected at most 8 to 1"):
        refusing([noise(0, 400, 10)])


def test_a_program_of_others_opens_a_folder_after_one_call(tmp_path: Path) -> None:
    _, processor = built("catty_llava")
    processor.save_pretrained(tmp_path)
    program = (
        "from consomme.models.tiling.register import registered_transformers\n"
        "registered_transformers()\n"
        "from transformers import AutoProcessor\n"
        f"print(type(AutoProcessor.from_pretrained({str(tmp_path)!r}, backend='pil')).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "ConsommeTilingProcessor"
