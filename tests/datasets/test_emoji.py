"""The embedded emoji: what is shipped, what is held out, and under which licences."""

import ast
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import consomme.datasets.augment
import consomme.train
from consomme.base.errors import RecipeError
from consomme.datasets import emoji
from consomme.datasets.sources import SAMPLE_SOURCES, EmojiSource
from consomme.datasets.truth import SceneTruth
from consomme.storage.units import plan_units, read_unit

ALL_STYLES = (*emoji.TRAIN_STYLES, emoji.HELD_OUT_STYLE)
NUM_PICTURES = {
    "noto": 1653,
    "noto-v1": 1227,
    "openmoji": 1914,
    "fluent-emoji-flat": 1595,
    "emojione": 1319,
    "twemoji": 1914,
}


@pytest.mark.parametrize("style", ALL_STYLES)
def test_every_style_is_whole(style: str) -> None:
    entries = emoji.load(style)
    assert len(entries) == NUM_PICTURES[style]
    assert len({e.sample_id for e in entries}) == len({e.name for e in entries}) == len(entries)
    assert all(e.name.strip() and {"de", "es", "fr", "ja"} <= set(e.names) for e in entries)
    pictures = emoji.pixels(entries[::20])
    assert pictures.shape[1:] == (64, 64, 4)
    assert (pictures[..., 3].max(axis=(1, 2)) > 200).all(), "a picture is empty"


@pytest.mark.parametrize("style", ALL_STYLES)
def test_shards_are_read_like_any_other_data(style: str) -> None:
    units = plan_units([str(emoji.shard(style))], "emoji", max_rows=100)
    samples, rejects = read_unit(units[0])
    assert not rejects
    assert len(samples) > 50
    captions = [sample.caption for _, sample in samples]
    assert captions == [entry.name for entry in emoji.load(style)[: len(samples)]]
    assert samples[0][1].images[0].data == emoji.load(style)[0].image


def test_names_mean_the_same_picture_in_every_style() -> None:
    names = [{e.code: e.name for e in emoji.load(style)} for style in ALL_STYLES]
    for table in names:
        assert all(names[2].get(code, name) == name for code, name in table.items())
    thumbs_up = [e for style in ALL_STYLES for e in emoji.load(style) if e.code == "1f44d"]
    assert {e.name for e in thumbs_up} == {"thumbs up"}
    assert len({e.image for e in thumbs_up}) == len(ALL_STYLES)


def test_size_and_licences() -> None:
    files = list(emoji.DATA.iterdir())
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    text = (emoji.DATA / "LICENSES.md").read_text()
    assert {f"emoji-{style}.parquet" for style in ALL_STYLES} == {
        path.name for path in files if path.suffix == ".parquet"
    }
    for style in ALL_STYLES:
        row = next(line for line in text.splitlines() if f"`emoji-{style}.parquet`" in line)
        assert any(licence in row for licence in ("Apache-2.0", "CC BY", "MIT")), style
    assert "unicode license v3" in text.lower()


def test_the_held_out_style_is_never_trained_on() -> None:
    assert emoji.HELD_OUT_STYLE not in emoji.TRAIN_STYLES
    folder = Path(consomme.train.__file__).parent
    for path in (*folder.glob("*.py"), Path(consomme.datasets.augment.__file__)):
        words = {
            node.value if isinstance(node, ast.Constant) else node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant | ast.Attribute)
        }
        assert not words & {emoji.HELD_OUT_STYLE, "HELD_OUT_STYLE"}, path.name


def test_the_views_the_nano_vlm_trains_on_are_of_training_styles() -> None:
    from consomme.nano.data import EmojiViews

    views = EmojiViews(("noto",))
    assert {e.style for entries in views.by_name.values() for e, _ in entries} == {"noto"}
    assert EmojiViews.__init__.__defaults__ == (emoji.TRAIN_STYLES,)


def test_the_source_makes_samples_of_the_bytes_as_they_are() -> None:
    source = SAMPLE_SOURCES.build({"name": "emoji", "styles": ["twemoji"], "every": 500})
    samples = list(source())
    assert [s.sample_id for s in samples] == [e.sample_id for e in emoji.load("twemoji")[::500]]
    with Image.open(io.BytesIO(samples[0].images[0].data)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (64, 64))
    assert samples[0].images[0].name == f"{samples[0].sample_id}.webp"
    assert SceneTruth()(samples[0], "anything") is None


def test_an_unknown_style_is_named_with_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="unknown emoji style 'twemojis'; did you mean 'twemoji'"):
        EmojiSource(styles=("twemojis",))


def test_random_views_are_seeded_and_keep_the_picture() -> None:
    import random

    rgba = emoji.pixels(emoji.load("noto")[:1])[0]
    first = consomme.datasets.augment.augment_emoji(rgba, random.Random(4), 60)
    again = consomme.datasets.augment.augment_emoji(rgba, random.Random(4), 60)
    assert first.shape == (60, 60, 3)
    assert np.array_equal(first, again)
    plain = consomme.datasets.augment.plain_view(rgba, 60)
    assert plain[0, 0].tolist() == [255, 255, 255]
