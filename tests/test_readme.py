"""What the README shows is true: its commands load, its files exist, its example works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from consomme.base.hashing import hash_ids
from consomme.base.recipe import load_recipe
from consomme.cli import run_command
from consomme.curate.keep.policy import KEEP_POLICIES
from consomme.pipelines.verbs import VERBS, resolve

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
TEXT = "\n".join(body for language, body in BLOCKS if not language).replace("\\\n", " ")


def commands() -> list[list[str]]:
    """Return the words of every `consomme VERB RECIPE …` that is shown to be copied."""
    lines = [line for line in TEXT.splitlines() if line.startswith("consomme ")]
    return [words for words in map(shlex.split, lines) if words[1] in VERBS and "/" in words[2]]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_load(words: list[str]) -> None:
    verb = VERBS[words[1]]
    if verb.recipe:
        schema = resolve(verb.recipe)
        options = [word for word in words[3:] if word.startswith("-")]
        assert options in ([], [verb.dry_run.option] if verb.dry_run else [])
        settings = [word for word in words[3:] if word not in options]
        assert load_recipe(schema, ROOT / words[2], settings)


def test_every_verb_is_shown() -> None:
    assert {words[1] for words in commands()} == set(VERBS)


def test_files_and_targets_exist() -> None:
    paths = set(re.findall(r"(?:recipes|jobs|cluster|platform)/[\w/.-]+\.\w+", README))
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    tree = set(re.findall(r"^[├└]── (\w+)/", TEXT, re.MULTILINE))
    package = ROOT / "platform/consomme"
    assert tree == {path.parent.name for path in package.glob("*/__init__.py")}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", TEXT, re.MULTILINE)) <= targets
    markers = (ROOT / "pyproject.toml").read_text()
    for marker in ("ray", "vllm", "gpu", "slow"):
        assert f'"{marker}: ' in markers
        assert f"`{marker}`" in README


def test_the_message_of_two_typos_is_as_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command, *expected = re.findall(r"^\$ (.*\n(?:.*\n){3})", TEXT, re.MULTILINE)[0].splitlines()
    assert run_command(shlex.split(command)[1:]) == 2
    assert capsys.readouterr().err.splitlines() == expected


def test_the_keep_policy_works(tmp_path: Path) -> None:
    body = README.partition("<!-- example: middle.py -->\n```python\n")[2].partition("```")[0]
    script = tmp_path / "middle.py"
    script.write_text(body)
    shown = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "- name: middle" in shown
    assert "whose rank is closest to the middle" in shown

    names = {"__name__": "middle", "__builtins__": __builtins__}
    sys.modules["middle"] = type(sys)("band")
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
