"""The ledger: nothing lost, nothing duplicated, the same bytes, whichever process dies when."""

import contextlib
import dataclasses
import io
import json
import pickle
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError, RecipeError, SupersededError
from consomme.base.manifest import Manifest
from consomme.base.sample import Reject
from consomme.storage.ledger import attempts
from consomme.storage.ledger.attempts import commit_path, latest
from consomme.storage.ledger.commits import ROWS_PER_GROUP, SEGMENT_SCHEMA, CommitRecord
from consomme.storage.ledger.run_folder import RunFolder, load_manifest
from consomme.storage.plan import unpack_rows
from consomme.storage.sidecar import read_columns, table_bytes
from consomme.storage.stores.local import LocalStore
from consomme.storage.stores.store import FileInfo, Store
from consomme.storage.unit import Unit
from consomme.storage.view import View


def unit(number: int, count: int = 4) -> Unit:
    return Unit(
        unit_id=f"web-{number:03d}",
        source="web",
        shard="/data/000.tar",
        start=number * count,
        count=count,
        num_bytes=10,
    )


def reject(number: int, reason: str = "caption_empty") -> Reject:
    return Reject(
        sample_id=f"é{number}", source="web", reason=reason, detail="\ud800", reference="s@0+1"
    )


def scores(number: int) -> bytes:
    rows = [0, 1, 3]
    return table_bytes(
        pa.table(
            {
                "row": rows,
                "sample_id": [f"{number}-{row}" for row in rows],
                "nll": [number + row / 8 for row in rows],
            }
        )
    )


def work(run: RunFolder, number: int, attempt: int = 1) -> CommitRecord:
    """Do one unit as a pipeline does."""
    item = unit(number)
    file = run.write_output(item, "scores", scores(number), "parquet")
    return run.commit(
        attempt,
        item,
        [file],
        {"samples": 4, "kept": 3},
        [reject(number)],
        {"nll": 1.5},
    )


def with_histogram_column(segment: bytes) -> bytes:
    """Rewrite a segment as earlier versions wrote it."""
    table = pq.read_table(io.BytesIO(segment))
    column = pa.array(["{}"] * table.num_rows, pa.string())
    buffer = io.BytesIO()
    old = table.append_column("histogram", column)
    pq.write_table(old, buffer, row_group_size=ROWS_PER_GROUP, compression="zstd")
    return buffer.getvalue()


def drive(run: RunFolder, num_units: int = 5, pack_every: int = 2) -> None:
    """Do a whole run as a driver does, packing records from time to time."""
    attempt = run.start_attempt()
    done = run.done_units()
    fresh: list[CommitRecord] = []
    sequence = 0
    for number in range(num_units):
        if unit(number).unit_id not in done:
            fresh.append(work(run, number, attempt))
        if len(fresh) == pack_every:
            run.pack_commits(attempt, sequence, fresh)
            fresh, sequence = [], sequence + 1
    run.close(attempt)


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "attempts" not in path.parts
    }


class Killed(BaseException):
    """Simulates the death of a process; library code must not catch it."""


class DyingStore:
    """A store whose process dies at a chosen moment: before or after the n-th change."""

    def __init__(self, inner: Store, lives: int, *, is_after: bool) -> None:
        self.inner, self.lives, self.is_after = inner, lives, is_after

    def _change(self, action: Any, *arguments: Any) -> Any:
        self.lives -= 1
        if self.lives < 0 and not self.is_after:
            raise Killed
        result = action(*arguments)
        if self.lives < 0:
            raise Killed
        return result

    url = property(lambda self: self.inner.url)

    def write(self, path: str, data: bytes) -> None:
        self._change(self.inner.write, path, data)

    def create(self, path: str, data: bytes) -> bool:
        return bool(self._change(self.inner.create, path, data))

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.inner.read(path, offset, length)

    def list(self, prefix: str = "", after: str = "") -> Iterator[FileInfo]:
        return self.inner.list(prefix, after)

    def exists(self, path: str) -> bool:
        return self.inner.exists(path)

    def size(self, path: str) -> int:
        return self.inner.size(path)

    def delete(self, path: str) -> None:
        self._change(self.inner.delete, path)

    def delete_many(self, paths: Iterable[str]) -> None:
        for path in paths:
            self.delete(path)

    def remove_orphans(self, prefix: str = "") -> int:
        return self.inner.remove_orphans(prefix)

    def open(self, path: str) -> BinaryIO:
        return self.inner.open(path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("undisturbed")
    drive(RunFolder.at(str(root)))
    return tree(root)


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=6))
@pytest.mark.slow
def test_killed_anywhere_and_run_again_gives_the_same_bytes(
    undisturbed: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    deaths: list[tuple[int, bool]],
) -> None:
    root = tmp_path_factory.mktemp("run")
    store = LocalStore(str(root))
    for lives, is_after in deaths:
        with contextlib.suppress(Killed):
            drive(RunFolder(str(root), DyingStore(store, lives, is_after=is_after)))
        seen = list(RunFolder(str(root), store).iter_commits())
        assert len({record.unit_id for record in seen}) == len(seen)
        for record in seen:
            for file in record.files:
                assert store.read(file.path) == undisturbed[file.path]
    drive(RunFolder(str(root), store))
    assert tree(root) == undisturbed


