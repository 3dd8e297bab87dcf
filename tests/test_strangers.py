"""A run where a stranger was first, with no home and one folder that can be written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

STRANGER = 12345

PLANTED = (
    "ray",
    "ray/session_latest",
    "consomme",
    "consomme-models/selfchecks",
    "consomme-sitecustomize-0-0123456789ab",
    "consomme-cache-00000000",
    "consomme-tmp-00000000",
    "cache/consomme/models",
    "cache/consomme/sitecustomize",
    "home/.cache/consomme/models",
    "home/.ray",
)
"""Folders that a stranger makes first, below the one that can be written; 0777 each."""

PROGRAM = """
import json, os, stat, subprocess, sys
from pathlib import Path

os.umask(0)
code, readonly = None, False
try:
    Path("/consomme-probe").mkdir()
except OSError:
    readonly = True
from consomme.cli import run_command
from consomme.engines.vllm_environment import sitecustomize_folder

code = run_command(json.loads(sys.argv[1]))
os.environ["PYTHONPATH"] = f"{sitecustomize_folder()}{os.pathsep}{os.environ['PYTHONPATH']}"
child = subprocess.run([sys.executable, "-c", "import consomme"], capture_output=True, text=True)
place = Path(os.environ["TMPDIR"])
folders = [path for path in place.iterdir() if not path.is_symlink()]
ours = [path for path in folders if path.lstat().st_uid == os.geteuid()]
planted = [path for path in place.rglob("*") if path.name == "planted"]
beside = [path for one in planted for path in one.parent.iterdir()]
print("seen", json.dumps({
    "code": code,
    "readonly": readonly,
    "child": [child.returncode, child.stdout, child.stderr],
    "ours": {path.name: stat.S_IMODE(path.stat().st_mode) for path in ours},
    "changed": [str(path) for path in planted if path.read_text() != "not ours"],
    "beside": [str(path) for path in beside if path.lstat().st_uid == os.geteuid()],
    "ran": (place / "ran").exists(),
}))
"""

# Everything is read-only but /mnt, and the shared memory that Ray's objects need.
SCRIPT = """
set -e
mount -t tmpfs -o mode=1777 tmpfs /mnt
mkdir -m 0777 /mnt/home /mnt/cache
{plant}
mount -o remount,bind,ro /
cd /mnt
export HOME={home} XDG_CACHE_HOME=/mnt/cache TMPDIR=/mnt PYTHONPATH={path}
exec {python} -c "$PROGRAM" "$WORDS"
"""

CODE = "open('/mnt/ran', 'w').write('a stranger ran code')"


def plant(name: str) -> str:
    """Return the shell commands of a stranger, who is root outside if we cannot be another user."""
    folder = f"/mnt/{name}"
    if os.geteuid():
        return f"mkdir -p $(dirname {folder}); test -e {folder} || ln -s /usr {folder}"
    return (
        f"mkdir -p -m 0777 {folder}; echo -n 'not ours' > {folder}/planted;"
        f' echo "{CODE}" > {folder}/sitecustomize.py; chmod -R 0777 {folder};'
        f" chown -R {STRANGER} /mnt/{name.partition('/')[0]}"
    )


@pytest.mark.parametrize(
    "home", ["/mnt/home", pytest.param("/no-such-home", marks=pytest.mark.long)]
)
def test_it_works_and_uses_nothing_of_a_stranger(home: str, tmp_path: Path) -> None:
    pairs = prepare.run(
        PrepareRecipe(name="p", root=str(tmp_path), source={"name": "scenes", "num": 6})
    )
    recipe = tmp_path / "score.yaml"
    recipe.write_text(
        f"name: s\nroot: /mnt/runs\ninputs: [{pairs.url}/data]\nmodel: package://models/nano\n"
        "num_actors: 1\n"
    )
    script = SCRIPT.format(
        plant="\n".join(map(plant, PLANTED)),
        home=home,
        path=os.environ.get("PYTHONPATH", "") or ".",
        python=sys.executable,
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"PROGRAM": PROGRAM, "WORDS": json.dumps(["score", str(recipe)])}
    env.pop("CONSOMME_CACHE_DIR", None)
    own = ["--map-root-user"] if os.geteuid() else []
    done = subprocess.run(
        ["unshare", "--mount", *own, "sh", "-c", script],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    seen = json.loads(shown.rpartition("seen ")[2].splitlines()[0])
    assert seen["readonly"]
    assert seen["code"] == 0, shown
    assert seen["child"] == [0, "", ""]
    assert seen["changed"] == seen["beside"] == []
    assert not seen["ran"]
    # A cache with a random name is left, and the run; no scratch.
    (cache,) = (name for name in seen["ours"] if name.startswith("consomme-cache-"))
    assert cache != "consomme-cache-00000000"
    assert seen["ours"][cache] == 0o700
    assert not [name for name in seen["ours"] if name.startswith("consomme-tmp-")]
