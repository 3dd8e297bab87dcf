"""What holds for the package as a whole: names, rooms, and what stands where."""

import ast
from collections import defaultdict
from pathlib import Path

import consomme
from consomme.pipelines.verbs import VERBS

PACKAGE = Path(consomme.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def test_no_class_name_is_defined_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_every_verb_with_a_recipe_is_a_folder_with_a_recipe_and_a_run() -> None:
    folders = {path.name for path in (PACKAGE / "pipelines").iterdir() if path.is_dir()}
    folders -= {"__pycache__", "report"}
    assert folders == {
        name for name, verb in VERBS.items() if verb.recipe and not verb.is_always_dry
    }
    for name in folders:
        for file in ("recipe.py", "run.py"):
            assert (PACKAGE / "pipelines" / name / file).is_file()


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path) for path, tree in TREES.items() if not ast.get_docstring(tree)]
    assert silent == []


def test_the_standard_library_keeps_its_platform() -> None:
    assert not (PACKAGE.parent / "__init__.py").exists()