def test_a_closed_run_holds_only_its_ledger_and_what_the_ledger_names(tmp_path: Path) -> None:
    run = RunFolder.at(str(tmp_path))
    attempt = run.start_attempt()
    run.write_output(unit(9), "scores", scores(9), "parquet")
    for number in range(3):
        work(run, number, attempt)
    (tmp_path / "data" / ".tmp-0").write_bytes(b"half")
    run.close(attempt)
    named = {file.path for record in run.iter_commits() for file in record.files}
    found = {file.path for file in run.store.list()} - set(latest(run.store).segments)
    assert found == named | {"attempts/000001.json", "attempts/000002.json"}
    assert [path for path in tmp_path.rglob(".tmp-*")] == []
    assert run.is_closed
    assert run.start_attempt() == 2, "nobody can begin again what is closed"


def test_a_zombie_publishes_nothing_after_the_next_attempt_began(tmp_path: Path) -> None:
    zombie, heir = RunFolder.at(str(tmp_path)), RunFolder.at(str(tmp_path))
    old = zombie.start_attempt()
    work(zombie, 0, old)
    new = heir.start_attempt()
    assert (old, new) == (1, 2)
    with pytest.raises(SupersededError, match=r"overtaken by attempt 2, started 2.* on .*pid"):
        work(zombie, 1, old)
    # A worker that checked just before the new attempt began: its record and segment are not valid.
    record = zombie.commits()["web-000"]
    stale = dataclasses.replace(record, counts={"samples": 99})
    zombie.store.create(commit_path(old, "web-001"), stale.to_json())
    zombie.pack_commits(old, 7, [stale])
    assert heir.done_units() == {"web-000"}
    assert heir.commits()["web-000"] == record
    with pytest.raises(SupersededError):
        zombie.close(old)
    work(heir, 1, new)
    heir.close(new)
    assert heir.total_counts()["samples"] == 8


def test_of_many_drivers_that_start_at_once_each_gets_its_own_attempt(tmp_path: Path) -> None:
    run = RunFolder.at(str(tmp_path))
    work(run, 0, run.start_attempt())
    barrier = threading.Barrier(8)
    numbers: list[int] = []

    def begin() -> None:
        barrier.wait()
        numbers.append(RunFolder.at(str(tmp_path)).start_attempt())

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(numbers) == 9
    assert run.done_units() == {"web-000"}


def test_records_are_seen_while_they_are_being_packed(tmp_path: Path) -> None:
    run = RunFolder.at(str(tmp_path))
    attempt = run.start_attempt()
    records = [work(run, number, attempt) for number in range(40)]
    expected = {record.unit_id for record in records}
    stop = threading.Event()
    seen: list[set[str]] = []

    def look() -> None:
        while not stop.is_set():
            seen.extend(({record.unit_id for record in run.iter_commits()}, run.done_units()))
            assert run.total_counts()["samples"] == 160

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(10):
        run.pack_commits(attempt, number, records[4 * number : 4 * number + 4])
    stop.set()
    reader.join()
    assert seen
    assert all(ids == expected for ids in seen)


