"""Names before patterns, hidden files, and all that is missing: on disk and in a bucket."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.s3_server import BUCKET, moto

from consomme.base.errors import RecipeError
from consomme.storage.shards import find_shards, shard_urls
from consomme.storage.stores.open import open_store


@pytest.fixture(scope="module")
def bucket_env() -> Iterator[dict[str, str]]:
    with moto() as server:
        yield server.env()


@pytest.fixture(params=["disk", "s3"])
def root(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    bucket_env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    if request.param == "disk":
        return str(tmp_path)
    for name, value in bucket_env.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.name}-{tmp_path.parent.name}"


def make(root: str, *paths: str) -> None:
    store = open_store(root)
    for path in paths:
        store.write(path, path.encode())


def found(root: str, *inputs: str) -> list[str]:
    urls = shard_urls([f"{root}/{text}" for text in inputs])
    return [url.removeprefix(f"{root}/") for url in urls]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("part [1]/0.tar", ["part [1]/0.tar"]),
        ("part [1]", ["part [1]/0.tar"]),
        ("part [1]/*.tar", ["part [1]/0.tar"]),
        ("part [1]/{0..0}.tar", ["part [1]/0.tar"]),
        ("{0..1}/a.tar", ["{0..1}/a.tar"]),
        ("{0..1}", ["{0..1}/a.tar"]),
        ("{0..1}/?.tar", ["{0..1}/a.tar"]),
        ("what?.tar", ["what?.tar"]),
        ("star*.tar", ["star*.tar"]),
        ("s[0].tar", ["s[0].tar"]),
        ("a{b,c}.tar", ["ab.tar", "ac.tar"]),
        ("[rs]0.tar", ["s0.tar"]),
        ("{r,s}[0].tar", ["s[0].tar"]),
    ],
)
def test_a_name_that_exists_is_no_pattern(root: str, name: str, expected: list[str]) -> None:
    # Each has a neighbour that the pattern would match.
    make(root, "part [1]/0.tar", "part 1/0.tar", "{0..1}/a.tar", "0/a.tar", "1/a.tar")
    make(root, "what?.tar", "whats.tar", "star*.tar", "starry.tar", "s[0].tar", "s0.tar")
    make(root, "ab.tar", "ac.tar")
    if name == "{r,s}[0].tar":
        with pytest.raises(RecipeError, match=r"stands for 2 names.*1 are missing: .*r\[0\]\.tar"):
            found(root, name)
        return
    assert found(root, name) == expected


HIDDEN = (
    ".ipynb_checkpoints/train-checkpoint.tar",
    "._00000.tar",
    "sub/._00001.tar",
    ".hidden/00000.tar",
    "_SUCCESS",
    "sub/_SUCCESS",
    "_temporary/0/part-0.tar",
    "sub/.part-0.tar.crc",
    "_committed_1",
)


@pytest.mark.parametrize("pattern", ["d", "d/", "d/**/*.tar", "d/{**/*.tar,sub/_b.tar}", "d/**"])
def test_hidden_files_are_no_shards(
    root: str, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = ["d/00000.tar", "d/_a.tar", "d/sub/00001.tar"]
    make(root, *own, *(f"d/{name}" for name in HIDDEN))
    with caplog.at_level(logging.WARNING):
        if "{" in pattern:
            make(root, "d/sub/_b.tar")
            with pytest.raises(RecipeError, match="count twice"):
                found(root, pattern)
            return
        assert found(root, pattern) == own
    (said,) = [one.getMessage() for one in caplog.records if one.name.startswith("consomme")]
    assert "5 hidden files are left out, such as" in said


def test_hidden_files_are_read_if_they_are_named(root: str) -> None:
    make(root, *(f"d/{name}" for name in HIDDEN))
    for name in ("d/._00000.tar", "d/.hidden", "d/_temporary/0/part-0.tar", "d/.hidden/*.tar"):
        assert len(found(root, name)) == 1
    with pytest.raises(RecipeError, match="holds no shard"):
        found(root, "d")


def test_folders_that_a_pattern_matches_are_read(root: str) -> None:
    """Spark writes a table as a folder that is called like a file."""
    make(root, "a.parquet/part-0.parquet", "a.parquet/_SUCCESS", "a.parquet/.part-0.parquet.crc")
    make(root, "b.parquet/part-0.parquet")
    expected = ["a.parquet/part-0.parquet", "b.parquet/part-0.parquet"]
    assert found(root, "*.parquet") == expected
    assert found(root, "a.parquet", "b.parquet") == expected


@pytest.mark.parametrize("num", [4, 40])
def test_all_that_a_range_lacks_is_named(root: str, num: int) -> None:
    make(root, *(f"g/{number:05d}.tar" for number in range(num) if number not in (1, 3)))
    with pytest.raises(RecipeError, match=rf"{num} names.* 2 are missing: \S+00001\.tar, \S+00003"):
        found(root, f"g/{{00000..{num - 1:05d}}}.tar")
    with pytest.raises(RecipeError, match=r"2 are missing: \S+h/\*\.tar, \S+i/\*\.tar"):
        found(root, "{g,h,i}/*.tar")


def test_names_that_no_store_can_hold(root: str) -> None:
    make(root, *(f"{number}.tar" for number in range(300)))
    names = ",".join(str(number) for number in range(300))
    assert len(found(root, f"{{{names}}}.tar")) == 300


def test_links_are_checked_in_matched_folders(tmp_path: Path) -> None:
    make(str(tmp_path), "d/a.parquet/0.parquet", "secret.parquet")
    (tmp_path / "d/a.parquet/1.parquet").symlink_to(tmp_path / "secret.parquet")
    with pytest.raises(RecipeError, match="leads out of the folder"):
        find_shards([str(tmp_path / "d/a.*")])


def test_a_pattern_matches_folders_of_images(root: str) -> None:
    make(root, "cats-1/a.png", "cats-1/a.txt", "cats-2/b.png", "cats-2/b.txt", "dogs/c.png")
    assert found(root, "cats-*") == ["cats-1/", "cats-2/"]


def test_a_pattern_matches_folders_that_datasets_wrote(root: str) -> None:
    make(root, "part-1/data-0.arrow", "part-1/cache-1.arrow", "part-1/dataset_info.json")
    state = b'{"_data_files": [{"filename": "data-0.arrow"}]}'
    open_store(root).write("part-1/state.json", state)
    assert found(root, "part-*") == ["part-1/data-0.arrow"]
