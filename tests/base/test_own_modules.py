"""A user's file registers benchmarks and metrics; its text identifies it and goes to workers."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_file_kinds import write_tsv

from consomme.base import own_modules
from consomme.base.errors import RecipeError
from consomme.base.own_modules import OWN_MODULE, module_inputs, own_module_of
from consomme.base.recipe import check_recipe, load_recipe
from consomme.evaluate.benchmark import describe, portable_node
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.evaluate.open_answers import METRICS
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.evaluate.run import open_run
from consomme.pipelines.loop.recipe import LoopRecipe
from consomme.pipelines.loop.steps import all_steps
from consomme.pipelines.soup.recipe import SoupRecipe

NANO = "package://models/nano"

BENCHMARK = """
from dataclasses import dataclass

from consomme.base.sample import Turn
from consomme.evaluate.benchmark import BENCHMARKS, BenchmarkItem


@BENCHMARKS.register("sums")
@dataclass(frozen=True, kw_only=True)
class Sums:
    num: int = 3
    max_tokens: int = 4

    def items(self):
        return [
            BenchmarkItem(
                turns=(Turn(role="user", content=f"{k} + 1 ="),), images=(), truth=str(k + 1)
            )
            for k in range(self.num)
        ]

    def verdicts(self, answers):
        return [float(a == str(k + 1)) for k, a in enumerate(answers)]

    def measure(self, answers):
        right = self.verdicts(answers)
        return {"accuracy_fraction": sum(right) / len(right)}
"""

METRIC = """
from consomme.evaluate.open_answers import register_metric


@register_metric("first_letter")
def first_letter(answer, truths):
    return float(answer[:1] in {truth[:1] for truth in truths})
