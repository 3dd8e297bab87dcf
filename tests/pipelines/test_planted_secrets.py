"""Secrets planted in every place that takes one are found nowhere in what runs leave behind."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.chat_server import ChatServer, answer, serving

from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

PROGRAM = """
import json, os, shutil, sys
from pathlib import Path
from consomme.cli import run_command
from consomme.execution.session import ray_session, shared_ray

codes = []
with shared_ray():
    for command in json.loads(sys.argv[1]):
        # Secrets are rotated between two commands.
        os.environ |= command["env"]
        codes.append(run_command(command["words"]))
    with ray_session():
        pass
    place = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent / "ray"
    (session,) = place.glob("session_2*")
    shutil.copytree(session / "logs", sys.argv[2])
print("codes", json.dumps(codes))
"""

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAcanary00000000env",
    "AWS_SECRET_ACCESS_KEY": "canary-env-aws/secret+1",
    "AWS_SESSION_TOKEN": "canary-env-aws-session",
    "HF_TOKEN": "hf_canaryENVhfcanaryENVhfcanaryENVhf",
    "WANDB_API_KEY": "canary-env-wandb-0123456789",
    "MLFLOW_TRACKING_PASSWORD": "canary-env-mlflow",
    "ENDPOINT_KEY": "canary-env-endpoint",
    "ANYTHING": "canary-env-anything",
    "MY_PASSWORD": "canary-env-in-url",
    "HTTPS_PROXY_OF_MINE": "http://me:canary-env-proxy@proxy:3128",
}


def replies(handler, body):
    handler.reply(200, answer("a red circle", 4, "stop"))
    return True


def command(*words: object, **env: str) -> dict[str, object]:
    return {"words": [str(word) for word in words], "env": env}


def write_recipe(folder: Path, server: ChatServer, data: str) -> Path:
    path = folder / "recaption.yaml"
    host = server.url.removeprefix("http://")
    path.write_text(
        f"""
name: r
root: {folder}/runs
inputs: ["{data}"]
model: served
max_reject_fraction: 1.0
canary_fraction: 0.0
num_actors: 1
template:
  api_key: canary-literal-key
  anything: ${{oc.env:ANYTHING}}
  again: ${{template.anything}}
engine:
  name: openai
  url: http://me:${{oc.env:MY_PASSWORD}}@{host}
  api_key_env: ENDPOINT_KEY
  max_retries: 0
"""
    )
    return path


def test_nothing_that_runs_leave_holds_a_secret(tmp_path: Path) -> None:
    pairs = prepare.run(
        PrepareRecipe(name="p", root=str(tmp_path / "in"), source={"name": "scenes", "num": 6})
    )
    urls = [f"http://127.0.0.1:1/{k}.jpg?X-Amz-Signature=canary-signed-{k}0" for k in range(3)]
    urls += [f"http://me:canary-user-{k}0@127.0.0.1:1/{k}.jpg" for k in range(3)]
    pq.write_table(pa.table({"url": urls, "caption": ["c"] * 6}), tmp_path / "urls.parquet")
    (tmp_path / "download.yaml").write_text(
        f"name: d\nroot: {tmp_path}/runs\ninputs: [{tmp_path}/urls.parquet]\n"
        "fetch: {user_agent: x, private_hosts: [127.0.0.1], num_tries: 1, respect_robots: false}\n"
    )
    short = Path(f"/tmp/c{os.getpid()}")
    short.mkdir(mode=0o700)
    with serving() as server:
        server.tricks.append(replies)
        recipe = write_recipe(tmp_path, server, f"{pairs.url}/data")
        extra = "template.hub_token=canary-override"
        rotated = {name: f"{value}-rotated" for name, value in ENVIRONMENT.items()}
        rotated["ANYTHING"] = ENVIRONMENT["ANYTHING"]
        commands = [
            command("recaption", recipe, extra),
            # The same run with other secrets is done, whatever the override's secret is now.
            command("recaption", recipe, "template.hub_token=canary-newer-override", **rotated),
            command(
                "recaption",
                recipe,
                extra,
                "name=away",
                "engine.url=http://a:canary-away@127.0.0.1:1/v1",
            ),
            command("recaption", recipe, extra, "name=bad", "seed=${oc.env:ANYTHING}"),
            command("recaption", recipe, "name=s3", "inputs=[s3://KEY:canary-s3@bucket/x]"),
            command("download", tmp_path / "download.yaml"),
        ]
        env = {**os.environ, **ENVIRONMENT, "TMPDIR": str(short)}
        env.pop("RAY_ADDRESS", None)
        try:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, json.dumps(commands), str(tmp_path / "ray-logs")],
                env=env,
                capture_output=True,
                text=True,
                timeout=200,
            )
        finally:
            shutil.rmtree(short, ignore_errors=True)
        shown = done.stdout + done.stderr
        assert done.returncode == 0, shown
        assert "codes [0, 0, 75, 2, 2, 2]" in shown, shown
        asked = server.asked
    # The secrets did arrive where they are used, and nothing was done twice.
    assert len(asked) == 6
    assert asked[0]["chat_template_kwargs"] == {
        "api_key": "canary-literal-key",
        "anything": "canary-env-anything",
        "again": "canary-env-anything",
        "hub_token": "canary-override",
    }
    (run,) = (tmp_path / "runs" / "recaption").glob("r-*")
    report = subprocess.run(
        [sys.executable, "-m", "consomme.cli", "report", str(run)],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert report.returncode == 0, report.stderr
    (tmp_path / "runs" / "shown.txt").write_text(shown + report.stdout + report.stderr)

    found = {}
    for root in (tmp_path / "runs", tmp_path / "ray-logs"):
        files = [path for path in root.rglob("*") if path.is_file()]
        assert len(files) > 5
        for path in files:
            if b"canary-" in (data := path.read_bytes()) or b"AKIAcanary" in data:
                at = data.index(b"canary-")
                found[str(path.relative_to(tmp_path))] = data[max(0, at - 80) : at + 40]
    assert found == {}
    stored = (run / "recipe.yaml").read_text()
    assert "anything: ${oc.env:ANYTHING}" in stored
    assert "again: ${oc.env:ANYTHING}" in stored
    assert "http://me:${oc.env:MY_PASSWORD}@" in stored
    assert "api_key: <redacted>" in stored
    assert "s3://<redacted>@bucket: found credentials in a URL" in shown
    assert "the override of template.hub_token holds a secret" in shown
    assert re.search(r"http://<redacted>@127.0.0.1:1/v1 has not answered", shown)
    (rejects,) = (tmp_path / "runs" / "download").glob("*/rejects/*")
    assert len(rejects.read_text().splitlines()) == 6
