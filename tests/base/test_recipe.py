"""Recipes: parsing, resolved values, and the message of every mistake."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from consomme.base.errors import RecipeError
from consomme.base.recipe import (
    added,
    check_recipe,
    fingerprint,
    load_recipe,
    runtime,
    strategy,
    to_yaml,
)
from consomme.base.registry import Registry

POLICIES: Registry[Any] = Registry("keep policy", "tests/base/test_recipe.py")


@POLICIES.register("lowest_fraction")
@dataclass(frozen=True, kw_only=True)
class LowestFraction:
    fraction: float = 0.2
    column: str = "perplexity"
    workers: int = runtime(1)

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise RecipeError(f"fraction: found {self.fraction}, expected a share in (0, 1]")


@POLICIES.register("random")
@dataclass(frozen=True, kw_only=True)
class Random:
    seed: int


@dataclass(frozen=True, kw_only=True)
class Model:
    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    model: Model
    inputs: list[str] = field(default_factory=list)
    keep: dict[str, Any] = strategy(f"{__name__}:POLICIES", default={"name": "lowest_fraction"})
    scorers: list[dict[str, Any]] = strategy(f"{__name__}:POLICIES", default=[])
    rate: float = 1.0
    batch_size: Literal["auto"] | int = "auto"
    limit: int | None = None
    models: dict[str, Model] = field(default_factory=dict)
    shape: tuple[int, int] = (1, 2)
    weights: dict[str, float] = field(default_factory=lambda: {"a": 1.0})
    by_key: dict[str, dict[str, Any]] = strategy(f"{__name__}:POLICIES", default={}, keyed=True)
    num_workers: int = runtime(2)


def load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(Recipe, path, overrides)


GOOD = "name: x\nmodel: {path: m}\n"


def problems_of(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value)


def test_all_problems_at_once_with_suggestions(tmp_path: Path) -> None:
    text = """
