"""Questions of specialists: each has one right answer, checked by an independent method."""

import itertools
import math
import re
from collections import Counter

import pytest

from consomme.base.errors import RecipeError
from consomme.datasets.boxes import BOX_PATTERN, LARGEST, has_only_boxes, parse_boxes
from consomme.datasets.scene_claims import check_caption
from consomme.datasets.scene_tasks import TASKS, name_of, scenes_for
from consomme.datasets.scenes import SIZE_PX, WORDS, Scene, SceneObject, make_scene, questions
from consomme.datasets.sources import SAMPLE_SOURCES
from consomme.models.tokenizer import SPECIAL_TOKENS

SPECIALISTS = ("spatial", "grounding", "ocr")
SOURCES = ("scene_spatial", "scene_grounding", "scene_ocr", "scene_talk")


def box_of(item: SceneObject) -> list[float]:
    return [min(value, SIZE_PX) * LARGEST / SIZE_PX for value in item.box_px]


def described(scene: Scene, name: str) -> SceneObject:
    """Find the one object that a name fits, by reading it."""
    words = name.split(" at the ")
    found = [
        o
        for o in scene.objects
        if set(words[0].split()) <= {o.shape, o.color, o.size}
        and (len(words) == 1 or o.position == words[1])
    ]
    assert len(found) == 1, (name, scene.objects)
    return found[0]


def picked(scene: Scene, phrase: str) -> SceneObject:
    """Find the one object a relation picks out, from the coordinates of the centres."""
    half = SIZE_PX / 2

    def side(item: SceneObject) -> tuple[bool, bool]:
        return item.center_px[0] > half, item.center_px[1] > half

    if edge := re.fullmatch(r"closest to the (left|right|top|bottom) edge", phrase):
        axis = 0 if edge[1] in ("left", "right") else 1
        far = edge[1] in ("right", "bottom")
        found = [o for o in scene.objects if side(o)[axis] == far]
    elif near := re.fullmatch(r"closest to the (.+)", phrase):
        anchor = described(scene, near[1])
        others = [o for o in scene.objects if o is not anchor]
        steps = [math.dist(o.center_px, anchor.center_px) for o in others]
        assert sorted(steps)[1] - min(steps) > 5, "too close to call"
        found = [others[steps.index(min(steps))]]
    else:
        relation = re.fullmatch(r"(left of|right of|above|below) the (.+)", phrase)
        assert relation, phrase
        anchor = described(scene, relation[2])
        axis = 0 if relation[1] in ("left of", "right of") else 1
        wanted = {
            "left of": (False, True),
            "right of": (True, False),
            "above": (False, True),
            "below": (True, False),
        }[relation[1]]
        found = [o for o in scene.objects if (side(o)[axis], side(anchor)[axis]) == wanted]
    assert len(found) == 1, (phrase, scene.objects)
    return found[0]


def holds(scene: Scene, question: str) -> bool:
    found = re.fullmatch(r"is the (\w+) (left of|right of|above|below) the (\w+)\?", question)
    assert found, question
    first, second = described(scene, found[1]), described(scene, found[3])
    (x1, y1), (x2, y2) = ((x > 30, y > 30) for x, y in (first.center_px, second.center_px))
    return {"left of": x1 < x2, "right of": x1 > x2, "above": y1 < y2, "below": y1 > y2}[found[2]]


def answer(scene: Scene, kind: str, question: str) -> SceneObject | str:
    """Answer from the scene: an object where it is asked for, else the very words."""
    templates = {
        "relation_name": r"(?:which object is|what color and shape is the object) (.+)\?",
        "relation_box": (
            r"(?:where is|give the box of) the object (.+?)(?:\?(?: answer with its box\.)|\.)"
        ),
        "box": r"where is the (.+)\? answer with its box\.",
        "position": r"where is the (.+)\?",
    }
    if kind in templates:
        found = re.fullmatch(templates[kind], question)
        assert found, question
        if kind.startswith("relation"):
            return picked(scene, found[1])
        item = described(scene, found[1])
        return item.position if kind == "position" else item
    if kind == "object":
        box = parse_boxes(question)[0]
        return min(scene.objects, key=lambda o: math.dist(box_of(o), box))
    if kind == "relation":
        return "yes" if holds(scene, question) else "no"
    if kind == "word_exists":
        return "yes" if f'"{scene.word}"' in question else "no"
    return {
        "what word is written?": scene.word or "none",
        "where is the word?": scene.word_position or "",
        "spell the word.": " ".join(scene.word or ""),
    }[question]


