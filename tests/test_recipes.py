"""Every shipped recipe loads with the command in its header, which names hardware and time."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from consomme.base.recipe import load_recipe, to_yaml
from consomme.pipelines.verbs import VERBS, resolve

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("*.yaml"))
NANO = Path("recipes/train/nano.yaml")


def schema_of(path: Path) -> type[Any]:
    """Return the schema of a recipe: its folder is the verb; recipes at the top are loops."""
    if path == NANO:
        from consomme.nano.train import NanoRecipe

        return NanoRecipe
    verb = VERBS["loop" if path.parent.name == "recipes" else path.parent.name]
    schema: type[Any] = resolve(verb.recipe)
    return schema


def header(path: Path) -> list[str]:
    """Return the comment lines at the top."""
    lines = (ROOT / path).read_text().splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").strip() for line in lines[:end]]


def command(path: Path) -> list[str]:
    """Return the words of the header's first command."""
    starts = ("consomme ", "python -m consomme", "make ")
    lines = "\n".join(header(path)).replace("\\\n", " ").splitlines()
    line = next((line for line in lines if line.startswith(starts)), "")
    assert line, f"{path}: the header shows no command"
    return shlex.split(line)


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_it_loads_as_its_header_says(path: Path) -> None:
    words = command(path)
    overrides = [word for word in words if re.match(r"[a-z_.]+=", word)]
    if words[0] == "consomme":
        assert words[1] == ("loop" if path.parent.name == "recipes" else path.parent.name)
    if words[0] != "make":
        assert str(path) in words
    recipe = load_recipe(schema_of(path), ROOT / path, overrides)
    assert "???" not in to_yaml(recipe)


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_its_header_says_what_it_takes(path: Path) -> None:
    text = " ".join(header(path)[1:])
    assert re.search(r"CPU|GPU|[Aa]ny machine", text), "no hardware"
    assert re.search(r"second|minute|hour", text), "no time"
    assert "TIME" not in text


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_comments_stand_above_keys(path: Path) -> None:
    for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
        content = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
        assert content.lstrip().startswith("#") or " #" not in content, f"{path}:{number}"
        assert len(line) <= 120 or not line.startswith("#"), f"{path}:{number}"


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda p: p.name)
def test_jobs_name_recipes_that_exist(path: Path) -> None:
    named = re.findall(r"recipes/[\w/]+\.yaml", path.read_text())
    assert named, f"{path.name}: its docstring names no recipe"
    for recipe in named:
        assert (ROOT / recipe).is_file(), f"{path.name} names {recipe}"
        expected = path.stem if recipe.count("/") > 1 else "loop"
        assert schema_of(Path(recipe)).__name__ == f"{expected.capitalize()}Recipe"
