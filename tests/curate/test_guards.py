"""A guard names what is wrong with a text, and lets ordinary captions of all kinds pass."""

import pytest

from consomme.curate.guards import GUARD_REASONS, guard, longest_run, repeated_fraction

SCENE = "A large red circle is to the left of a small blue square, and a green star is above it."


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
    assert (
        guard(text, "stop", prompt="Describe the image briefly.", original="IMG_0001.jpg") is None
    )


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ("", "stop", "model_output_empty"),
        (" .,! \n", "stop", "model_output_empty"),
        (SCENE, "length", "model_output_truncated"),
        (f"<|assistant|>{SCENE}", "stop", "model_output_template"),
        ("USER: what is this", "stop", "model_output_template"),
        (f"Describe the image: {SCENE}", "stop", "model_output_echo"),
        ("an OLD caption", "stop", "model_output_copy"),
        ("red red red red", "stop", "model_output_repetition"),
        ("a cat on a cat on a cat on a cat on", "stop", "model_output_repetition"),
        (f"{SCENE} And then. {SCENE} Oh. {SCENE}", "stop", "model_output_repetition"),
        ("红色的圆" * 8, "stop", "model_output_repetition"),
    ],
)
def test_each_failure_has_its_reason(text, finish_reason, reason):
    found = guard(text, finish_reason, prompt="describe the image", original="An old caption.")
    assert found == reason
    assert reason in GUARD_REASONS


def test_truncated_texts_can_be_allowed():
    assert guard(SCENE, "length", allow_truncated=True) is None


def test_repetition_is_counted_by_hand():
    assert repeated_fraction("a b a b a b".split(), 2) == pytest.approx(3 / 5)
    assert repeated_fraction(["a"], 2) == 0.0
    assert longest_run("a cat on a cat on a cat on".split(), max_period=8) == 3
    assert longest_run("red red red".split(), max_period=8) == 3
    assert longest_run([], max_period=8) == 0
