"""A guard names what is wrong with a text, and lets ordinary captions of all kinds pass."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import RecipeError
from consomme.base.schema import parse
from consomme.curate.caption.guards import (
    GUARD_REASONS,
    Guards,
    longest_run,
    normalised_text,
    overly_frequent_texts,
    repeated_fraction,
    similarity,
)
from consomme.curate.caption.prompts import CAPTION_PROMPTS
from consomme.datasets import emoji, scenes
from consomme.datasets.scene_tasks import TASKS

SCENE = "A large red circle is to the left of a small blue square, and a green star is above it."
PROMPT = "Describe the image briefly."

REFUSALS = [
    "I'm sorry, but I can't assist with that request.",
    "I’m sorry, I cannot identify the person in this picture.",
    "Sorry, I am unable to view images.",
    "I cannot provide a description of this image.",
    "I'm not able to help with identifying people.",
    "As an AI language model, I do not have the ability to see pictures.",
    "As a large language model I can only read text.",
    "Unfortunately, I can't see any image here.",
    "I apologize, but there is no image attached to your message.",
    "It looks like you haven't uploaded an image.",
    "Es tut mir leid, aber ich kann dieses Bild nicht beschreiben.",
    "Als KI kann ich keine Bilder sehen.",
    "Je suis désolé, mais je ne peux pas décrire cette image.",
    "En tant qu'IA, je n'ai pas accès aux images.",
    "Lo siento, pero no puedo ayudar con eso.",
    "Como modelo de lenguaje, no veo imágenes.",
    "Desculpe, mas não posso descrever esta imagem.",
    "Mi dispiace, ma non posso identificare le persone.",
    "Het spijt me, maar ik kan deze afbeelding niet beschrijven.",
    "Извините, но я не могу описать это изображение.",
    "Przepraszam, ale nie mogę opisać tego obrazu.",
    "Üzgünüm, bu görüntüyü tarif edemem.",
    "很抱歉，我无法查看这张图片。",
    "对不起，我不能提供对该图像的描述。",
    "作为一个人工智能，我没有视觉。",
    "申し訳ありませんが、この画像を説明することはできません。",
    "죄송하지만 이 이미지를 설명할 수 없습니다.",
    "عذراً، لا يمكنني وصف هذه الصورة.",
    "क्षमा करें, मैं इस छवि का वर्णन नहीं कर सकता।",
]

NO_REFUSALS = [
    "A sign on a shop door that says: I'm sorry, I cannot help you today.",
    "\"I'm sorry, I can't see you\" is written on a card.",
    "“Sorry, I cannot open” on a closed door.",
    "Sorry, we are closed, says a sign on a shop door.",
    "I'm sorry, I love you, in white letters on a mug.",
    "A robot that says: as an AI I do not dream.",
    "An AI chip on a green circuit board.",
    "As an airplane takes off, people wave.",
    "Unfortunately placed tree in front of a church.",
    "Ein Schild, auf dem steht: Es tut mir leid, ich kann nicht.",
    "Leider geöffnet, steht auf einem Schild.",
    "Tut mir leid, sagt die Katze im Comic.",
    "Lo siento, dice un cartel rojo en la puerta.",
    "No puedo más, dice la camiseta.",
    "写着“对不起，我无法帮助你”的牌子。",
    "对不起，打扰了，牌子上写着。",
    "看板に「申し訳ありませんが、入れません」と書いてある。",
    "a face that is sorry",
    "there is no image of a cat on the wall, only a dog",
    "I ❤ NY on a T-shirt.",
]


@pytest.mark.parametrize(
    "text",
    [
        SCENE,
        "circle",
        "A red circle, a red square, a red star and a red triangle on a red ground.",
        "三个红色的圆圈在蓝色的方块左边,上面有一颗绿色的星星",
        "The sign says STOP STOP STOP.",
    ],
)
def test_ordinary_captions_pass(text):
    assert Guards()(text, "stop", prompt=PROMPT, original="IMG_0001.jpg") is None


FAILURES = [
    ("", "stop", "empty"),
    (" .,! \n", "stop", "empty"),
    (SCENE, "length", "truncated"),
    (f"<|assistant|>{SCENE}", "stop", "template"),
    ("USER: what is this", "stop", "template"),
    (f"Describe the image: {SCENE}", "stop", "echo"),
    ("an OLD caption", "stop", "copy"),
    ("red red red red", "stop", "repetition"),
    ("a cat on a cat on a cat on a cat on", "stop", "repetition"),
    (f"{SCENE} And then. {SCENE} Oh. {SCENE}", "stop", "repetition"),
    ("红色的圆" * 8, "stop", "repetition"),
]


@pytest.mark.parametrize(("text", "finish_reason", "reason"), FAILURES)
def test_each_failure_has_its_reason(text, finish_reason, reason):
    found = Guards()(text, finish_reason, prompt="describe the image", original="An old caption.")
    assert found == f"model_output_{reason}"
    assert found in GUARD_REASONS


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a cat at [1,2,30,40] and a dog at [ 5, 6, 700, 800 ]", None),
        ("a cat", "model_output_boxes"),
        ("a cat at [1,2,30]", "model_output_boxes"),
        ("a cat at [1,2,30,40], a dog at [30,40,1,2]", "model_output_boxes"),
        ("a cat at [1,2,30,40], a dog at [0.1,0.2,0.3,0.4]", "model_output_boxes"),
        ("a cat at [1,2,30,1000]", "model_output_boxes"),
    ],
)
def test_answers_about_places_name_boxes_and_nothing_like_them(text, reason):
    asked = {"prompt": "where is it?", "original": None}
    guards = Guards(boxes=True)
    assert guards(text, "stop", **asked, has_boxes=True) == reason
    assert guards(text, "stop", **asked) is None
    assert Guards()(text, "stop", **asked, has_boxes=True) is None
    assert reason is None or reason in GUARD_REASONS


OFF = Guards(
    empty=False,
    truncated=False,
    template_markers=(),
    refusal=False,
    echo=False,
    copy_similarity=None,
    max_repeat_fraction=None,
    max_run=None,
)


@pytest.mark.parametrize(("text", "finish_reason", "reason"), FAILURES)
def test_each_guard_can_be_switched_off(text, finish_reason, reason):
    found = OFF(text, finish_reason, prompt="describe the image", original="An old caption.")
    assert found is None


def test_guards_are_part_of_a_recipe():
    built, problems = parse(Guards, {"min_words": 5, "template_markers": ["###"], "echo": False})
    assert (built, problems) == (
        Guards(min_words=5, template_markers=("###",), echo=False),
        [],
    )
    assert parse(Guards, {"refusals": False})[1] == [
        "refusals: unknown key; did you mean 'refusal'?"
    ]


def test_truncated_texts_can_be_allowed():
    assert Guards(truncated=False)(SCENE, "length", prompt="", original=None) is None


@pytest.mark.parametrize("text", REFUSALS)
def test_excuses_are_no_captions(text):
    assert Guards()(text, "stop", prompt=PROMPT, original=None) == "model_output_refusal"


@pytest.mark.parametrize("text", NO_REFUSALS)
def test_quoting_an_excuse_is_none(text):
    assert Guards()(text, "stop", prompt=PROMPT, original=None) is None


@pytest.mark.parametrize(
    ("wanted", "prompt", "text", "is_refused"),
    [
        ("en", "", SCENE, False),
        ("en", "", "Zwei Hunde spielen am Strand mit einem großen roten Ball.", True),
        ("de", "", "Zwei Hunde spielen am Strand mit einem großen roten Ball.", False),
        ("en", "", "海滩上有两只狗在玩一个红色的球。", True),
        ("prompt", "请详细描述这张图片。", "海滩上有两只狗在玩一个红色的球。", False),
        ("prompt", "请详细描述这张图片。", SCENE, True),
        ("prompt", "Give a detailed description of this picture.", SCENE, False),
        (
            "prompt",
            "Give a detailed description of this picture.",
            "海滩上有两只狗在玩红球。",
            True,
        ),
        # What is too short, or asked in no clear language, is not judged.
        ("en", "", "Zwei Hunde am Strand", False),
        ("en", "", "犬が二匹", False),
        ("prompt", "?", "海滩上有两只狗在玩一个红色的球。", False),
    ],
)
def test_another_language_than_asked_for_is_told(wanted, prompt, text, is_refused):
    found = Guards(language=wanted)(text, "stop", prompt=prompt, original=None)
    assert found == ("model_output_language" if is_refused else None)


def test_length_is_counted_in_words():
    limits = Guards(min_words=3, max_words=5)
    expected = {
        "a cat": "model_output_short",
        "a red cat": None,
        "a red cat on grass": None,
        "a red cat on the grass": "model_output_long",
        "红猫": "model_output_short",
        "红猫在草地": None,
    }
    assert {t: limits(t, "stop", prompt="", original=None) for t in expected} == expected


def test_a_near_copy_is_told_from_a_correction():
    long = " ".join(f"word{n}" for n in range(70))
    guards = Guards()

    def judged(text: str, original: str) -> str | None:
        return guards(text, "stop", prompt="", original=original)

    assert judged(long.upper() + "!", long) == "model_output_copy"
    assert judged(long.replace("word33", "other"), long) == "model_output_copy"
    assert judged(SCENE.replace("red", "blue"), SCENE) is None
    assert judged(f"{SCENE} A bird sits on it.", SCENE) is None
    assert judged("a star above a circle", "a circle above a star") is None
    assert judged("", "...") == "model_output_empty"
    assert judged("a cat", "...") is None
    assert Guards(copy_similarity=0.6)(
        SCENE.replace("red", "blue"), "stop", prompt="", original=SCENE
    )


def test_likeness_by_hand():
    assert similarity("a b c".split(), "a b c".split()) == 1.0
    # Triples: --a -ab abc bc- c-- against --a -ab abd bd- d--.
    assert similarity("a b c".split(), "a b d".split()) == pytest.approx(2 * 2 / 10)
    assert similarity("a".split(), "b".split()) == 0.0


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_likeness_is_symmetric_and_whole_only_for_the_same_words_in_number(first, second):
    found = similarity(first, second)
    assert found == similarity(second, first)
    assert 0 <= found <= 1
    assert similarity(first, first) == 1.0
    if found == 1.0:
        assert sorted(first) == sorted(second)


def test_long_originals_take_linear_time():
    original = "buy cheap shoes now " * 10_000
    assert (
        Guards(max_run=None, max_repeat_fraction=None)(
            original + "x", "stop", prompt="", original=original
        )
        == "model_output_copy"
    )


def test_what_a_whole_run_says_too_often():
    counts = {"a red circle": 300, "a cat": 90, "a dog": 19} | {f"thing {n}": 1 for n in range(591)}
    assert overly_frequent_texts(counts, max_fraction=0.05) == ["a red circle", "a cat"]
    assert overly_frequent_texts(counts, max_fraction=0.01) == ["a red circle", "a cat"]
    assert overly_frequent_texts(counts, max_fraction=0.01, min_count=1)[2:] == ["a dog"]
    assert overly_frequent_texts(counts, max_fraction=0.3) == []
    assert overly_frequent_texts({}) == []
    assert overly_frequent_texts({"a": 19}) == []
    assert overly_frequent_texts({7: 50, 9: 50, 8: 9900}, max_fraction=0.001) == [8, 7, 9]
    assert normalised_text(" A  Red\nCircle ") == "a red circle"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"copy_similarity": 2}, "copy_similarity: found 2, expected 0 to 1"),
        ({"max_run": 0, "min_words": 0}, r"min_words: found 0, .*\n.*max_run: found 0, "),
        ({"min_words": 9, "max_words": 8}, "min_words: found 9, above max_words 8"),
        ({"language": "xx"}, "languages: xx not known; expected some of"),
    ],
)
def test_mistakes_are_told(keys, message):
    with pytest.raises(RecipeError, match=message):
        Guards(**keys)


def test_repetition_is_counted_by_hand():
    assert repeated_fraction("a b a b a b".split(), 2) == pytest.approx(3 / 5)
    assert repeated_fraction(["a"], 2) == 0.0
    assert longest_run("a cat on a cat on a cat on".split(), max_period=8) == 3
    assert longest_run("red red red".split(), max_period=8) == 3
    assert longest_run([], max_period=8) == 0


def test_true_names_in_every_language_raise_no_alarm():
    names = {
        (language, name)
        for style in (*emoji.TRAIN_STYLES, emoji.HELD_OUT_STYLE)
        for entry in emoji.load(style)
        for language, name in {"en": entry.name, **entry.names}.items()
    }
    guards = {
        language: Guards(language=language) for language in sorted({lang for lang, _ in names})
    }
    assert len(names) > 9000
    alarms = [
        (language, name, why)
        for language, name in sorted(names)
        if (why := guards[language](name, "stop", prompt=PROMPT, original=None))
    ]
    assert len(alarms) <= 0.001 * len(names), alarms


def test_true_captions_of_scenes_raise_no_alarm():
    guards = Guards(language="en", min_words=4, max_words=100)
    texts = [scenes.caption(scenes.make_scene(seed)) for seed in range(5000)]
    texts += [
        TASKS[task].narrate(scenes.make_scene(seed))
        for task in ("spatial", "ocr")
        for seed in range(500)
    ]
    # Each replaces the caption of another scene: likeness of form is no copy.
    alarms = [
        (text, why)
        for text, other in zip(texts, texts[1:] + texts[:1], strict=True)
        if (why := guards(text, "stop", prompt=PROMPT, original=other)) and text != other
    ]
    assert len(alarms) <= 0.001 * len(texts), alarms[:20]


@pytest.mark.parametrize("prompt", CAPTION_PROMPTS.values(), ids=lambda p: p.prompt_id)
def test_an_answer_in_the_language_of_any_prompt_is_welcome_and_another_is_not(prompt):
    is_chinese = "_zh_" in prompt.prompt_id
    texts = {True: "海滩上有两只狗在玩一个红色的球。", False: SCENE}
    guards = Guards(language="prompt", echo=False)
    for chinese, text in texts.items():
        found = guards(text, "stop", prompt=prompt.text, original=None)
        assert found == (None if chinese == is_chinese else "model_output_language")


@pytest.mark.parametrize(
    "unit", ["I'm sorry ", "sorry, ", "a ", "对不起", "unfortunately i ", "ich kann "]
)
def test_no_text_takes_long(unit):
    began = time.perf_counter()
    Guards()(unit * 20_000, "stop", prompt=PROMPT, original=unit * 20_000)
    assert time.perf_counter() - began < 5
