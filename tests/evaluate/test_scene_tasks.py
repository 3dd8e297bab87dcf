"""Benchmarks of single skills: right answers are right, others are not, a near box is enough."""

import pytest

from consomme.base.errors import RecipeError
from consomme.datasets.boxes import parse_boxes, write_box
from consomme.datasets.scene_tasks import TASKS, scenes_for
from consomme.evaluate.benchmarks import BENCHMARKS, SceneGrounding, SceneQuestions


def truths(benchmark):
    task = TASKS[benchmark.task]
    drawn = scenes_for(task, benchmark.first_seed, benchmark.num, benchmark.style)
    return [question for seed, scene in drawn for question in task.ask(scene, seed)]


@pytest.mark.parametrize("name", ["scene_spatial", "scene_grounding", "scene_ocr"])
def test_true_answers_are_right_and_those_to_other_questions_are_mostly_not(name):
    benchmark = BENCHMARKS.build({"name": name, "num": 60})
    asked = truths(benchmark)
    assert [item.prompt for item in benchmark.items()] == [q.question for q in asked]
    answers = [q.answer for q in asked]
    found = benchmark.measure([f" {answer.upper()}." for answer in answers])
    assert found["accuracy_fraction"] == 1.0
    assert found["num_questions"] == len(asked)
    assert {f"accuracy_{q.kind}_fraction" for q in asked} <= set(found)
    assert benchmark.measure(answers[1:] + answers[:1])["accuracy_fraction"] < 0.5
    assert benchmark.measure([""] * len(asked))["accuracy_fraction"] == 0.0


def test_a_box_is_right_that_overlaps_by_half():
    benchmark = SceneGrounding(num=30)
    asked = truths(benchmark)

    def moved(text: str, share: float) -> str:
        boxes = parse_boxes(text)
        if not boxes:
            return text
        x1, y1, x2, y2 = boxes[0]
        # Shifted boxes share (1 - share) of each: overlap is (1 - share) / (1 + share).
        shift = round(share * (x2 - x1)) * (1 if x1 < 300 else -1)
        return f"it is at {write_box((x1 + shift, y1, x2 + shift, y2))}"

    near = benchmark.measure([moved(q.answer, 0.25) for q in asked])
    assert near["accuracy_fraction"] == 1.0
    assert near["mean_iou_fraction"] == pytest.approx(0.75 / 1.25, abs=0.02)
    far = benchmark.measure([moved(q.answer, 0.4) for q in asked])
    assert far["accuracy_box_fraction"] == 0.0
    assert far["accuracy_object_fraction"] == 1.0


def test_scene_questions_can_be_asked_by_kind():
    whole = SceneQuestions(num=20)
    reading = BENCHMARKS.build({"name": "scene_questions", "num": 20, "kinds": ["word"]})
    assert {item.prompt for item in reading.items()} == {"what word is written?"}
    assert len(reading.items()) == 20
    two = SceneQuestions(num=20, kinds=("relation", "position"))
    prompts = [item.prompt for item in two.items()]
    # The same questions as among all of them, in the same order.
    assert [p for p in (item.prompt for item in whole.items()) if p in set(prompts)] == prompts
    kinds = {q.kind for _, q in two._questions()}
    assert kinds == {"relation", "position"}
    figures = two.measure([q.answer for _, q in two._questions()])
    assert figures["accuracy_relation_fraction"] == figures["accuracy_position_fraction"] == 1.0
    assert "accuracy_word_fraction" not in figures
    with pytest.raises(RecipeError, match="unknown kind of question 'relations'; did you mean"):
        BENCHMARKS.build({"name": "scene_questions", "kinds": ["relations"]})


def test_a_grey_picture_is_shown_where_it_is_asked_for():
    seen, blank = (
        BENCHMARKS.build({"name": "scene_ocr", "num": 3, "blank": is_blank}).items()
        for is_blank in (False, True)
    )
    assert [i.prompt for i in seen] == [i.prompt for i in blank]
    assert all(len(i.images[0].getcolors(9999)) == 1 for i in blank)
    assert all(len(i.images[0].getcolors(9999)) > 9 for i in seen)
