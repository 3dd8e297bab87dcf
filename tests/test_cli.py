"""The command line: what it teaches, what it says when something is wrong, how it ends."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from consomme import __version__
from consomme.base.errors import CheckpointError, ClusterError, DataError, RecipeError
from consomme.base.manifest import Manifest
from consomme.base.recipe import runtime, strategy
from consomme.base.registry import Registry
from consomme.cli import main, run_command
from consomme.pipelines.verbs import VERBS, resolve

ROOT = Path(__file__).parents[1]
POLICIES: Registry[Any] = Registry("keep policy", "consomme/curate/keep/policy.py")


@POLICIES.register("lowest")
@dataclass(frozen=True, kw_only=True)
class Lowest:
    """Keep the lowest share."""

    fraction: float = 0.2
    """Share to keep, in (0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Part:
    path: str
    """Where the part is."""


@dataclass(frozen=True, kw_only=True)
class DemoRecipe:
    """A recipe to try the command line with."""

    name: str
    """Becomes part of the run folder."""

    part: Part
    """What to work on."""

    mode: Literal["quick", "thorough"] = "quick"
    """How hard to try."""

    keep: dict[str, Any] = strategy(f"{__name__}:POLICIES", default={"name": "lowest"})
    """Which samples stay."""

    limits: list[int] = field(default_factory=lambda: [1, 2])
    undocumented: int | None = None
    num_workers: int = runtime(2)
    """Processes."""


def manifest(recipe: DemoRecipe) -> Manifest:
    return Manifest(
        verb="demo",
        name=recipe.name,
        fingerprint="0123abcd",
        recipe={},
        counts={"samples": 1200, "kept": 3, "rejected/caption_empty": 1},
        decisions={
            "table": {"title": "Result", "columns": ["what", "auc"], "rows": [["[a]", 0.5]]}
        },
        seconds=1.25,
        outputs={"report": "report.html"},
        url="runs/demo/x-0123abcd",
    )


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "demo.yaml"
    path.write_text("name: x\npart: {path: p}\n")
    return str(path)


def call(run: Any, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(DemoRecipe, run, arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_run_ends_with_its_folder_counts_table_and_report(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[DemoRecipe] = []

    def run(given: DemoRecipe) -> Manifest:
        seen.append(given)
        return manifest(given)

    assert call(run, recipe, "keep.fraction=0.5", "name=y", "limits=[3]") == 0
    assert seen[0].keep == {"name": "lowest", "fraction": 0.5}
    assert seen[0].limits == [3]
    shown = capsys.readouterr().out
    assert "demo y: done in 1.2 s; samples 1,200, kept 3\n" in shown
    assert "run folder  runs/demo/x-0123abcd\n" in shown
    assert "report      runs/demo/x-0123abcd/report.html\n" in shown
    assert "[a]" in shown
    assert "Result" in shown


def test_two_typos_are_reported_together(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\n"
        "from dataclasses import dataclass\n"
        "from consomme.cli import main\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class DemoRecipe:\n"
        "    name: str\n"
        "    batch_size: int = 1\n"
        "    threshold: float = 1.0\n"
        "main(DemoRecipe, lambda recipe: print('ran'))\n"
    )
    recipe = tmp_path / "demo.yaml"
    recipe.write_text("name: x\nbatchsize: 3\ntreshold: 2\n")
    done = subprocess.run(
        [sys.executable, str(script), str(recipe)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"consomme demo: {recipe}: 2 problems\n"
        "  - batchsize: unknown key; did you mean 'batch_size'?\n"
        "  - treshold: unknown key; did you mean 'threshold'?\n"
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [(RecipeError, 2), (DataError, 2), (CheckpointError, 2), (ClusterError, 75)],
)
def test_errors_of_ours_end_without_traceback(
    recipe: str, capsys: pytest.CaptureFixture[str], error: type[Exception], code: int
) -> None:
    def run(_: DemoRecipe) -> None:
        raise error("what was found")

    assert call(run, recipe) == code
    assert capsys.readouterr().err == "consomme demo: what was found\n"


class RemoteError(Exception):
    """Like Ray's: it has the worker's error inside."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("Traceback (most recent call last): …")
        self.cause = cause


class RemoteDataError(RemoteError, DataError):
    """Ray also makes its error an instance of the cause's class."""


@pytest.mark.parametrize("remote", [RemoteError, RemoteDataError])
def test_an_error_from_a_worker_is_shown_as_raised(
    recipe: str, capsys: pytest.CaptureFixture[str], remote: type[RemoteError]
) -> None:
    def run(_: DemoRecipe) -> None:
        raise RuntimeError("wrapped again") from remote(DataError("shard 7 is gone"))

    assert call(run, recipe) == 2
    assert capsys.readouterr().err == "consomme demo: shard 7 is gone\n"


def test_a_bug_shows_its_traceback(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(lambda _: 1 // 0, recipe) == 1
    shown = capsys.readouterr().err
    assert "a bug in consomme" in shown
    assert "ZeroDivisionError" in shown


def test_ctrl_c_says_how_to_go_on_and_waits_for_nobody(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import atexit, threading, time\n"
        "from dataclasses import dataclass\n"
        "from consomme.cli import main\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class DemoRecipe:\n"
        "    name: str\n"
        "def run(recipe):\n"
        "    atexit.register(print, 'tidied up')\n"
        "    threading.Thread(target=time.sleep, args=[600]).start()\n"
        "    raise KeyboardInterrupt\n"
        "main(DemoRecipe, run)\n"
    )
    recipe = tmp_path / "demo.yaml"
    recipe.write_text("name: x\n")
    done = subprocess.run(
        [sys.executable, str(script), str(recipe)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130
    assert "run the same command again to go on" in done.stderr
    assert done.stdout == "tidied up\n"


@pytest.mark.parametrize("other", ["ConnectionError('the cluster is gone')", "SystemExit(1)"])
def test_ctrl_c_that_a_library_makes_another_error_of_is_still_ctrl_c(
    tmp_path: Path, other: str
) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "import signal\n"
        "from dataclasses import dataclass\n"
        "from consomme.cli import main\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class DemoRecipe:\n"
        "    name: str\n"
        # Who is started in the background is deaf to SIGINT.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def run(recipe):\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n"
        f"        raise {other} from None\n"
        "main(DemoRecipe, run)\n"
    )
    recipe = tmp_path / "demo.yaml"
    recipe.write_text("name: x\n")
    done = subprocess.run(
        [sys.executable, str(script), str(recipe)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130
    assert "run the same command again to go on" in done.stderr
    assert "a bug in consomme" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scor"], "unknown verb; did you mean 'score'?"),
        (["report"], "expected one run folder"),
        (["verify", "a", "repare=true"], "expected checksums=true|false, repair=true|false"),
        (["report", "a", "b"], "found 'b' after the run folder, expected nothing more"),
        (["verify", "a", "--repair"], "found '--repair' after the run folder, expected checksums"),
        (["frobnicate"], "unknown verb; expected one of score, tag,"),
        (["--verison"], "unknown option --verison; did you mean '--version'?"),
        (["filter", "a.yaml", "--prevew", "name=x"], "did you mean '--preview'; settings are"),
        (["plan", "a.yaml", "--plan"], "unknown option --plan; settings are written key=value"),
        (["train"], "no recipe is named; expected train RECIPE [key=value …]"),
    ],
)
def test_wrong_commands(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ([], "consomme "),
        (["help"], "consomme "),
        (["-h"], "consomme "),
        (["filter", "-h"], "usage: consomme filter RECIPE [key=value …] [--preview]\n"),
        (["filter", "a.yaml", "help"], "usage: consomme filter RECIPE [key=value …] [--preview]\n"),
        (["plan", "--help"], "usage: consomme plan RECIPE [key=value …]\n"),
        (["verify", "--help"], "usage: consomme verify RUN_FOLDER [switch=true …]\n"),
        (["status", "a", "--help"], "usage: consomme status RUN_FOLDER\n"),
    ],
)
def test_help_wherever_it_is_asked_for(
    arguments: list[str], start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(arguments) == 0
    assert capsys.readouterr().out.startswith(start)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_wrong_arguments(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        ([], "no recipe is named"),
        (["a=1"], "no recipe is named"),
        ([recipe, "--seed", "7"], "unknown option --seed; settings are written key=value"),
        ([recipe + "l"], "did you mean 'demo.yaml'?"),
    ]:
        assert call(manifest, *arguments) == 2
        assert message in capsys.readouterr().err


def test_verb_help_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(manifest, "--help") == 0
    shown = capsys.readouterr().out
    for line in [
        "A recipe to try the command line with.",
        "name: str  (required)",
        "Becomes part of the run folder.",
        "part: Part  (required)",
        "path: str  (required)",
        "mode: 'quick' | 'thorough' = quick",
        "keep: strategy = {name: lowest}",
        "- name: lowest",
        "Keep the lowest share.",
        "fraction: float = 0.2",
        "Share to keep, in (0, 1].",
        "limits: list[int] = [1, 2]",
        "undocumented: int | None = null",
    ]:
        assert line in shown, line


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from consomme.cli import run_command; code = run_command(['--help']); "
        "heavy = {'torch', 'ray', 'transformers', 'vllm', 'pyarrow', 'numpy', 'omegaconf'}; "
        "print('heavy:', sorted(heavy & set(sys.modules)), code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("heavy: [] 0")
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_has_its_folder_and_job(name: str) -> None:
    verb = VERBS[name]
    assert callable(resolve(verb.run))
    if verb.dry_run:
        assert callable(resolve(verb.dry_run.target))
    if verb.recipe and not verb.is_always_dry:
        recipe = verb.recipe.partition(":")[2]
        job = (ROOT / f"jobs/{name}.py").read_text()
        assert f"from consomme.pipelines.{name}.recipe import {recipe}\n" in job
        assert f"main({recipe}, run)" in job
