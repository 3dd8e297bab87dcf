"""The hub as a store, read through a small hub on the loopback: names, pages, ranges, errors."""

import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, HfFileSystem
from tests.support.hub_server import HubServer, hub_server

from consomme.base.errors import DataError, RecipeError, StorageAwayError
from consomme.storage import pins
from consomme.storage.stores.hub import HubStore
from consomme.storage.stores.hub_place import HubPlace
from consomme.storage.stores.open import absolute_url, open_store, split_url
from consomme.storage.stores.retries import PATIENCE_VARIABLE, RetryPolicy

SHA = "a" * 40
FILES = {
    "README.md": b"read me",
    "a b/one.txt": b"0123456789",
    "a b/deep/two.parquet": bytes(range(256)),
    "a-b/three.txt": b"three",
    "z.txt": b"",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server() as server:
        for name, value in server.env(tmp_path, CONSOMME_STORAGE_PATIENCE_S="20").items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.mark.parametrize(
    ("url", "kind", "repo", "revision", "folder"),
    [
        ("hf://org/name", "model", "org/name", "main", ""),
        ("hf://org/name@v1.0/sub/folder/", "model", "org/name", "v1.0", "sub/folder"),
        ("hf://datasets/org/name/data", "dataset", "org/name", "main", "data"),
        (f"hf://datasets/org/name@{SHA}", "dataset", "org/name", SHA, ""),
        ("hf://o/n@refs/convert/parquet/x", "model", "o/n", "refs/convert/parquet", "x"),
        ("hf://o/n@refs/pr/7", "model", "o/n", "refs/pr/7", ""),
        ("hf://o/n@feature%2Fx/y", "model", "o/n", "feature/x", "y"),
    ],
)
def test_urls_are_read_and_written_back(
    url: str, kind: str, repo: str, revision: str, folder: str
) -> None:
    place = HubPlace.parse(url)
    assert (place.kind, place.repo, place.revision, place.folder) == (kind, repo, revision, folder)
    assert HubPlace.parse(place.url) == place
    assert absolute_url(place.url) == place.url
    assert place.is_pinned == (revision == SHA)


@pytest.mark.parametrize(
    "url",
    ["hf://", "hf://name", "hf://datasets/x", "hf://o/n/../x", "hf://o/n@../x", "hf://o//x"],
)
def test_urls_that_name_no_repository_are_refused(url: str) -> None:
    with pytest.raises(RecipeError, match="expected hf://org/name"):
        open_store(url)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(RecipeError, match="HF_TOKEN") as caught:
        open_store("hf://user:hf_secret@org/name")
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["a/b/c", "./a/b", "/a/b", "a", "a/", "~/b", "a/../b", "s3://a/b"])
def test_paths_are_no_model_ids(text: str) -> None:
    assert HubPlace.of_model_id(text) is None


def test_files_are_listed_in_byte_order_whatever_the_pages_are(hub: HubServer) -> None:
    hub.dataset("org/data").commit(FILES)
    store = open_store("hf://datasets/org/data")
    assert [file.path for file in store.list()] == sorted(FILES)
    assert [f.size for f in store.list()] == [len(FILES[name]) for name in sorted(FILES)]
    level = ["README.md", "a b/", "a-b/", "z.txt"]
    assert [file.path for file in store.list_level()] == level
    assert [file.path for file in store.list_level("a")] == ["a b/", "a-b/"]
    assert [file.path for file in store.list("a b/d")] == ["a b/deep/two.parquet"]
    assert [file.path for file in store.list(after="a-b/three.txt")] == ["z.txt"]
    assert list(open_store("hf://datasets/org/data/none").list()) == []
    inside = open_store("hf://datasets/org/data/a b")
    assert [file.path for file in inside.list()] == ["deep/two.parquet", "one.txt"]