@pytest.mark.parametrize("task", SPECIALISTS)
def test_every_answer_follows_from_the_scene(task):
    kinds: Counter[str] = Counter()
    for seed in range(600):
        scene = make_scene(seed)
        asked = TASKS[task].ask(scene, seed)
        assert asked
        assert len({q.question for q in asked}) == len(asked)
        for q in asked:
            kinds[q.kind] += 1
            truth = answer(scene, q.kind, q.question)
            if isinstance(truth, str):
                assert q.answer == truth, (seed, q)
            elif q.kind in ("relation_name", "object"):
                assert q.answer == f"{truth.color} {truth.shape}", (seed, q)
            else:
                assert re.fullmatch(BOX_PATTERN, q.answer), (seed, q)
                assert parse_boxes(q.answer)[0] == pytest.approx(box_of(truth), abs=0.51)
    assert (
        set(kinds)
        == {
            "spatial": {"relation_name", "relation_box", "relation", "position"},
            "grounding": {"box", "object"},
            "ocr": {"word", "word_exists", "word_position", "spelling"},
        }[task]
    )
    assert min(kinds.values()) > 100


def test_every_relation_is_drawn_and_questions_with_yes_or_no_are_balanced():
    asked = [q for seed in range(800) for q in TASKS["spatial"].ask(make_scene(seed), seed)]
    text = " ".join(q.question for q in asked if q.kind.startswith("relation_"))
    for relation in ("left of", "right of", "above", "below", "closest to the left edge"):
        assert text.count(f" {relation}") > 40, relation
    for kind, task in (("relation", "spatial"), ("word_exists", "ocr")):
        drawn = scenes_for(TASKS[task], 0, 500, "filled")
        asked = [q for s, scene in drawn for q in TASKS[task].ask(scene, s) if q.kind == kind]
        assert 0.2 < sum(q.answer == "yes" for q in asked) / len(asked) < 0.8


def test_names_are_as_short_as_they_can_be_and_fit_one_object():
    lengths = Counter()
    for seed in range(600):
        scene = make_scene(seed)
        for item in scene.objects:
            name = name_of(scene, item)
            assert described(scene, name) is item
            lengths[len(name.split())] += 1
    assert lengths[1] > lengths[2] > lengths[3] > 0


@pytest.mark.parametrize("task", TASKS)
def test_narratives_claim_nothing_that_is_false(task):
    claimed = 0
    for seed in range(500):
        scene = make_scene(seed)
        claims = check_caption(scene, TASKS[task].narrate(scene))
        assert not claims.false, (seed, TASKS[task].narrate(scene), claims)
        claimed += len(claims.true)
    assert claimed > 300
    if task == "grounding":
        texts = [TASKS[task].narrate(make_scene(seed)) for seed in range(50)]
        numbers = [len(make_scene(seed).objects) for seed in range(50)]
        assert [len(parse_boxes(text)) for text in texts] == numbers


def test_spatial_narratives_tell_relations():
    scene = next(s for s in map(make_scene, range(99)) if len(s.objects) == 3)
    claims = check_caption(scene, TASKS["spatial"].narrate(scene)).true
    assert (
        sum(
            any(f" {r} " in claim for r in ("left of", "above", "below", "right of"))
            for claim in claims
        )
        == 2
    )


def test_talk_asks_what_there_is_to_ask_in_any_order():
    firsts = Counter()
    for seed in range(100):
        scene = make_scene(seed)
        asked = TASKS["talk"].ask(scene, seed)
        assert sorted(asked, key=repr) == sorted(questions(scene, seed), key=repr)
        firsts[asked[0].kind] += 1
    assert len(firsts) > 5


