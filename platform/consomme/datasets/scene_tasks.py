"""Training tasks for specialists on scenes: relations, boxes and OCR, as questions or narratives.

A question is asked only if the scene has exactly one correct answer, computed from the objects'
exact boxes. For a relation question, a relation that holds for exactly one object is drawn first,
and then a template is filled.
Source: arXiv 2407.17453 (VILA²), sections on specialists. Its scenes are three-dimensional with a
camera; ours are flat, so the edges of the picture replace the camera.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, pairwise

from consomme.base.sample import Turn
from consomme.datasets.boxes import scale_box, write_box
from consomme.datasets.scenes import (
    POSITIONS,
    RELATIONS,
    SIZE_PX,
    WORDS,
    Question,
    Scene,
    SceneObject,
    caption,
    make_scene,
    questions,
    relation_holds,
)

TASK_PROMPTS: Mapping[str, str] = {
    "spatial": (
        "Describe what is in the image and what happens there in detail, with a focus on where "
        "things are in relation to each other."
    ),
    "grounding": (
        "Describe the elements of the image and give the place of each as [xmin,ymin,xmax,ymax]."
    ),
    "ocr": "Read the text in the image and describe it briefly.",
}
"""Prompts of the specialists for any picture, in our own words; also used in their training."""

_NAME_TEMPLATES = ("which object is {phrase}?", "what color and shape is the object {phrase}?")
_BOX_TEMPLATES = (
    "where is the object {phrase}? answer with its box.",
    "give the box of the object {phrase}.",
)
_CLEARLY_CLOSER_PX = 6.0
_WORDLESS_EVERY = 5


@dataclass(frozen=True, kw_only=True)
class SceneTask:
    """Training task of one specialist."""

    prompt: str
    """Prompt for any picture, also used for recaptioning."""

    narrate: Callable[[Scene], str]
    """Returns the answer to the prompt."""

    ask: Callable[[Scene, int], list[Question]]
    """Returns at least one question about a scene, in an order given by a seed."""

    suits: Callable[[Scene, int], bool]
    """Returns whether the scene of a seed is used."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A relation that holds for exactly one object of a scene."""

    name: str
    """Name of the relation."""

    phrase: str
    """The relation with its anchor, such as `left of the red star`."""

    match: SceneObject
    """The only object for which it holds."""


def name_of(scene: Scene, item: SceneObject) -> str:
    """Return the shortest unique name; with colour, size and position if necessary."""
    for attributes in (("shape",), ("color", "shape"), ("size", "color", "shape")):
        name = [getattr(item, attribute) for attribute in attributes]
        if sum([getattr(o, a) for a in attributes] == name for o in scene.objects) == 1:
            return " ".join(name)
    return f"{item.size} {item.color} {item.shape} at the {item.position}"


def box_text(item: SceneObject) -> str:
    """Return the box of an object as text."""
    return write_box(scale_box(item.box_px, SIZE_PX, SIZE_PX))


def relations(scene: Scene) -> list[Relation]:
    """List all relations that hold for exactly one object, in a fixed order."""
    unique: list[Relation] = []

    def add_if_unique(name: str, phrase: str, matches: list[SceneObject]) -> None:
        if len(matches) == 1:
            unique.append(Relation(name=name, phrase=phrase, match=matches[0]))

    for anchor in scene.objects:
        others = [item for item in scene.objects if item is not anchor]
        name = name_of(scene, anchor)
        for relation in RELATIONS:
            matches = [item for item in others if relation_holds(item, relation, anchor)]
            add_if_unique(relation, f"{relation} the {name}", matches)
        if len(others) > 1:
            near, far = sorted(others, key=lambda item: _distance_px(item, anchor))[:2]
            if _distance_px(far, anchor) - _distance_px(near, anchor) >= _CLEARLY_CLOSER_PX:
                add_if_unique("closest to", f"closest to the {name}", [near])
    if len(scene.objects) > 1:
        for edge, axis, side in (("left", 1, 0), ("right", 1, 1), ("top", 0, 0), ("bottom", 0, 1)):
            here = [
                o for o in scene.objects if divmod(POSITIONS.index(o.position), 2)[axis] == side
            ]
            add_if_unique(f"{edge} edge", f"closest to the {edge} edge", here)
    return unique