def test_the_library_s_own_file_system_sees_the_same(hub: HubServer) -> None:
    """So the server of these tests speaks as the hub does."""
    commit = hub.dataset("org/data").commit(FILES)
    assert HfApi(endpoint=hub.url).dataset_info("org/data").sha == commit
    files = HfFileSystem(endpoint=hub.url)
    root = "datasets/org/data"
    assert files.find(root) == [f"{root}/{path}" for path in sorted(FILES)]
    store = open_store(f"hf://{root}")
    for path, data in FILES.items():
        assert files.cat(f"{root}/{path}") == store.read(path) == data


def test_ranges_sizes_and_versions(hub: HubServer) -> None:
    repo = hub.dataset("org/data")
    first = repo.commit(FILES)
    store = open_store("hf://datasets/org/data/a b")
    assert store.read("one.txt") == FILES["a b/one.txt"]
    assert store.read("one.txt", 3, 4) == b"3456"
    assert store.read("one.txt", 8, 99) == b"89"
    assert store.read("one.txt", 99, 4) == b""
    assert store.read("one.txt", 2, 0) == b""
    assert store.read("deep/two.parquet", 250) == bytes(range(250, 256))
    with store.open("deep/two.parquet") as file:
        file.seek(100)
        assert file.read(3) == bytes([100, 101, 102])
    assert open_store("hf://datasets/org/data").read("z.txt") == b""
    assert not store.exists("none.txt")
    with pytest.raises(FileNotFoundError):
        store.read("none.txt")
    with pytest.raises(FileNotFoundError):
        store.info("none.txt")
    before = {file.path: file.version for file in store.list()}
    assert {path: store.info(path).version for path in before} == before
    repo.commit({**FILES, "a b/one.txt": b"9876543210"})
    changed = {file.path for file in store.list() if file.version != before[file.path]}
    assert changed == {"one.txt"}
    pinned = open_store(f"hf://datasets/org/data@{first}/a b")
    assert pinned.read("one.txt") == b"0123456789"
    assert pickle.loads(pickle.dumps(pinned)) == pinned
    root, name = split_url(f"hf://datasets/org/data@{first}/z.txt")
    assert (root.url, name) == (f"hf://datasets/org/data@{first}", "z.txt")


def test_large_files_are_read_where_the_hub_sent_us_before(hub: HubServer) -> None:
    commit = hub.dataset("org/data").commit(FILES)
    store = open_store(f"hf://datasets/org/data@{commit}/a b/deep")
    parts = [store.read("two.parquet", start, 50) for start in range(0, 256, 50)]
    assert b"".join(parts) == FILES["a b/deep/two.parquet"]
    assert store.read("two.parquet", 999, 5) == b""
    asked = "file:org/data/a b/deep/two.parquet"
    assert hub.requests[asked] == 1
    hub.expired = True
    assert store.read("two.parquet", 9, 1) == bytes([9])
    assert hub.requests[asked] == 2


def test_nothing_is_written_to_the_hub(hub: HubServer) -> None:
    hub.dataset("org/data").commit(FILES)
    store = open_store("hf://datasets/org/data")
    for write in (lambda: store.write("x", b""), lambda: store.create("x", b"")):
        with pytest.raises(RecipeError, match="only read"):
            write()


def test_a_name_is_pinned_once_in_a_run_and_again_in_the_next(hub: HubServer) -> None:
    repo = hub.model("org/name")
    first = repo.commit({"config.json": b"{}"})
    place = HubPlace.parse("hf://org/name/sub")
    with pins.pins_kept(), pins.pins_used() as used:
        assert pins.pin(place).url == f"hf://org/name@{first}/sub"
        second = repo.commit({"config.json": b"{ }"})
        with pins.pins_kept():
            assert pins.pin(place).revision == first
    assert used == {"hf://org/name@main": first}
    assert hub.requests["revision:org/name"] == 1
    assert pins.pin(place).revision == second
    assert pins.pin(HubPlace.parse(f"hf://org/name@{first[:9]}")).revision == first


def test_a_busy_hub_is_asked_again_when_it_says(hub: HubServer) -> None:
    hub.dataset("org/data").commit(FILES)
    waits: list[float] = []
    policy = RetryPolicy(base_s=0.0, sleep=waits.append)
    store = HubStore(HubPlace.parse("hf://datasets/org/data"), policy)
    hub.fail("file:", 429, Retry_After="7")
    hub.fail("file:", 429, RateLimit='"api";r=0;t=5')
    hub.fail("file:", 503)
    assert store.read("a-b/three.txt") == b"three"
    assert waits == [7.0, 5.0, 0.0]