def test_one_record_is_found_among_many_parts_and_single_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "RECORDS_PER_PART", 3)
    run = RunFolder.at(str(tmp_path))
    attempt = run.start_attempt()
    records = [work(run, number, attempt) for number in range(8)]
    with pytest.raises(DataError, match="not finished"):
        run.find_commit("web-000")
    run.close(attempt)
    parts = [path for path in latest(run.store).segments if path]
    assert len(parts) == 3
    assert [run.find_commit(record.unit_id) for record in records] == records
    assert run.find_commit("web-008") is None
    assert run.find_commit("web-0005") is None


def test_output_without_commit_is_invisible(tmp_path: Path) -> None:
    run = RunFolder.at(str(tmp_path))
    run.start_attempt()
    run.write_output(unit(0), "scores", scores(0), "parquet")
    assert run.done_units() == set()
    assert run.commits() == {}
    assert list(run.rejects()) == []
    with pytest.raises(DataError, match="no committed scores"):
        read_columns(run.url, ["nll"])
    work(run, 1)
    assert set(read_columns(run.url, ["nll"])["unit_id"].to_pylist()) == {"web-001"}


def test_of_two_committers_one_wins_and_only_its_output_counts(tmp_path: Path) -> None:
    first, second = RunFolder.at(str(tmp_path)), RunFolder.at(str(tmp_path))
    item, attempt = unit(0), first.start_attempt()
    file_1 = first.write_output(item, "scores", scores(1), "parquet")
    file_2 = second.write_output(item, "scores", scores(2), "parquet")
    assert file_1.path != file_2.path
    won = second.commit(attempt, item, [file_2], {"samples": 2})
    assert first.commit(attempt, item, [file_1], {"samples": 1}) == won
    assert first.commits()["web-000"].counts == {"samples": 2}
    assert read_columns(first.url, [])["sample_id"].to_pylist() == ["2-0", "2-1", "2-3"]


def test_a_crowd_of_committers_has_one_winner(tmp_path: Path) -> None:
    run = RunFolder.at(str(tmp_path))
    attempt = run.start_attempt()
    records: list[CommitRecord] = []
    barrier = threading.Barrier(12)

    def commit(number: int) -> None:
        barrier.wait()
        records.append(run.commit(attempt, unit(0), [], {"winner": number}))

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records) == 12
    assert all(record == run.commits()["web-000"] for record in records)
    assert [path.name for path in tmp_path.rglob("web*")] == ["web-000.json"]


def test_records_rejects_and_totals(tmp_path: Path) -> None:
    run = pickle.loads(pickle.dumps(RunFolder.at(str(tmp_path))))
    run.start_attempt()
    for number in (2, 0, 1):
        work(run, number)
    assert list(run.commits()) == ["web-000", "web-001", "web-002"]
    record = run.commits()["web-001"]
    assert record.unit == unit(1)
    assert record.sums == {"nll": 1.5}
    assert list(run.rejects()) == [reject(number) for number in range(3)]
    assert run.total_counts() == {
        "kept": 9,
        "rejected": 3,
        "rejected/caption_empty": 3,
        "samples": 12,
    }
    table = read_columns(run.url, ["nll"])
    assert table.column_names == ["unit_id", "row", "sample_id", "nll"]
    assert table["nll"].to_pylist()[3:6] == [1.0, 1.125, 1.375]
    with pytest.raises(DataError, match="no column ppl; found row, sample_id, nll"):
        read_columns(run.url, ["ppl"])