def relation_questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Ask for objects by their relations, by name or box, with relation names drawn uniformly."""
    by_name: dict[str, list[Relation]] = {}
    for relation in relations(scene):
        by_name.setdefault(relation.name, []).append(relation)
    selected = []
    while by_name:
        name = rng.choice(list(by_name))
        chosen = by_name[name].pop(rng.randrange(len(by_name[name])))
        by_name = {key: unused for key, unused in by_name.items() if unused}
        is_box = rng.random() < 0.5
        template = rng.choice(_BOX_TEMPLATES if is_box else _NAME_TEMPLATES)
        selected.append(
            Question(
                kind="relation_box" if is_box else "relation_name",
                question=template.format(phrase=chosen.phrase),
                answer=box_text(chosen.match) if is_box else _color_shape(chosen.match),
            )
        )
    return selected


def _ask_spatial(scene: Scene, seed: int) -> list[Question]:
    """Ask for relations by name and box, mixed with yes/no and position questions."""
    rng = random.Random(f"spatial-{seed}")
    drawn = [*questions(scene, seed), *questions(scene, seed + 1)]
    plain = {q.question: q for q in drawn if q.kind in ("position", "relation")}
    selected = [*relation_questions(scene, rng)[: max(2, len(plain))], *plain.values()]
    rng.shuffle(selected)
    return selected


def _narrate_spatial(scene: Scene) -> str:
    sentences = [caption(scene)]
    for first, second in pairwise(scene.objects):
        relation = next(r for r in RELATIONS if relation_holds(first, r, second))
        sentences.append(f"the {name_of(scene, first)} is {relation} the {name_of(scene, second)}.")
    return " ".join(sentences)


def _ask_grounding(scene: Scene, seed: int) -> list[Question]:
    """Ask for each object once, by its name or its box; asking both would reveal the answer."""
    rng = random.Random(f"grounding-{seed}")
    selected = []
    for item in rng.sample(scene.objects, len(scene.objects)):
        name, box = name_of(scene, item), box_text(item)
        if rng.random() < 0.7:
            question = Question(
                kind="box", question=f"where is the {name}? answer with its box.", answer=box
            )
        else:
            question = Question(
                kind="object", question=f"what is at {box}?", answer=_color_shape(item)
            )
        selected.append(question)
    return selected


def _narrate_grounding(scene: Scene) -> str:
    parts = [f"a {o.size} {o.color} {o.shape} {box_text(o)}" for o in scene.objects]
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] + "."


def _ask_ocr(scene: Scene, seed: int) -> list[Question]:
    """Ask for the word, its position and spelling, and whether another word is written."""
    rng = random.Random(f"ocr-{seed}")
    guess = scene.word if scene.word and rng.random() < 0.5 else rng.choice(WORDS)
    selected = [
        Question(kind="word", question="what word is written?", answer=scene.word or "none"),
        Question(
            kind="word_exists",
            question=f'is the word "{guess}" written?',
            answer="yes" if guess == scene.word else "no",
        ),
    ]
    if scene.word and scene.word_position:
        selected += [
            Question(
                kind="word_position", question="where is the word?", answer=scene.word_position
            ),
            Question(kind="spelling", question="spell the word.", answer=" ".join(scene.word)),
        ]
    rng.shuffle(selected)
    return selected


def _narrate_ocr(scene: Scene) -> str:
    if not scene.word:
        return "no text is written."
    return f'the word "{scene.word}" at the {scene.word_position}.'


def _ask_anything(scene: Scene, seed: int) -> list[Question]:
    """Ask all kinds of questions, shuffled per scene."""
    selected = questions(scene, seed)
    random.Random(f"talk-{seed}").shuffle(selected)
    return selected


TASKS: Mapping[str, SceneTask] = {
    "spatial": SceneTask(
        prompt=TASK_PROMPTS["spatial"],
        narrate=_narrate_spatial,
        ask=_ask_spatial,
        suits=lambda scene, seed: True,
    ),
    "grounding": SceneTask(
        prompt=TASK_PROMPTS["grounding"],
        narrate=_narrate_grounding,
        ask=_ask_grounding,
        suits=lambda scene, seed: True,
    ),
    "talk": SceneTask(
        prompt="describe the image.",
        narrate=caption,
        ask=_ask_anything,
        suits=lambda scene, seed: True,
    ),
    "ocr": SceneTask(
        prompt=TASK_PROMPTS["ocr"],
        narrate=_narrate_ocr,
        ask=_ask_ocr,
        # Six scenes in ten have no word; only a fifth of those is used.
        suits=lambda scene, seed: scene.word is not None or seed % _WORDLESS_EVERY == 0,
    ),
}
"""Tasks by name."""


def scenes_for(
    task: SceneTask, first_seed: int, num: int, style: str
) -> Iterator[tuple[int, Scene]]:
    """Yield the first `num` scenes that suit a task, with their seeds, from `first_seed` on."""
    remaining = num
    for seed in count(first_seed):
        if remaining <= 0:
            return
        scene = make_scene(seed, style)
        if task.suits(scene, seed):
            remaining -= 1
            yield seed, scene


def conversation(
    task: SceneTask, scene: Scene, seed: int, *, num_turns: int, narrate_fraction: float
) -> tuple[Turn, ...]:
    """Return the turns of one sample: either the task's prompt and the whole answer, or questions.

    Never both: the narrative contains the answers, and a model would copy them instead of looking
    at the picture.
    """
    if random.Random(f"narrate-{seed}").random() < narrate_fraction:
        pairs = [(task.prompt, task.narrate(scene))]
    else:
        pairs = [(q.question, q.answer) for q in task.ask(scene, seed)[:num_turns]]
    return tuple(
        turn
        for question, answer in pairs
        for turn in (
            Turn(role="user", content=question),
            Turn(role="assistant", content=answer),
        )
    )


def _color_shape(item: SceneObject) -> str:
    return f"{item.color} {item.shape}"


def _distance_px(first: SceneObject, second: SceneObject) -> float:
    return math.dist(first.center_px, second.center_px)