def test_patience_with_a_busy_hub_ends(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.dataset("org/data").commit(FILES)
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.2")
    hub.fail("file:", 429, times=50, Retry_After="100")
    with pytest.raises(StorageAwayError, match=r"HTTP 429.*run the same command again later"):
        open_store("hf://datasets/org/data").read("z.txt")


def test_a_hub_that_is_not_there_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server() as gone:
        env = gone.env(tmp_path)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    with pytest.raises(StorageAwayError, match="gave up"):
        pins.pin(HubPlace.parse("hf://org/name"))
    monkeypatch.setenv("HF_ENDPOINT", "http://no.such.host.invalid")
    with pytest.raises(RecipeError, match="HF_ENDPOINT"):
        pins.pin(HubPlace.parse("hf://other/name"))


@pytest.mark.parametrize("token", [None, "hf_wrong", "hf_right"])
@pytest.mark.parametrize("is_gated", [False, True])
def test_private_and_gated_repositories(
    token: str | None, is_gated: bool, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.model("org/secret")
    repo.commit({"config.json": b"{}", "model.safetensors": b"weights"})
    repo.token, repo.is_gated = "hf_right", is_gated
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    store = open_store("hf://org/secret")
    if token == "hf_right":
        assert store.read("model.safetensors") == b"weights"
        # Not to the host that large files are read from.
        assert hub.tokens_of_files == [None]
        return
    who = "the token in use" if token else r"a request without a token \(HF_TOKEN is not set\)"
    what = "is gated, and" if is_gated else "or"
    with pytest.raises(RecipeError, match=f"{what} {who} may not") as caught:
        store.read("config.json")
    assert "HF_TOKEN" in str(caught.value)
    assert not token or token not in str(caught.value)


def test_what_is_not_there_is_told_with_what_is_near(hub: HubServer) -> None:
    for name in ("org/qwen-7b", "org/other"):
        hub.model(name).commit({"config.json": b"{}"})
    hub.model("org/qwen-7b").commit({"config.json": b"{}"}, ref="v1.0")
    with pytest.raises(RecipeError, match=r"has no model org/qwen-7B.*did you mean 'qwen-7b'"):
        pins.pin(HubPlace.parse("hf://org/qwen-7B"))
    with pytest.raises(RecipeError, match=r"no revision 'v1'.*did you mean 'v1.0'.*main, v1.0"):
        pins.pin(HubPlace.parse("hf://org/qwen-7b@v1"))
    with pytest.raises(RecipeError, match=re.escape(f"{hub.url} has no data set org/other")):
        pins.pin(HubPlace.parse("hf://datasets/org/other"))


def test_a_mirror_that_sends_another_commit_is_not_believed(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.model("org/name")
    first = repo.commit({"config.json": b"{}"})
    second = repo.commit({"config.json": b"{ }"})
    monkeypatch.setattr(repo, "find", lambda revision: second)
    with pytest.raises(DataError, match=f"asked for commit {first}.* sent {second}"):
        open_store(f"hf://org/name@{first}").read("config.json")


def test_offline_the_hub_is_not_asked(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.model("org/name").commit({"config.json": b"{}"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RecipeError, match="HF_HUB_OFFLINE is set"):
        open_store("hf://org/name").read("config.json")
    with pytest.raises(RecipeError, match="consomme fetch org/name"):
        pins.pin(HubPlace.parse("hf://org/name"))
    with pytest.raises(RecipeError, match="hf download --repo-type dataset org/data"):
        pins.pinned_url("hf://datasets/org/data")
    # In workers of a driver that may ask, the variable only keeps other libraries from it.
    monkeypatch.setenv("CONSOMME_HUB_OFFLINE", "0")
    assert open_store("hf://org/name").read("config.json") == b"{}"
