"""Sizes, language and script: right where they can be known, and honest where they cannot."""

import pytest
from tests.curate.tag.cases import tagger_input

from consomme.base.errors import RecipeError
from consomme.curate.language import num_words, script_of
from consomme.curate.tag.registry import TAGGERS
from consomme.curate.tag.text import Text
from consomme.datasets import emoji


def no_model(folder: str):
    raise AssertionError(f"{folder} was opened")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        ("... !!! —", 0),
        ("a large red circle", 4),
        ("don’t wear 2 t-shirts at 3.5 °C", 7),
        ("日本語の文章", 6),
        ("red 猫 cat", 3),
        ("빨간 고양이", 2),
        ("ﾈｺ", 2),
    ],
)
def test_words_are_counted_also_where_there_are_no_spaces(text: str, number: int) -> None:
    assert num_words(text) == number


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("größer than", "latin"),
        ("Привет, world of мир", "cyrillic"),
        ("日本語", "han"),
        ("カタカナーひらがな", "kana"),
        ("ａｂｃ 𝐛𝐨𝐥𝐝", "latin"),
        ("한국어", "hangul"),
        ("שלום", "hebrew"),
        ("aб", "cyrillic"),
        ("1234 €", ""),
        ("", ""),
    ],
)
def test_the_script_is_that_of_most_letters(text: str, script: str) -> None:
    assert script_of(text) == script


def test_long_texts_are_told_apart_and_short_ones_are_not_named() -> None:
    texts = [
        "This is a photograph of two dogs that play on the beach.",
        "Zwei Hunde spielen am Strand mit einem roten Ball.",
        "海滩上有两只狗在玩一个红色的球。",
        "砂浜で二匹の犬が赤いボールで遊んでいます。",
        "cat",
        "IMG_2031.jpg",
        "1234",
        "",
    ]
    columns = Text().open(no_model)([tagger_input(text) for text in texts]).columns
    assert columns["language"] == ["en", "de", "zh", "ja", "und", "und", "und", "und"]
    sure = columns["language_confidence"]
    assert all(value > 0.6 for value in sure[:4])
    assert all(value < 0.1 for value in sure[4:])
    assert columns["num_chars"] == [len(text) for text in texts]


def test_what_it_dares_to_name_is_right() -> None:
    named = [
        (language, name)
        for entry in emoji.load("noto")[::5]
        for language, name in {"en": entry.name, **entry.names}.items()
    ]
    inputs = [tagger_input(name) for _, name in named]
    found = Text().open(no_model)(inputs).columns["language"]
    dared = [(true, said) for (true, _), said in zip(named, found, strict=True) if said != "und"]
    assert len(dared) > 0.3 * len(named)
    assert sum(true == said for true, said in dared) > 0.98 * len(dared)
    some = Text(languages=("en", "de", "es", "fr", "ja")).open(no_model)(inputs)
    known = [said for said in some.columns["language"] if said != "und"]
    assert len(known) > 2 * len(dared)
    guesses = Text(min_confidence=0.0).open(no_model)(inputs).columns["language"]
    assert "und" not in guesses


def test_all_that_the_assistant_says_counts_and_nothing_else() -> None:
    asked = tagger_input(
        "Was ist das hier auf dem Bild?", "it is a red circle", "und?", "and a square"
    )
    columns = Text().open(no_model)([asked]).columns
    assert columns["num_words"] == [8]
    assert columns["num_chars"] == [len("it is a red circle\nand a square")]
    assert columns["language"] == ["en"]


def test_unknown_languages_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"languages: xx not known; expected some of ace, "):
        Text(languages=("en", "xx")).open(no_model)
    with pytest.raises(RecipeError, match=r"min_confidence: found 2\.0, expected 0 to 1"):
        TAGGERS.build({"name": "text", "min_confidence": 2})
