"""The pages are true: their commands load, their files and links exist, their example works."""

import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from consomme.base.hashing import hash_ids
from consomme.base.recipe import load_recipe
from consomme.base.registry import Registry
from consomme.cli import run_command
from consomme.curate.keep.registry import KEEP_POLICIES
from consomme.pipelines.verbs import VERBS, recipe_class, resolve
from tests.benchmarks import tables

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform/consomme"
README = ROOT / "README.md"
RECIPES = ROOT / "recipes/README.md"
HOUSE = ROOT / "platform/README.md"
PAGES = (
    README,
    RECIPES,
    ROOT / "recipes/FORMATS.md",
    *sorted((ROOT / "recipes").glob("*/README.md")),
    *sorted((ROOT / "cluster").glob("*.md")),
    HOUSE,
    *sorted((ROOT / "tests/benchmarks").rglob("*.md")),
)
VERB_FOLDERS = sorted(path.name for path in (ROOT / "recipes").iterdir() if path.is_dir())
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

REGISTRIES = {
    "consomme.curate.keep.registry:KEEP_POLICIES": "filter",
    "consomme.curate.tag.registry:TAGGERS": "tag",
    "consomme.curate.caption.merges:MERGES": "recaption",
    "consomme.engines.generation.registry:GENERATION_ENGINES": "recaption",
    "consomme.datasets.truth:CAPTION_TRUTHS": "recaption",
    "consomme.evaluate.benchmarks:BENCHMARKS": "evaluate",
    "consomme.vision.guidance:BOX_SOURCES": "evaluate",
    "consomme.datasets.sources:SAMPLE_SOURCES": "prepare",
    "consomme.train.layers:LAYER_SELECTORS": "train",
    "consomme.train.parallel.registry:PARALLELISMS": "train",
    "consomme.pipelines.train.trackers:TRACKERS": "train",
    "consomme.sweep.choices:CHOICES": "sweep",
    "consomme.sweep.registry:SEARCHERS": "sweep",
    "consomme.sweep.stoppers:STOPPERS": "sweep",
    "consomme.assemble.choices:CONNECTORS": "assemble",
    "consomme.assemble.choices:FUSIONS": "assemble",
    "consomme.vision.tiling.registry:TILINGS": "assemble",
    "consomme.soup.searches:SEARCHES": "soup",
    "consomme.prune.importance:LAYER_IMPORTANCES": "prune",
    "consomme.prune.choosing:LAYER_CHOICES": "prune",
}
"""Registry -> the verb whose page names its strategies."""


