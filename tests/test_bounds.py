"""Every number that a recipe may hold has a bound, and parsing reports each one outside of it."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Interval

from consomme.base.bounds import PositiveInt, hints_of, interval_of
from consomme.base.checked import Checked, rule
from consomme.base.errors import RecipeError
from consomme.base.recipe import check_recipe, recipe_problems
from consomme.base.registry import Registry
from consomme.base.schema import registry_of
from consomme.cli import run_command
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.pipelines.verbs import VERBS, recipe_class
from consomme.train.layers import SparseUniform

ANY_NUMBER = {
    "seed": "seeds are hashed",
    "first_seed": "seeds are hashed",
    "noise_seed": "seeds are hashed",
    "shots_seed": "seeds are hashed",
    "scale": "a negative scale takes away what a model learned; a rule refuses infinity",
    "Term.weight": "a negative weight reverses a score; a rule refuses 0",
    "PerStratum.edges": "values of an arbitrary column",
    "Threshold.min": "value of an arbitrary column",
    "Threshold.max": "value of an arbitrary column",
    "LayerList.ids": "negative ids count from the last layer; the model's depth bounds them",
    "UniformChoice.low": "value of an arbitrary recipe key, whose own bound is checked",
    "UniformChoice.high": "value of an arbitrary recipe key, whose own bound is checked",
    "IntUniformChoice.low": "value of an arbitrary recipe key, whose own bound is checked",
    "IntUniformChoice.high": "value of an arbitrary recipe key, whose own bound is checked",
    "Saturation.min_gain": "a negative gain tolerates a loss",
    "template": "value of an option that the chat template defines",
}
"""Numbers without a bound, by field or by class and field, and why."""


def schemas() -> dict[str, type[Any]]:
    """All recipes, the dataclasses inside them, and every strategy they may name."""
    found: dict[str, type[Any]] = {}
    queue = [recipe_class(name) for name, verb in VERBS.items() if verb.recipe]
    while queue:
        schema = queue.pop()
        if schema.__qualname__ in found:
            assert found[schema.__qualname__] is schema
            continue
        found[schema.__qualname__] = schema
        hints = get_type_hints(schema)
        for field in dataclasses.fields(schema):
            queue += nested(hints[field.name])
            registry = registry_of(field)
            if isinstance(registry, Registry):
                queue += [registry.get(name) for name in registry.names()]
    return found


def nested(hint: Any) -> Iterator[type[Any]]:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for part in get_args(hint):
        yield from nested(part)


def numbers_in(hint: Any) -> Iterator[Any]:
    """The int and float types inside a type, with their bounds."""
    if hint in (int, float) or (
        get_origin(hint) is Annotated and get_args(hint)[0] in (int, float)
    ):
        yield hint
    elif get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from numbers_in(part)


SCHEMAS = schemas()
NUMBERS = [
    (f"{name}.{field.name}", schema, field.name, hint)
    for name, schema in sorted(SCHEMAS.items())
    for field in dataclasses.fields(schema)
    for hint in numbers_in(hints_of(schema)[field.name])
    if field.init
]
BOUNDED = [entry for entry in NUMBERS if interval_of(entry[3])]


def outside(hint: Any) -> list[Any]:
    """Numbers just outside of each limit, and those that are outside of all."""
    interval = interval_of(hint)
    assert isinstance(interval, Interval)
    is_int = get_args(hint)[0] is int
    step: Any = 1 if is_int else 0.001
    found = [
        *([] if interval.ge is None else [interval.ge - step]),  # type: ignore[operator]
        *([] if interval.le is None else [interval.le + step]),  # type: ignore[operator]
        *(limit for limit in (interval.gt, interval.lt) if limit is not None),
    ]
    return found if is_int else [*found, math.nan, math.inf, -math.inf]


def wrapped(hint: Any, value: Any) -> Any:
    """Put a number where a field of this type has one."""
    origin = get_origin(hint)
    if origin in (list, tuple):
        return [value] * (len(get_args(hint)) if Ellipsis not in get_args(hint) else 1)
    return {"key": value} if origin is dict else value


def test_there_are_as_many_numbers_as_one_would_expect() -> None:
    assert len(SCHEMAS) > 60
    assert len(BOUNDED) > 120


def test_every_number_has_a_bound_or_a_reason_to_have_none() -> None:
    free = {entry[0] for entry in NUMBERS} - {entry[0] for entry in BOUNDED}
    assert {
        name
        for name in free
        if name not in ANY_NUMBER and name.rpartition(".")[2] not in ANY_NUMBER
    } == set()
    used = free | {name.rpartition(".")[2] for name in free}
    assert set(ANY_NUMBER) <= used, "listed, but bounded or gone"


@pytest.mark.parametrize("entry", BOUNDED, ids=[entry[0] for entry in BOUNDED])
def test_a_number_outside_of_its_bound_is_reported_by_name(entry: Any) -> None:
    _, schema, name, hint = entry
    for value in outside(hint):
        given = wrapped(hints_of(schema)[name], value)
        problems = recipe_problems(schema, {name: given}, "here")
        (problem,) = [text for text in problems if text.startswith(f"here.{name}")]
        assert ": found " in problem
        assert ", expected " in problem


@pytest.mark.parametrize("entry", BOUNDED, ids=[entry[0] for entry in BOUNDED])
def test_defaults_are_inside_of_their_bounds(entry: Any) -> None:
    _, schema, name, _ = entry
    assert not [
        text for text in recipe_problems(schema, {}, "") if text.startswith(f"{name}: found")
    ]


EIGHT = [
    "micro_batch=0",
    "num_workers=0",
    "lr=-1",
    "num_steps=0",
    "keep_checkpoints=0",
    "checkpoint_every=0",
    "shuffle_units=0",
    "warmup_fraction=2",
]


def test_eight_wrong_numbers_are_eight_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("name: x\nmodel: package://models/nano\ndata: [{inputs: [a.tar]}]\n")
    assert run_command(["train", str(path), *EIGHT, f"root={tmp_path}/runs"]) == 2
    message = capsys.readouterr().err
    assert "8 problems" in message
    assert message.count("\n  - ") == 8
    for line in (
        "micro_batch: found 0, expected at least 1",
        "num_workers: found 0, expected at least 1",
        "lr: found -1.0, expected at least 0",
        "warmup_fraction: found 2.0, expected 0 to 1",
    ):
        assert f"\n  - {line}\n" in message
    assert not (tmp_path / "runs").exists()


def test_rules_across_fields_are_reported_with_bounds_and_typing_errors() -> None:
    values = {
        "name": "x",
        "model": "m",
        "data": [{"fraction": 0, "inputs": ["a"], "view": "v"}],
        "num_steps": "many",
        "micro_batch": 0,
        "batch": 3,
        "num_workers": 2,
        "min_workers": 3,
        "export_checkpoint": "best",
        "language_model": {"rank": 0},
    }
    problems = recipe_problems(TrainRecipe, values)
    starts = [
        "batch: unknown key",
        "data[0].fraction: found 0.0, expected more than 0 and at most 1",
        "data[0]: expected either view or inputs",
        "language_model.rank: found 0, expected at least 1",
        "num_steps: found 'many'",
        "micro_batch: found 0",
        "min_workers: found 3, expected 1 to num_workers=2",
        "export_checkpoint: found best, but evaluation has neither data nor a benchmark",
    ]
    assert len(problems) == len(starts), problems
    for start in starts:
        assert any(problem.startswith(start) for problem in problems), (start, problems)


def test_a_rule_about_a_wrong_field_says_nothing() -> None:
    problems = recipe_problems(
        TrainRecipe,
        {"name": "x", "model": "m", "data": [{"view": "v"}], "num_workers": 0, "min_workers": 3},
    )
    assert problems == ["num_workers: found 0, expected at least 1"]


def test_what_is_built_in_python_is_checked_too() -> None:
    with pytest.raises(RecipeError, match="SparseUniform: 2 problems") as raised:
        SparseUniform(fraction=0.0, count=0)
    assert raised.value.problems == (
        "fraction: found 0.0, expected more than 0 and at most 1",
        "count: found 0, expected at least 1, or null",
    )
    with pytest.raises(RecipeError, match=r"num_steps: found 0.*\n.*export_checkpoint: found best"):
        TrainRecipe(
            name="x",
            model="m",
            data=(TrainSource(view="v"),),
            num_steps=0,
            export_checkpoint="best",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Containers(Checked):
    pair: tuple[PositiveInt, float] = (1, 0.0)
    many: tuple[PositiveInt, ...] = ()
    by_name: dict[str, PositiveInt | None] = dataclasses.field(default_factory=dict)
    either: Literal["auto"] | PositiveInt = "auto"
    nested: tuple[SparseUniform, ...] = ()

    @rule
    def _few(self) -> Iterator[str]:
        if len(self.many) > 2:
            yield "many: too many"

    @rule
    def _small(self) -> Iterator[str]:
        if any(one.fraction > 0.5 for one in self.nested):
            yield "nested: too large"
        if len(self.nested) > 1:
            yield "nested: too many"


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({"pair": [0, math.inf]}, ["pair[0]: found 0, ", "pair[1]: found inf, expected a finite"]),
        ({"many": [1, 0, -1], "either": 3}, ["many[1]: found 0", "many[2]: found -1"]),
        ({"many": [1, 2, 3], "either": 0}, ["either: found 0, expected at least 1", "many: too"]),
        ({"by_name": {"a": 0, "b": None}}, ["by_name.a: found 0, expected at least 1, or null"]),
        ({"either": "aut"}, ["either: found 'aut' (str), expected 'auto' | int"]),
        ({"many": 3 * [True]}, [f"many[{k}]: found True (bool), expected int" for k in range(3)]),
        # Rules see what is right in something that is partly wrong.
        ({"nested": [{"count": 0}, {}]}, ["nested[0].count: found 0", "nested: too many"]),
        ({"nested": [{"fraction": 0}, {}]}, ["nested[0].fraction: found 0"]),
    ],
)
def test_bounds_inside_of_containers(values: dict[str, Any], problems: list[str]) -> None:
    found = recipe_problems(Containers, values)
    assert len(found) == len(problems), found
    for problem in problems:
        assert any(text.startswith(problem) for text in found), (problem, found)
    with pytest.raises(RecipeError):
        check_recipe(Containers, values)