nam: x
model: {path: 3.5, dtyp: float32}
keep: {name: lowest_fractoin}
scorers: [{name: random, sead: 1}]
rate: fast
models: {big: {dtype: float16}}
"""
    message = problems_of(tmp_path, text)
    assert "10 problems" in message
    for part in [
        "nam: unknown key; did you mean 'name'?",
        "name: missing; expected str",
        "model.dtyp: unknown key; did you mean 'dtype'?",
        "model.path: found 3.5 (float), expected str",
        "keep.name: unknown keep policy 'lowest_fractoin'; did you mean 'lowest_fraction'?",
        "scorers[0].sead: unknown key; did you mean 'seed'?",
        "rate: found 'fast' (str), expected float",
        "models.big.dtype: found 'float16', expected one of 'float32', 'bfloat16'",
        "models.big.path: missing; expected str",
        "scorers[0].seed: missing; expected int",
    ]:
        assert part in message, part


def test_cross_field_checks_carry_their_key_path(tmp_path: Path) -> None:
    message = problems_of(tmp_path, GOOD + "keep: {name: lowest_fraction, fraction: 2}\nrat: 1\n")
    assert "keep: fraction: found 2.0, expected a share in (0, 1]" in message
    assert "rat: unknown key" in message


def test_unregistered_and_unnamed_strategies_list_the_choices(tmp_path: Path) -> None:
    message = problems_of(tmp_path, GOOD + "keep: {name: zzzz}\nscorers: [random]\n")
    assert "expected one of lowest_fraction, random (see tests/base/test_recipe.py)" in message
    assert "scorers[0]: found 'random', expected a mapping; write {name: random}" in message


def test_a_named_strategy_replaces_the_default_and_parameters_change_it(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).keep == {
        "name": "lowest_fraction",
        "fraction": 0.2,
        "column": "perplexity",
        "workers": 1,
    }
    assert load(tmp_path, GOOD, "keep.fraction=0.5").keep["fraction"] == 0.5
    assert load(tmp_path, GOOD, "keep={name: random, seed: 3}").keep == {
        "name": "random",
        "seed": 3,
    }


def test_a_given_mapping_replaces_a_default_mapping(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD + "weights: {b: 2}\n").weights == {"b": 2.0}


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        ("inputs=[a,b]", "inputs", ["a", "b"]),
        ("batch_size=8", "batch_size", 8),
        ("limit=null", "limit", None),
        ("limit=1e3", "limit", 1000),
        ("rate=2", "rate", 2.0),
        ("shape=[3,4]", "shape", (3, 4)),
        ("name=run=1", "name", "run=1"),
        ("name=7", "name", "7"),
        ("models.big.path=x", "models", {"big": Model(path="x")}),
    ],
)
def test_overrides(tmp_path: Path, override: str, name: str, expected: object) -> None:
    assert getattr(load(tmp_path, GOOD, override), name) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("limit", "override 'limit': expected key=value"),
        ("limit=1.5", "limit: found 1.5 (float), expected int"),
        ("limit=true", "limit: found True (bool), expected int"),
        ("rate=.inf", "rate: found inf, expected a finite number"),
        ("rate=.nan", "rate: found nan, expected a finite number"),
        ("rate=1" + 400 * "0", "rate: found a whole number too large for a float"),
        ("batch_size=.inf", "batch_size: found inf (float), expected 'auto' | int"),
        ("shape=[1]", "shape: found 1 values, expected 2"),
        ("inputs=a", "inputs: found 'a' (str), expected list[str]"),
        ("inputs.x=a", "override 'inputs.x=a'"),
        ("model=m", "model: found 'm' (str), expected keys and values"),
        ("a.b.c=1", "a: unknown key"),
        ("model.path.x=1", ""),
        ("keep.fraction=[", "override"),
    ],
)
def test_bad_overrides_are_user_errors(tmp_path: Path, override: str, message: str) -> None:
    assert message in problems_of(tmp_path, GOOD + "inputs: []\n", override)


def test_environment_and_missing_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_ROOT", "elsewhere")
    recipe = load(tmp_path, "name: x\nmodel: {path: '${oc.env:RUN_ROOT}/m'}\n")
    assert recipe.model.path == "elsewhere/m"
    monkeypatch.delenv("RUN_ROOT")
    message = problems_of(tmp_path, "name: x\nmodel: {path: '${oc.env:RUN_ROOT}/m'}\n")
    assert "RUN_ROOT" in message
    assert "name: missing" in problems_of(tmp_path, "name: ???\nmodel: {path: m}\n")
    assert "weights.a: missing" in problems_of(tmp_path, GOOD + "weights: {a: '???'}\n")
    assert "inputs[0]: missing" in problems_of(tmp_path, GOOD + "inputs: ['???']\n")


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "a: 1\na: 2\n", "\tx: 1"])
def test_files_that_are_not_recipes(tmp_path: Path, text: str) -> None:
    assert "recipe.yaml" in problems_of(tmp_path, text)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "points.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=r"did you mean 'points\.yaml'"):
        load_recipe(Recipe, tmp_path / "ponts.yaml")


def test_yaml_round_trip(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD, "rate=1e-5", "name='0x10'", "keep.fraction=0.25", "limit=3")
    path = tmp_path / "saved.yaml"
    path.write_text(to_yaml(recipe))
    assert load_recipe(Recipe, path) == recipe


def test_fingerprint_ignores_how_and_notices_what(tmp_path: Path) -> None:
    base = load(tmp_path, GOOD)
    same = fingerprint(base, {"data": "1"})
    assert len(same) == 8
    for override in ["num_workers=9", "keep.workers=3", "keep.fraction=0.2"]:
        assert fingerprint(load(tmp_path, GOOD, override), {"data": "1"}) == same
    for override in ["rate=2", "keep.fraction=0.3", "name=y", "model.dtype=bfloat16"]:
        assert fingerprint(load(tmp_path, GOOD, override), {"data": "1"}) != same
    assert fingerprint(base, {"data": "2"}) != same


def test_a_field_that_came_later_leaves_fingerprints_as_they_were() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Before:
        rate: int = 1

    @dataclass(frozen=True, kw_only=True)
    class After(Before):
        shape: str = added("round")
        names: tuple[str, ...] = added(())

    assert fingerprint(After(rate=2), {}) == fingerprint(Before(rate=2), {})
    # A recipe that was parsed has a list where the default is a tuple.
    assert fingerprint(After(rate=2, names=[]), {}) == fingerprint(Before(rate=2), {})  # type: ignore[arg-type]
    assert fingerprint(After(shape="square"), {}) != fingerprint(Before(), {})


def test_check_recipe_is_for_nested_recipes() -> None:
    assert check_recipe(Model, {"path": "m"}) == Model(path="m")
    with pytest.raises(RecipeError, match=r"stages\.train: 1 problem\n  - pth: unknown key"):
        check_recipe(Model, {"path": "m", "pth": 1}, "stages.train")


def test_registry_builds_and_refuses() -> None:
    assert POLICIES.build({"name": "random", "seed": 1}) == Random(seed=1)
    assert POLICIES.names() == ["lowest_fraction", "random"]
    with pytest.raises(RecipeError, match=r"seed: missing; expected int"):
        POLICIES.build({"name": "random"})
    with pytest.raises(TypeError, match="registered twice"):
        POLICIES.register("random")(LowestFraction)
    with pytest.raises(TypeError, match="not a dataclass"):
        POLICIES.register("plain")(int)


def test_strategies_may_stand_under_keys_of_the_users_own(tmp_path: Path) -> None:
    nodes = "by_key: {a.b: {name: lowest_fraction, workers: 3}, c: {name: random, seed: 1}}\n"
    recipe = load(tmp_path, GOOD + nodes)
    assert recipe.by_key == {
        "a.b": {"name": "lowest_fraction", "fraction": 0.2, "column": "perplexity", "workers": 3},
        "c": {"name": "random", "seed": 1},
    }
    # Runtime fields inside them do not count, others do.
    fewer = load(tmp_path, GOOD + nodes.replace("workers: 3", "workers: 1"))
    other = load(tmp_path, GOOD + nodes.replace("seed: 1", "seed: 2"))
    assert fingerprint(recipe, {}) == fingerprint(fewer, {}) != fingerprint(other, {})
    text = problems_of(tmp_path, GOOD + "by_key: {a.b: {name: lowest}, c: {name: random, sed: 1}}")
    assert "by_key.a.b.name: unknown keep policy 'lowest'" in text
    assert "by_key.c.sed: unknown key; did you mean 'seed'?" in text
    assert "by_key: found 3" in problems_of(tmp_path, GOOD + "by_key: 3")


def test_what_came_from_the_environment_is_written_as_it_stands_in_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "cAnArY-place")
    monkeypatch.setenv("HUB_TOKEN", "cAnArY-token")
    text = "name: x\nmodel: {path: 'm/${oc.env:PLACE}/${oc.env:HUB_TOKEN}/${name}'}\n"
    recipe = load(tmp_path, text)
    assert recipe.model.path == "m/cAnArY-place/cAnArY-token/x"
    stored = to_yaml(recipe)
    assert "cAnArY" not in stored
    (tmp_path / "stored.yaml").write_text(stored)
    assert load_recipe(Recipe, tmp_path / "stored.yaml") == recipe
    assert "cAnArY" not in repr(recipe)
    # An override is written in the same way.
    over = load(tmp_path, "name: x\nmodel: {path: m}\n", "model.path=${oc.env:PLACE}")
    assert over.model.path == "cAnArY-place"
    assert "path: ${oc.env:PLACE}" in to_yaml(over)


def test_fingerprints_change_with_what_counts_and_not_with_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(text: str, **variables: str) -> str:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return fingerprint(load(tmp_path, f"name: x\nmodel: {{path: '{text}'}}\n"), {})

    token = "m/${oc.env:HUB_TOKEN}"
    assert of(token, HUB_TOKEN="cAnArY-one") == of(token, HUB_TOKEN="cAnArY-two")
    url = "http://me:${oc.env:WORD}@host/v1?sig=${oc.env:WORD}"
    assert of(url, WORD="cAnArY-one") == of(url, WORD="cAnArY-two")
    # A variable that is no secret decides what the run does.
    plain = "${oc.env:WHICH}"
    assert of(plain, WHICH="one") != of(plain, WHICH="two")
    assert of(plain, WHICH="one") == of("one")
    for literal in ("http://me:{}@host/v1", "s3://bucket/x?X-Amz-Signature={}"):
        assert of(literal.format("abc123")) == of(literal.format("xyz789"))
    assert of("http://me:a@host/v1") != of("http://me:a@other/v1")


def test_a_stored_recipe_without_its_secret_is_refused(tmp_path: Path) -> None:
    recipe = load(tmp_path, "name: x\nmodel: {path: 'http://me:cAnArY@host/v1'}\n")
    (tmp_path / "stored.yaml").write_text(to_yaml(recipe))
    with pytest.raises(RecipeError, match=r"model.path: found <redacted>, .* write it again"):
        load_recipe(Recipe, tmp_path / "stored.yaml")


def test_messages_about_a_recipe_show_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "cAnArY-token")
    message = problems_of(tmp_path, "name: x\nmodel: {path: m}\nseed: '${oc.env:HUB_TOKEN}'\n")
    assert "cAnArY" not in message
