"""A private Ray listens on loopback only, with a token and a folder that nobody else has."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, os, stat
from pathlib import Path
from consomme.execution.session import ray_session

seen = []
# Ray is not yet imported in the first session, and has cached what it read in the second.
for _ in range(2):
    with ray_session():
        import ray
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])

        @ray.remote
        def place():
            import tempfile
            return tempfile.gettempdir()

        import psutil
        children = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [
            f"{c.laddr.ip} {p.name()}"
            for p in children for c in p.net_connections("inet") if c.status == "LISTEN"
        ]
        seen.append({
            "gcs": ray.get_runtime_context().gcs_address,
            "token": token.read_text(),
            "modes": [stat.S_IMODE(path.stat().st_mode) for path in (token, token.parent)],
            "folder": str(token.parent),
            "workers": ray.get(place.remote()),
            "listening": listening,
        })
    assert not token.parent.exists()
    assert os.environ.get("RAY_AUTH_TOKEN_PATH") is None
print(json.dumps(seen))
"""


@pytest.mark.ray
def test_it_listens_on_loopback_with_a_token_of_its_own() -> None:
    short = Path(f"/tmp/c{os.getpid()}")
    short.mkdir(mode=0o700)
    # A stranger's mode, a token of other sessions, and a home that cannot be written.
    env = {
        **os.environ,
        "HOME": "/proc/no-home",
        "TMPDIR": str(short),
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN": "everyone knows this one",
    }
    # Other tests of this process may share a private Ray of their own.
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        env.pop(name, None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            umask=0,
        )
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout.splitlines()[-1])
        for session in seen:
            assert session["gcs"].startswith("127.0.0.1:")
            assert session["modes"] == [0o600, 0o700]
            assert Path(session["folder"]).parent == short
            assert session["workers"].startswith(session["folder"])
            assert len(session["token"]) == 64
            assert len(session["listening"]) > 5
            for line in session["listening"]:
                assert line.startswith(("127.0.0.1 ", "::ffff:127.0.0.1 ")), session["listening"]
        assert len({session["token"] for session in seen}) == 2
        assert list(short.iterdir()) == []
    finally:
        short.rmdir()


def test_a_path_too_long_for_sockets_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from consomme.execution.private_ray import private_place

    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    with private_place() as (folder, variables):
        assert not folder.is_relative_to(long)
        assert len(str(folder)) < 60
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        assert Path(variables["TMPDIR"]).parent == folder.parent