def test_ledgers_that_still_have_a_histogram_are_read_and_continued(tmp_path: Path) -> None:
    new, old = RunFolder.at(str(tmp_path / "new")), RunFolder.at(str(tmp_path / "old"))
    drive(new)
    # An earlier version died after it had packed three units and committed a fourth.
    attempt = old.start_attempt()
    old.pack_commits(attempt, 0, [work(old, number, attempt) for number in (0, 2, 3)])
    (segment,) = old.store.list("segments/")
    old.store.write(segment.path, with_histogram_column(old.store.read(segment.path)))
    work(old, 1, attempt)
    path = commit_path(attempt, "web-001")
    record = {**json.loads(old.store.read(path)), "histogram": {}}
    old.store.write(path, json.dumps(record).encode())
    assert list(old.commits()) == ["web-000", "web-001", "web-002", "web-003"]
    assert old.total_sums() == {"nll": 6.0}
    # This version seals the single record and reads segments of both kinds.
    drive(old)
    assert old.commits() == new.commits()
    assert old.total_counts() == new.total_counts()
    assert tree(tmp_path / "old") == tree(tmp_path / "new")
    (part,) = latest(old.store).segments
    assert pq.read_schema(io.BytesIO(old.store.read(part))).names == SEGMENT_SCHEMA.names
    # A run that an earlier version closed.
    old.store.write(part, with_histogram_column(old.store.read(part)))
    assert old.commits() == new.commits()
    assert old.find_commit("web-004") == new.commits()["web-004"]
    assert old.total_counts() == new.total_counts()


def test_damaged_records_and_outputs_say_what_to_do(tmp_path: Path) -> None:
    run = RunFolder.at(str(tmp_path))
    attempt = run.start_attempt()
    work(run, 0)
    (tmp_path / run.commits()["web-000"].files[0].path).unlink()
    with pytest.raises(DataError, match="a committed file cannot be read"):
        read_columns(run.url, [])
    run.store.write(commit_path(attempt, "web-001"), b"{")
    with pytest.raises(DataError, match="delete it to have its unit done again"):
        run.commits()
    run.store.delete(commit_path(attempt, "web-001"))
    run.pack_commits(attempt, 0, list(run.commits().values()))
    (segment,) = run.store.list("segments/")
    run.store.write(segment.path, run.store.read(segment.path)[:-9])
    with pytest.raises(DataError, match=r"000000.parquet: a segment of .* cannot be read"):
        run.commits()


def test_a_run_is_done_when_its_manifest_is_there(tmp_path: Path) -> None:
    run = RunFolder.open(str(tmp_path), "score", "points", "0123abcd")
    assert run.url == str(tmp_path / "score" / "points-0123abcd")
    with pytest.raises(DataError, match="no run is there"):
        load_manifest(run.url)
    run.create("name: points\n")
    assert not run.is_done
    with pytest.raises(DataError, match="run it again to go on"):
        load_manifest(run.url)
    manifest = Manifest(verb="score", name="points", fingerprint="0123abcd", recipe={})
    assert run.finish(manifest, "name: points\n").url == run.url
    assert run.is_done
    assert load_manifest(run.url) == run.finish(manifest, "name: points\n")
    with pytest.raises(RecipeError, match="becomes part of a path"):
        RunFolder.open(str(tmp_path), "score", "../x", "0")


@given(st.sets(st.integers(0, 20)))
def test_views_keep_exactly_the_rows(
    tmp_path_factory: pytest.TempPathFactory, kept: set[int]
) -> None:
    run = RunFolder.at(str(tmp_path_factory.mktemp("view")))
    units = [unit(0, 21), unit(1, 7)]
    View.from_rows(units, {"web-000": sorted(kept)}).save(run)
    view = View.load(run.url)
    assert view.units == units
    assert view.num_samples == len(kept)
    assert [rows for _, rows in view.rows()] == [sorted(kept), []]
    assert unpack_rows(*view.entries[0]) == sorted(kept)


def test_views_refuse_rows_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="kept rows reach 4"):
        View.from_rows([unit(0)], {"web-000": [4]})
    with pytest.raises(DataError, match="not among the units"):
        View.from_rows([unit(0)], {"web-009": [0]})
    with pytest.raises(DataError, match="not readable as a view"):
        View.load(str(tmp_path))


@pytest.mark.parametrize("change", [{"segmentz": []}, {"started": None}])
def test_an_entry_with_other_keys_is_named(tmp_path, change) -> None:
    store = LocalStore(str(tmp_path))
    attempts.start(store)
    name = "attempts/000001.json"
    entry = json.loads(store.read(name))
    for key, value in change.items():
        if value is None:
            del entry[key]
        else:
            entry[key] = value
    store.write(name, json.dumps(entry).encode())
    with pytest.raises(DataError, match=r"000001\.json: not an entry of the ledger: found '"):
        attempts.latest(store)
