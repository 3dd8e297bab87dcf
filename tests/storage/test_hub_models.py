"""Models by name: what is brought, from where, how often, and what is refused."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download
from tests.support.hub_server import HubServer, folder_files, hub_server

import consomme
from consomme.base.errors import (
    EXIT_OK,
    EXIT_TRY_AGAIN,
    EXIT_USER,
    CheckpointError,
    ClusterError,
    RecipeError,
)
from consomme.cli import run_command
from consomme.storage import model_cache, model_folder
from consomme.storage.model_files import ADAPTER
from consomme.storage.model_folder import model_folder as folder_of
from consomme.storage.model_folder import model_hash, portable_path

NANO = Path(consomme.__file__).parent / "models" / "nano"
LIGHT = {"config.json": b'{"model_type": "x"}', "tokenizer.json": b"{}"}
MODEL = {**LIGHT, "model.safetensors": bytes(range(256)) * 10_000}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(model_cache, "_in_use", {})
    monkeypatch.setattr(model_folder, "_told", set())
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    with hub_server() as server:
        for name, value in server.env(tmp_path, CONSOMME_STORAGE_PATIENCE_S="5").items():
            monkeypatch.setenv(name, value)
        yield server
    forget()


def forget() -> None:
    """Stop using models, as the end of a process does."""
    for held in model_cache._in_use.values():
        held.close()
    model_cache._in_use.clear()


def files(folder: str) -> set[str]:
    return set(folder_files(Path(folder)))


def test_a_model_is_brought_once_in_ranges_and_is_what_the_hub_has(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "_CHUNK_BYTES", 1 << 19)
    commit = hub.model("org/name").commit(MODEL)
    folder = folder_of("org/name")
    assert folder_files(Path(folder)) == MODEL
    name = "org/name/model.safetensors"
    num_ranges = -(-len(MODEL["model.safetensors"]) // (1 << 19))
    assert 1 < len(hub.tokens_of_files) == num_ranges
    assert hub.bytes_sent[name] == len(MODEL["model.safetensors"])
    assert portable_path("org/name") == f"hf://org/name@{commit}"
    forget()
    hub.requests.clear()
    assert folder_of(f"hf://org/name@{commit}") == folder
    # A commit never changes, so nobody has to be asked.
    assert not hub.requests


def test_who_needs_no_weights_brings_none(hub: HubServer) -> None:
    hub.model("org/name").commit(MODEL)
    assert files(folder_of("org/name", has_weights=False)) == set(LIGHT)
    assert not hub.times("org/name/model.safetensors")
    whole = folder_of("org/name")
    assert files(whole) == set(MODEL)
    # What was here is not asked for again.
    assert [hub.times(f"org/name/{path}") for path in MODEL] == [1, 1, 1]
    assert folder_of("org/name", has_weights=False) == whole


def test_spellings_of_one_model(hub: HubServer) -> None:
    repo = hub.model("org/name")
    first = repo.commit(MODEL)
    repo.commit({f"sub/{path}": data for path, data in MODEL.items()}, ref="v2")
    places = [portable_path(name) for name in ("org/name", "org/name@main", "hf://org/name")]
    assert set(places) == {f"hf://org/name@{first}"}
    assert portable_path(f"org/name@{first}") == places[0]
    assert files(folder_of("hf://org/name@v2/sub")) == set(MODEL)
    assert len({model_hash(name) for name in ("org/name", f"org/name@{first}")}) == 1
    assert model_hash("hf://org/name@v2/sub") != model_hash("org/name")
    with pytest.raises(CheckpointError, match=r"found no config.json in hf://org/name@\w+ at http"):
        folder_of("org/name@v2")


def test_a_moved_branch_is_another_model(hub: HubServer) -> None:
    repo = hub.model("org/name")
    repo.commit(MODEL)
    before, folder = model_hash("org/name"), folder_of("org/name")
    repo.commit({**MODEL, "model.safetensors": b"other"})
    assert model_hash("org/name") != before
    assert Path(folder_of("org/name"), "model.safetensors").read_bytes() == b"other"
    assert Path(folder, "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_a_folder_here_comes_first_and_it_is_said(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hub.model("org/name").commit(MODEL)
    (tmp_path / "org").mkdir()
    shutil.copytree(NANO, tmp_path / "org" / "name")
    assert portable_path("org/name") == str(tmp_path / "org" / "name")
    assert portable_path("org/name") == folder_of("org/name")
    told = [one.getMessage() for one in caplog.records if "hf://org/name" in one.getMessage()]
    assert told == [
        f"model org/name is the folder {tmp_path}/org/name; the hub's model of that name would be"
        " hf://org/name"
    ]
    assert portable_path("hf://org/name").startswith("hf://org/name@")


def test_what_is_not_opened_is_not_brought(
    hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    more = {
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"again",
        "modeling_x.py": b"import os",
        "README.md": b"notes",
        "onnx/model.onnx": b"other",
        "checkpoint-5/model.safetensors": b"older",
    }
    kept = {**MODEL, "additional_chat_templates/tool.jinja": b"{{ x }}"}
    hub.model("org/name").commit({**kept, **more})
    assert folder_files(Path(folder_of("org/name"))) == kept
    assert "pytorch_model.bin left out: pickles" in caplog.text


def test_pickles_alone_are_refused_before_anything_is_brought(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.model("org/name").commit({**LIGHT, "pytorch_model.bin": b"pickle"})
    with pytest.raises(CheckpointError, match=r"only pytorch_model.bin: pickles, which run code"):
        portable_path("org/name")
    assert not hub.times("org/name/pytorch_model.bin")
    hub.model("org/none").commit(LIGHT)
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors file"):
        portable_path("org/none")
    local = tmp_path / "local"
    local.mkdir()
    (local / "config.json").write_text("{}")
    (local / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="pickles, which run code"):
        model_hash(str(local))


def test_an_adapter_is_named_as_a_model_is(hub: HubServer) -> None:
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"lora"}
    hub.model("org/lora").commit(adapter)
    assert files(folder_of("org/lora", kind=ADAPTER)) == set(adapter)
    with pytest.raises(CheckpointError, match=r"adapter: found no adapter_config.json.*PEFT"):
        portable_path(str(NANO), ADAPTER)


def test_damage_on_the_way_is_noticed(hub: HubServer) -> None:
    hub.model("org/name").commit(MODEL)
    hub.damaged.add("org/name/model.safetensors")
    with pytest.raises(ClusterError, match=r"model.safetensors: the SHA-256 .* damaged on its way"):
        folder_of("org/name")
    hub.damaged.clear()
    assert folder_files(Path(folder_of("org/name"))) == MODEL


def test_a_full_disk_is_said_and_leaves_nothing(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model("org/name").commit(MODEL)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        model_cache.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000)
    )
    with pytest.raises(ClusterError, match=r"does not fit, 0\.00 GB are free; make room"):
        folder_of("org/name")
    monkeypatch.undo()


BRING = """
import sys
from consomme.storage.model_folder import model_folder
print(model_folder(sys.argv[1]))
"""


def test_processes_of_a_machine_bring_it_once(hub: HubServer) -> None:
    hub.model("org/name").commit(MODEL)
    command = [sys.executable, "-c", BRING, "org/name"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({process.communicate(timeout=120)[0] for process in running}) == 1
    assert [process.returncode for process in running] == [0] * 3
    assert hub.times("org/name/model.safetensors") == 1


def test_offline_it_is_what_was_brought_before(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model("org/name").commit(MODEL)
    hub.model("org/other").commit(MODEL)
    folder, place = folder_of("org/name"), portable_path("org/name")
    portable_path("org/other")
    forget()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    assert (folder_of("org/name"), portable_path("org/name")) == (folder, place)
    assert not hub.requests
    # Only its configuration was brought.
    with pytest.raises(RecipeError, match="HF_HUB_OFFLINE is set"):
        folder_of("org/other")
    with pytest.raises(RecipeError, match=r"looked in .*cache.* consomme fetch org/third@v1"):
        portable_path("org/third@v1")
    with pytest.raises(CheckpointError, match=r"not on this machine; .* consomme fetch org/name@"):
        folder_of(f"org/name@{'0' * 40}")


def test_the_cache_of_huggingface_hub_is_used_if_it_is_whole(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model("org/name").commit(MODEL)
    cache = Path(os.environ["HF_HOME"]) / "hub"
    snapshot = Path(snapshot_download("org/name", cache_dir=cache, endpoint=hub.url))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert folder_of("org/name") == str(snapshot)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert folder_of("org/name") == str(snapshot)
    assert not (tmp_path / "cache" / "consomme" / "models").exists()
    # An interrupted download of somebody else's is no model.
    (snapshot / "model.safetensors").resolve().write_bytes(b"half")
    assert folder_files(Path(folder_of("org/name"))) == MODEL
    # Offline, without a list of its files, the folder itself says what belongs to it.
    forget()
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert folder_of("org/name") == str(snapshot)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not on this machine"):
        folder_of("org/name")


def test_offline_the_commit_that_was_brought_last_is_read(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.model("org/name")
    repo.commit(MODEL)
    folder_of("org/name")
    later = repo.commit({**MODEL, "tokenizer.json": b"{ }"})
    cache = Path(os.environ["HF_HOME"]) / "hub"
    snapshot = snapshot_download("org/name", cache_dir=cache, endpoint=hub.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert folder_of("org/name") == snapshot
    assert portable_path("org/name") == f"hf://org/name@{later}"


def test_a_cache_that_others_may_have_written_is_not_used(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.model("org/name").commit(MODEL)
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    cache = tmp_path / "shared" / "huggingface" / "hub"
    snapshot = snapshot_download("org/name", cache_dir=cache, endpoint=hub.url)
    repo = cache / "models--org--name"
    repo.chmod(0o777)
    assert folder_of("org/name") != snapshot
    assert "is not used: another user may have written" in caplog.text
    repo.chmod(0o755)
    assert folder_of("org/name") == snapshot


def test_a_name_that_is_nowhere_says_where_was_looked(hub: HubServer) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"the hub at {hub.url} has no model no/such")):
        portable_path("no/such")
    with pytest.raises(CheckpointError, match=r"model on the hub|one on the hub \(org/name"):
        portable_path("no/such/folder")
    with pytest.raises(RecipeError, match="is a data set, expected hf://org/name"):
        portable_path("hf://datasets/org/name")


def test_fetch_brings_a_model_and_says_where_it_is(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.model("org/name").commit(MODEL)
    assert run_command(["fetch", "org/name"]) == EXIT_OK
    told = capsys.readouterr().out
    assert f"is      hf://org/name@{commit}" in told
    assert f"folder  {folder_of('org/name')}" in told
    assert "2.6 MB in 3 files" in told
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run_command(["fetch", f"hf://org/name@{commit}"]) == EXIT_OK
    assert run_command(["fetch", "package://models/nano"]) == EXIT_OK
    assert "on this machine already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "model", "code", "said"),
    [
        (0, "", EXIT_USER, "expected one model: consomme fetch MODEL"),
        (0, "org/none", EXIT_USER, "has no model org/none"),
        (0, "org/name@v9", EXIT_USER, "no revision 'v9'"),
        (403, "org/name", EXIT_USER, "answers 403"),
        (401, "org/name", EXIT_USER, "answers 401"),
        (503, "org/name", EXIT_TRY_AGAIN, "gave up after"),
        (429, "org/name", EXIT_TRY_AGAIN, "run the same command again later"),
    ],
)
def test_exit_codes_of_fetch(
    status: int,
    model: str,
    code: int,
    said: str,
    hub: HubServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONSOMME_STORAGE_PATIENCE_S", "0.5")
    monkeypatch.setattr("consomme.cli._FOLDER_PATIENCE_S", 0.5)
    hub.model("org/name").commit(MODEL)
    if status:
        said_too = "Invalid credentials in Authorization header"
        hub.fail("file:", status, times=1000, X_Error_Message=said_too)
    assert run_command(["fetch", *filter(None, [model])]) == code
    assert said in capsys.readouterr().err


def test_a_name_without_a_scheme_may_be_a_misspelled_folder(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"no folder {tmp_path}/models/mine, so models/mine was"):
        portable_path("models/mine")
    commit = hub.model("org/name").commit(MODEL, ref="feature/x")
    assert portable_path("org/name@feature/x") == f"hf://org/name@{commit}"


def test_fetch_brings_an_adapter(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    hub.model("org/lora").commit({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"})
    assert run_command(["fetch", "org/lora"]) == EXIT_OK
    assert "in 2 files" in capsys.readouterr().out