@dataclass(frozen=True)
class Command:
    """A command that a page shows."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        """Name the test."""
        return f"{self.page}: {' '.join(self.words)}"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def shell_of(page: Path) -> str:
    """Return the blocks without a language, where commands stand, with lines joined."""
    blocks = BLOCK.findall(page.read_text())
    shell = "\n".join(body for language, body in blocks if not language)
    return re.sub(r"\\\n *", " ", shell)


def prose_of(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


def commands() -> list[Command]:
    """Find every `consomme …` and `python jobs/….py …`, in blocks and in `inline code`."""
    found = []
    for page in PAGES:
        lines = [*shell_of(page).splitlines(), *re.findall(r"`([^`\n]+)`", prose_of(page))]
        for line in lines:
            # In blocks, an explanation follows a command after several spaces.
            command = re.split(r"(?<=\S) {3,}(?=[a-z])", line.strip())[0]
            start = re.match(r"consomme (?=[a-z]+ \S)|python jobs/", command)
            if start and "…" not in command and "RECIPE" not in command:
                text = command.removeprefix("consomme ").replace("python jobs/", "")
                verb, *rest = shlex.split(text)
                found.append(Command(name_of(page), (verb.removesuffix(".py"), *rest)))
    return found


@pytest.mark.parametrize("command", commands(), ids=str)
def test_commands_load(command: Command) -> None:
    name, first, *rest = command.words
    verb = VERBS[name]
    if first == "--help":
        return
    if not verb.recipe:
        assert first.startswith("runs/") == (verb.argument[0] == "RUN_FOLDER")
        assert all(re.fullmatch(rf"({'|'.join(verb.switches)})=(true|false)", s) for s in rest)
        return
    options = [word for word in rest if word.startswith("-")]
    assert options in ([], [verb.dry_run.option] if verb.dry_run else [])
    settings = [word for word in rest if word not in options]
    assert load_recipe(recipe_class(name), ROOT / first, settings)


def test_every_verb_has_a_command_and_a_page() -> None:
    shown = commands()
    assert {one.words[0] for one in shown if one.page == "README.md"} == set(VERBS)
    for verb in VERB_FOLDERS:
        page = ROOT / "recipes" / verb / "README.md"
        assert verb in {one.words[0] for one in shown if one.page == name_of(page)}
        assert page.read_text().startswith(f"# {verb}: ")
    others = set(VERBS) - set(VERB_FOLDERS)
    assert others <= {one.words[0] for one in shown if one.page == name_of(RECIPES)}


def test_every_recipe_of_a_verb_is_on_a_page() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    recipes = {path.relative_to(ROOT / "recipes") for path in ROOT.glob("recipes/*/*.yaml")}
    missing = [str(path) for path in sorted(recipes) if path.name not in text]
    assert missing == []


@pytest.mark.parametrize("target", REGISTRIES, ids=lambda target: target.partition(":")[2])
def test_every_strategy_is_on_its_page(target: str) -> None:
    registry: Registry[object] = resolve(target)
    page = (ROOT / "recipes" / REGISTRIES[target] / "README.md").read_text()
    missing = [name for name in registry.names() if not re.search(rf"\b{name}\b", page)]
    assert missing == []


@pytest.mark.parametrize(
    ("verb", "registry"),
    [("filter", "keep.registry:KEEP_POLICIES"), ("tag", "tag.registry:TAGGERS")],
)
def test_the_strategies_in_its_table_can_be_built(verb: str, registry: str) -> None:
    page = (ROOT / "recipes" / verb / "README.md").read_text()
    nodes = re.findall(r"^\| `(\{name: [^`…]+\})`", page, re.MULTILINE)
    assert len(nodes) >= 4
    for node in nodes:
        assert resolve(f"consomme.curate.{registry}").problems(yaml.safe_load(node)) == []


def test_the_joined_filter_loads(tmp_path: Path) -> None:
    page = (ROOT / "recipes/filter/README.md").read_text()
    (body,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    path = tmp_path / "joined.yaml"
    path.write_text(f"name: joined\nscores: runs/score/points-1a2b3c4d\n{body}")
    assert load_recipe(recipe_class("filter"), path, [])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_links_and_targets_exist(page: Path) -> None:
    text = page.read_text()
    paths = set(
        re.findall(r"(?<![\w/])(?:recipes|jobs|cluster|platform|tests)/[\w/.-]+\.\w+", text)
    )
    paths -= {path for path in paths if "VERB" in path or "AREA" in path}
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []

    inside = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml))`", text))
    inside = {path for path in inside if "VERB" not in path}
    folders = (ROOT, PACKAGE, page.parent)
    assert [p for p in sorted(inside) if not any((f / p).exists() for f in folders)] == []

    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            linked = page.parent / file if file else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target

    modules = re.findall(r"python -m ([\w.]+)", text)
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"^make ([a-z-]+)", shell_of(page), re.MULTILINE)
    assert set(named) | set(re.findall(r"`make ([a-z-]+)", text)) <= targets


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_areas_of_make_bench_exist() -> None:
    from tests.benchmarks.run import AREAS, GPU_AREAS

    text = "\n".join(page.read_text() for page in PAGES)
    named = " ".join(re.findall(r"make bench ARGS='?([\w ]+)", text)).split()
    assert named
    assert set(named) <= {*AREAS, *GPU_AREAS}


def test_the_tree_is_the_package() -> None:
    shown = re.findall(r"^├── (\w+)/|^└── (\w+)/", shell_of(HOUSE), re.MULTILINE)
    assert {"".join(names) for names in shown} == {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    folder = PACKAGE
    for depth, name in re.findall(r"^(│   )?[├└]── (\w+)/", shell_of(HOUSE), re.MULTILINE):
        folder = folder if depth else PACKAGE / name
        assert (folder / name if depth else folder).is_dir(), name
    top = re.findall(r"^(\w+)/", shell_of(README), re.MULTILINE)
    assert all((ROOT / name).is_dir() for name in top)


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 250


def test_markers_are_explained() -> None:
    markers = (ROOT / "pyproject.toml").read_text()
    for marker in ("ray", "vllm", "gpu", "slow", "long"):
        assert f'"{marker}: ' in markers
        assert f"`{marker}`" in HOUSE.read_text()


def test_tables_come_from_results() -> None:
    filled = tables.filled_pages()
    stale = [name_of(page) for page, text in filled.items() if text != page.read_text()]
    assert stale == [], "run python -m tests.benchmarks.tables"


def test_the_message_of_two_typos_is_as_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (shown,) = re.findall(r"^\$ (.*\n(?:.*\n){3})", shell_of(RECIPES), re.MULTILINE)
    command, *expected = shown.splitlines()
    assert run_command(shlex.split(command)[1:]) == 2
    assert capsys.readouterr().err.splitlines() == expected


def test_the_keep_policy_works(tmp_path: Path) -> None:
    _, _, rest = HOUSE.read_text().partition("<!-- example: middle.py -->\n```python\n")
    body = rest.partition("```")[0]
    script = tmp_path / "middle.py"
    script.write_text(body)
    shown = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "- name: middle" in shown
    assert "whose rank is closest to the middle" in shown

    names = {"__name__": "middle", "__builtins__": __builtins__}
    sys.modules["middle"] = type(sys)("middle")
    try:
        exec(compile(body, str(script), "exec"), names)
        policy = KEEP_POLICIES.build({"name": "middle", "fraction": 0.5})
    finally:
        del sys.modules["middle"]
        KEEP_POLICIES._classes.pop("middle", None)
    values = np.array([4.0, 1.0, np.nan, 3.0, 2.0], np.float32)
    kept = policy({"perplexity": values}, hash_ids("abcde"))
    assert kept.mask_N.tolist() == [False, False, False, True, True]
    assert (kept.cut, kept.num_scored, kept.num_missing) == (3.0, 4, 1)