"""


@pytest.fixture(autouse=True)
def nothing_is_left() -> Any:
    yield
    for loaded in list(own_modules._loaded.values()):
        own_modules._forget(loaded)
    assert "sums" not in BENCHMARKS.names()


def written(folder: Path, text: str, name: str = "my_bench.py") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return str(folder / name)


def evaluate(root: Path, module: str, **node: Any) -> EvaluateRecipe:
    values = {
        "name": "own",
        "root": str(root),
        "models": {"nano": NANO},
        "modules": [module],
        "benchmarks": [{"name": "sums", **node}],
    }
    return check_recipe(EvaluateRecipe, values)


def test_it_is_known_where_the_recipe_is_checked(tmp_path: Path) -> None:
    recipe = evaluate(tmp_path, written(tmp_path, BENCHMARK), num=2)
    assert dict(recipe.benchmarks[0]) == {"name": "sums", "num": 2, "max_tokens": 4}
    assert BENCHMARKS.build(recipe.benchmarks[0]).measure(["1", "x"]) == {"accuracy_fraction": 0.5}
    with pytest.raises(RecipeError, match=r"Key|numm|unknown key"):
        evaluate(tmp_path, written(tmp_path, BENCHMARK), numm=2)


def test_its_text_is_in_the_fingerprint_and_not_where_it_lies(tmp_path: Path) -> None:
    first = open_run(evaluate(tmp_path, written(tmp_path / "a", BENCHMARK)))
    assert "modules[0]" in first.inputs
    own_modules._forget(own_modules._loaded[str(tmp_path / "a" / "my_bench.py")])
    moved = open_run(evaluate(tmp_path, written(tmp_path / "b", BENCHMARK + "\n"), num=3))
    assert moved.fingerprint != first.fingerprint
    key = describe(BENCHMARKS.build({"name": "sums"}))
    own_modules._forget(own_modules._loaded[str(tmp_path / "b" / "my_bench.py")])
    again = open_run(evaluate(tmp_path, written(tmp_path / "c", BENCHMARK)))
    assert again.fingerprint == first.fingerprint
    assert describe(BENCHMARKS.build({"name": "sums"})) != key


def test_a_file_that_was_changed_replaces_what_it_was(tmp_path: Path) -> None:
    path = written(tmp_path, BENCHMARK)
    first = open_run(evaluate(tmp_path, path))
    written(tmp_path, BENCHMARK.replace("a == str(k + 1)", "a == 'x'"))
    second = open_run(evaluate(tmp_path, path))
    assert second.fingerprint != first.fingerprint
    found = BENCHMARKS.build({"name": "sums"})
    assert found.verdicts(["x", "1", "x"]) == [1, 0, 1]


def test_it_goes_along_to_a_worker_that_has_no_such_file(tmp_path: Path) -> None:
    path = written(tmp_path, BENCHMARK)
    recipe = evaluate(tmp_path, path)
    sent = pickle.dumps(portable_node(recipe.benchmarks[0]))
    part = {"benchmark": dict(recipe.benchmarks[0])}
    both = portable_node({"name": "weighted", "parts": [part, part]})
    # As in another process on another node.
    own_modules._forget(own_modules._loaded[path])
    Path(path).unlink()
    with pytest.raises(RecipeError, match="unknown benchmark 'sums'"):
        BENCHMARKS.build(recipe.benchmarks[0])
    found = BENCHMARKS.build(pickle.loads(sent))
    assert len(found.items()) == 3
    module = own_module_of(type(found))
    assert module is not None
    assert module.path == path
    own_modules._forget(own_modules._loaded[path])
    assert len(BENCHMARKS.build(both).items()) == 6
    assert OWN_MODULE not in portable_node({"name": "scene_ocr"})


def test_a_metric_of_ones_own(tmp_path: Path) -> None:
    path = written(tmp_path, METRIC)
    rows = [{"question": f"q{k}", "answer": "red"} for k in range(2)]
    node = {"name": "open", "file": write_tsv(tmp_path / "o.tsv", rows), "metric": "first_letter"}
    with pytest.raises(RecipeError, match="metric: unknown 'first_letter'"):
        BENCHMARKS.build(node)
    module_inputs([path])
    found = BENCHMARKS.build(node)
    assert found.measure(["rose", "blue"])["first_letter_fraction"] == 0.5
    key = describe(found)
    sent = portable_node(node)
    own_modules._forget(own_modules._loaded[path])
    assert "first_letter" not in METRICS
    assert describe(BENCHMARKS.build(sent)) == key
    written(tmp_path, METRIC + "\n# changed\n")
    module_inputs([path])
    assert describe(BENCHMARKS.build(node)) != key


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n", r"fails to import, line 1: SyntaxError"),
        ("\nimport nothing_of_this_name\n", r"fails to import, line 2: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", r"fails to import, line 1: SystemExit: 3"),
        ("x = 1\n", r"registers nothing; expected a dataclass"),
        (BENCHMARK.replace('"sums"', '"yes_no"'), r"benchmark 'yes_no', which exists"),
        (METRIC.replace('"first_letter"', '"anls"'), r"registers the metric 'anls', which exists"),
        (BENCHMARK.replace("def measure", "def measured"), r"whose Sums has no measure"),
        (BENCHMARK.replace("@dataclass(frozen=True, kw_only=True)\n", ""), "is not a dataclass"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_module_is_said(tmp_path: Path, text: str, said: str) -> None:
    names = (BENCHMARKS.names(), set(METRICS))
    with pytest.raises(RecipeError, match=said) as caught:
        evaluate(tmp_path, written(tmp_path, text))
    assert "modules[0]" in str(caught.value)
    assert (BENCHMARKS.names(), set(METRICS)) == names
    assert BENCHMARKS.get("yes_no").__module__ == "consomme.evaluate.file_kinds"


def test_two_modules_do_not_take_one_name(tmp_path: Path) -> None:
    one = written(tmp_path, BENCHMARK, "one.py")
    two = written(tmp_path, BENCHMARK + "\n", "two.py")
    with pytest.raises(RecipeError, match=r"two\.py: registers the benchmark 'sums', which exists"):
        module_inputs([one, two])


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    for name in ("none.py", "s3://bucket/bench.py", str(tmp_path)):
        with pytest.raises(RecipeError, match=r"modules\[0\]: found .*expected a Python file"):
            evaluate(tmp_path, name)


def test_it_may_lie_beside_the_recipe(tmp_path: Path) -> None:
    written(tmp_path, BENCHMARK)
    recipe = tmp_path / "own.yaml"
    lines = ["name: own", f"models: {{nano: {NANO}}}", "modules: [my_bench.py]"]
    recipe.write_text("\n".join([*lines, "benchmarks: [{name: sums}]"]))
    assert load_recipe(EvaluateRecipe, recipe).modules == (str(tmp_path / "my_bench.py"),)


def test_soups_and_stages_of_loops_know_them(tmp_path: Path) -> None:
    path = written(tmp_path, BENCHMARK)
    soup = {"ingredients": {"a": NANO, "b": NANO}, "benchmark": {"name": "sums"}}
    check_recipe(SoupRecipe, {"name": "s", "modules": [path], **soup})
    own_modules._forget(own_modules._loaded[path])
    shown = {"models": {"nano": NANO}, "benchmarks": [{"name": "sums"}]}
    loop = check_recipe(
        LoopRecipe,
        {
            "name": "l",
            "modules": [path],
            "stages": [
                {"name": "soup", "verb": "soup", "recipe": soup},
                {"name": "shown", "verb": "evaluate", "recipe": shown},
            ],
        },
    )
    assert [step.recipe["modules"] for step in all_steps(loop)] == [[path], [path]]
