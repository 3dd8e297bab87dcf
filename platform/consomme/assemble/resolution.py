"""Give the encoder of a VLM images of another size: stages of training with growing resolution.

An encoder of squares has a position for each patch. Those of another grid lie between them, and are
interpolated; everything else keeps its weights. Source: Idefics2 (arXiv 2405.02246), whose encoder
goes from 384 to 980 px between two stages of pre-training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from consomme.assemble.build import Assembled, check_positions
from consomme.base.errors import RecipeError
from consomme.base.sample import Turn
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.token_counts import grey


@torch.no_grad()
def change_resolution(model: Any, processor: Any, image_px: int) -> Assembled:
    """Change the size of the squares that a VLM's encoder takes, in place.

    Args:
        model: Of a family in `FAMILIES`.
        processor: Of the model.
        image_px: New side of the squares, a multiple of the side of a patch. With tiles, their
            number stays, so the largest image grows as they do.

    Raises:
        RecipeError: The family is another one, a grid does not fit the patches or the connector, or
            an image does not fit into the language model's positions.
    """
    family = str(model.config.model_type)
    if family not in FAMILIES:
        raise RecipeError(
            f"model: found a {family}, whose encoder takes images of any size or in a way of its"
            f" own; image_px changes {', '.join(FAMILIES)}"
        )
    encoders = list(_embeddings(model))
    if not encoders:
        raise RecipeError(
            f"model: found a {family} whose encoder has no table of positions for squares"
        )
    before, patch = int(encoders[0][1].image_size), int(encoders[0][1].patch_size)
    factor = _shuffle_factor(model.config, family)
    if image_px % (patch * factor):
        shuffled = f", {factor} of which become one token in each direction" if factor > 1 else ""
        raise RecipeError(
            f"image_px: found {image_px}, expected a multiple of {patch * factor}: patches have"
            f" {patch} px{shuffled}"
        )
    num_tokens = FAMILIES[family](model.config, processor, image_px, before)
    check_positions(_longest(model.config, processor, image_px), model.config)
    for owner, embeddings in encoders:
        _interpolate(embeddings, image_px)
        owner.config.image_size = image_px
    model.config.vision_config.image_size = image_px
    return Assembled(
        model=model, processor=processor, kind=family, num_tokens=num_tokens, new_tokens=()
    )


def _longest(config: Any, processor: Any, image_px: int) -> int:
    """Return the tokens of a question about one image, the most among images of usual shapes."""
    chat = chat_encoder_for(config, processor)
    turns = [Turn(role="user", content="")]
    shapes = ((4, 4), (4, 3), (3, 4), (16, 9), (9, 16))
    return max(
        len(chat.encode_prompt(turns, [grey((k * image_px, k * image_px * h // w))]).input_ids)
        for k in (1, 2)
        for w, h in shapes
    )


def _embeddings(model: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each encoder, and its module that adds positions to patches."""
    for owner in model.modules():
        config = getattr(owner, "config", None)
        found = getattr(owner, "embeddings", None)
        has_table = isinstance(getattr(found, "position_embedding", None), nn.Embedding)
        if has_table and hasattr(found, "patch_embedding") and hasattr(config, "image_size"):
            yield owner, found