def test_reading_is_taught_on_words_and_sometimes_on_none():
    drawn = [scene.word for _, scene in scenes_for(TASKS["ocr"], 0, 1000, "filled")]
    assert len(drawn) == 1000
    assert 0.15 < drawn.count(None) / 1000 < 0.32
    assert set(drawn) == {*WORDS, None}
    assert list(scenes_for(TASKS["ocr"], 0, 0, "filled")) == []


@pytest.mark.parametrize("name", SOURCES)
def test_samples_are_conversations_of_questions_or_one_narrative(name):
    source = SAMPLE_SOURCES.build({"name": name, "num": 200})
    samples = list(source())
    assert samples[:5] == list(SAMPLE_SOURCES.build({"name": name, "num": 5})())
    assert len({s.sample_id for s in samples}) == 200
    num_narrated = 0
    for sample in samples:
        task = TASKS[sample.meta["task"]]
        scene = make_scene(sample.meta["scene_seed"], sample.meta["style"])
        assert [t.role for t in sample.turns] == ["user", "assistant"] * (len(sample.turns) // 2)
        pairs = [
            (q.content, a.content)
            for q, a in zip(sample.turns[::2], sample.turns[1::2], strict=True)
        ]
        if pairs[0][0] == task.prompt:
            num_narrated += 1
            assert pairs == [(task.prompt, task.narrate(scene))]
        else:
            asked = {q.question: q.answer for q in task.ask(scene, sample.meta["scene_seed"])}
            assert 1 <= len(pairs) <= 3
            assert all(asked[question] == answer for question, answer in pairs)
        assert not any(token in turn.content for turn in sample.turns for token in SPECIAL_TOKENS)
    assert 25 < num_narrated < 80
    alone = SAMPLE_SOURCES.build({"name": name, "num": 50, "num_turns": 1, "narrate_fraction": 0})
    assert {len(sample.turns) for sample in alone()} == {2}


def test_a_specialist_learns_the_prompt_that_it_is_asked_with():
    values = {"name": "scene_grounding", "num": 20, "narrate_fraction": 1}
    own = list(SAMPLE_SOURCES.build({**values, "prompt": "Box everything."})())
    assert {sample.turns[0].content for sample in own} == {"Box everything."}
    usual = list(SAMPLE_SOURCES.build(values)())
    assert [one.turns[1] for one in own] == [one.turns[1] for one in usual]
    assert {sample.turns[0].content for sample in usual} == {TASKS["grounding"].prompt}
    # What the specialist answers is what the guard asks for.
    assert all(has_only_boxes(sample.turns[1].content) for sample in usual)


def test_no_default_seeds_are_those_of_a_benchmark_or_of_another_source():
    from consomme.evaluate.benchmarks import BENCHMARKS

    names = [name for name in SAMPLE_SOURCES.names() if name != "emoji"]
    starts = [SAMPLE_SOURCES.get(name)().first_seed for name in names]
    tested = [
        benchmark.first_seed
        for benchmark in (
            BENCHMARKS.get(name)()
            for name in BENCHMARKS.names()
            if hasattr(BENCHMARKS.get(name), "first_seed")
        )
    ]
    assert len(tested) >= 5
    for first, second in itertools.combinations(sorted({*starts, *tested}), 2):
        assert second - first >= 50_000
    assert not set(starts) & set(tested)
    assert len(set(starts)) == len(starts)


def test_mistakes_are_told():
    with pytest.raises(RecipeError, match="num_turns: found 0"):
        SAMPLE_SOURCES.build({"name": "scene_spatial", "num_turns": 0})
    with pytest.raises(RecipeError, match="narrate_fraction: found 2"):
        SAMPLE_SOURCES.build({"name": "scene_ocr", "narrate_fraction": 2})
    with pytest.raises(RecipeError, match="did you mean 'scene_spatial'"):
        SAMPLE_SOURCES.build({"name": "scene_spacial"})