def _interpolate(embeddings: Any, image_px: int) -> None:
    """Interpolate a table of positions (P, D), bicubic as transformers does for a single call.

    Rows before those of the patches, such as a class token's, stay.
    """
    old, new = (size // embeddings.patch_size for size in (embeddings.image_size, image_px))
    table_PD = embeddings.position_embedding.weight
    num_others = len(table_PD) - old * old
    others_PD, patches_PD = table_PD[:num_others], table_PD[num_others:]
    grid = patches_PD.float().T.reshape(1, -1, old, old)
    grown = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    grown_PD = grown.reshape(-1, new * new).T.to(table_PD.dtype)
    joined = torch.cat([others_PD, grown_PD])
    embeddings.position_embedding.weight = nn.Parameter(joined, table_PD.requires_grad)
    embeddings.position_embedding.num_embeddings = len(joined)
    embeddings.image_size, embeddings.num_patches = image_px, new * new
    embeddings.num_positions = len(joined)
    if hasattr(embeddings, "num_patches_per_side"):
        embeddings.num_patches_per_side = new
    if hasattr(embeddings, "position_ids"):
        embeddings.position_ids = torch.arange(len(joined))[None]


def _shuffle_factor(config: Any, family: str) -> int:
    """Return how many patches in each direction have to become one token without a rest."""
    return int(config.scale_factor) if family in ("idefics3", "smolvlm") else 1


def _num_patches(config: Any, image_px: int) -> int:
    return int(image_px // config.vision_config.patch_size) ** 2


def _squares(images: Any, image_px: int) -> None:
    """Have an image processor make squares of another side, in the way it did."""
    key = "shortest_edge" if "shortest_edge" in dict(images.size) else ""
    images.size = {key: image_px} if key else {"height": image_px, "width": image_px}
    if getattr(images, "crop_size", None):
        images.crop_size = {"height": image_px, "width": image_px}


def _tiles(processor: Any, image_px: int, num_tokens: int) -> bool:
    """Change the tiles of a processor that cuts images by a tiling of ours, if it is one."""
    images = processor.image_processor
    if type(processor).__name__ != "ConsommeTilingProcessor":
        return False
    images.tiling = {**images.tiling, "tile_px": image_px}
    processor.tokens_per_tile = num_tokens
    return True


def _llava(config: Any, processor: Any, image_px: int, before: int) -> int:
    num_tokens = _num_patches(config, image_px)
    config.image_seq_length = num_tokens
    if not _tiles(processor, image_px, num_tokens):
        _squares(processor.image_processor, image_px)
    return num_tokens


def _llava_onevision(config: Any, processor: Any, image_px: int, before: int) -> int:
    patches, known = _num_patches(config, image_px), _num_patches(config, before)
    grids = [[side * image_px // before for side in grid] for grid in config.image_grid_pinpoints]
    config.image_grid_pinpoints = grids
    processor.image_processor.image_grid_pinpoints = grids
    # With the class token, if it has one.
    processor.num_image_tokens += patches - known
    for part in (processor.image_processor, getattr(processor, "video_processor", None)):
        if part is not None:
            _squares(part, image_px)
    return patches


def _idefics2(config: Any, processor: Any, image_px: int, before: int) -> int:
    sizes = dict(processor.image_processor.size)
    processor.image_processor.size = {
        name: max(1, side * image_px // before) for name, side in sizes.items() if side
    }
    return int(config.perceiver_config.resampler_n_latents)


def _idefics3(config: Any, processor: Any, image_px: int, before: int) -> int:
    images = processor.image_processor
    longest = dict(images.size)["longest_edge"]
    images.size = {"longest_edge": longest * image_px // before}
    images.max_image_size = {"longest_edge": image_px}
    num_tokens = _num_patches(config, image_px) // int(config.scale_factor) ** 2
    processor.image_seq_len = num_tokens
    return num_tokens


def _consomme_vlm(config: Any, processor: Any, image_px: int, before: int) -> int:
    side = image_px // config.vision_config.patch_size
    options = config.connector_options
    factor = int(options.get("factor", 1))
    num_tokens = int(options.get("latents", (-(-side // factor)) ** 2))
    if config.cross_every:
        # One placeholder stands for all tokens of an image.
        num_tokens = 1
    config.num_image_tokens = num_tokens
    if not _tiles(processor, image_px, num_tokens):
        _squares(processor.image_processor, image_px)
        processor.num_image_tokens = num_tokens
    return num_tokens


FAMILIES: Mapping[str, Callable[[Any, Any, int, int], int]] = {
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "idefics2": _idefics2,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "consomme_vlm": _consomme_vlm,
}
"""By `model_type`: what changes configuration and processor, and returns the image tokens of a
square in the text; given both, and the new and the old side."""
