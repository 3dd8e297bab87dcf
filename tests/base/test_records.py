"""Samples, rejects, manifests, logging and progress."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError
from consomme.base.manifest import Manifest, Parent, from_json, lineage, to_json
from consomme.base.sample import (
    ImageFile,
    Reject,
    Sample,
    Turn,
)
from consomme.base.sample_tables import SAMPLE_SCHEMA, samples_to_table, table_to_samples
from consomme.base.telemetry import MetricsLog, Progress, configure_logging

texts = st.text(st.characters(codec="utf-8"), max_size=20)
samples = st.builds(
    Sample,
    sample_id=texts,
    images=st.tuples(st.builds(ImageFile, data=st.binary(max_size=20), name=texts)),
    turns=st.lists(
        st.builds(Turn, role=st.sampled_from(["system", "user", "assistant"]), content=texts)
    ).map(tuple),
    source=texts,
    meta=st.dictionaries(texts, st.integers() | texts | st.none() | st.lists(texts), max_size=3),
)


@given(st.lists(samples, max_size=4))
def test_samples_survive_a_table(rows: list[Sample]) -> None:
    table = samples_to_table(rows)
    assert table.schema.equals(SAMPLE_SCHEMA)
    assert table_to_samples(table) == rows


def test_caption_is_the_last_thing_the_assistant_said() -> None:
    turns = (
        Turn(role="user", content="What?"),
        Turn(role="assistant", content="A cat."),
        Turn(role="user", content="Sure?"),
        Turn(role="assistant", content="Yes."),
    )
    sample = Sample(
        sample_id="1", images=(ImageFile(data=b"", name="1.png"),), turns=turns, source="s"
    )
    assert sample.caption == "Yes."
    changed = sample.with_caption("No.", captioner="m")
    assert [turn.content for turn in changed.turns] == ["What?", "A cat.", "Sure?", "No."]
    assert changed.meta == {"captioner": "m"}
    assert sample.meta == {}
    assert changed.with_caption("Maybe.").turns[:3] == turns[:3]


def test_reject_reasons_are_a_fixed_vocabulary() -> None:
    with pytest.raises(ValueError, match="REJECT_REASONS"):
        Reject(sample_id="1", source="s", reason="ugly", detail="", reference="")


def manifest(verb: str, fingerprint: str, *parents: Parent) -> Manifest:
    return Manifest(verb=verb, name="x", fingerprint=fingerprint, recipe={}, parents=parents)


def test_manifest_round_trip_without_its_place() -> None:
    made = Manifest(
        verb="score",
        name="é",
        fingerprint="00000000",
        recipe={"a": [1, 2]},
        decisions={"threshold": 1.5},
        parents=(Parent(verb="filter", url="u", fingerprint="1"),),
        url="somewhere",
    )
    text = to_json(made)
    assert "somewhere" not in text
    assert from_json(text, "somewhere") == made
    with pytest.raises(DataError, match=r"r/manifest\.json"):
        from_json("{", "r")


def test_lineage_lists_parents_first_and_once() -> None:
    score = manifest("score", "a")
    kept = manifest("filter", "b", Parent(verb="score", url="/score", fingerprint="a"))
    last = manifest(
        "train",
        "c",
        Parent(verb="filter", url="/filter", fingerprint="b"),
        Parent(verb="score", url="/score", fingerprint="a"),
    )
    runs = {"/score": score, "/filter": kept}
    assert lineage(last, runs.__getitem__) == [score, kept, last]
    runs["/score"] = manifest("score", "z")
    with pytest.raises(DataError, match="folder was replaced"):
        lineage(last, runs.__getitem__)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Lines(logging.Handler):
    """Keeps messages; whether the logger propagates depends on which tests came before."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def test_progress_lines_say_rate_and_rejects(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    kept, logger = Lines(), logging.getLogger("consomme")
    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.setattr(logger, "handlers", [kept])
    with (
        Progress(
            100, "score", "samples", done=20, interval_s=10, is_terminal=False, clock=clock
        ) as progress,
    ):
        clock.now = 4.0
        progress.advance(8)
        clock.now = 10.0
        progress.advance(12, {"image_truncated": 2, "caption_empty": 1})
        clock.now = 16.0
        progress.advance(60)
    assert kept.texts == [
        "score: starting, 100 samples, 20 done before",
        "score: 40 of 100 samples (40 %), 2.0 samples/s, 30 s left, "
        "3 rejects (image_truncated 2, caption_empty 1)",
        "score: 100 of 100 samples (100 %), 5.0 samples/s, "
        "3 rejects (image_truncated 2, caption_empty 1), done in 16.0 s",
    ]


def test_logging_is_configured_once() -> None:
    configure_logging()
    configure_logging(logging.DEBUG)
    logger = logging.getLogger("consomme")
    assert len([item for item in logger.handlers if item.get_name() == "consomme"]) == 1
    assert logger.level == logging.DEBUG


class Files:
    def __init__(self, root: Path) -> None:
        self.root = root

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        (self.root / path).write_bytes(data)


def test_metrics_go_on_after_a_restart_without_doubled_steps(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with MetricsLog(files) as log:
        log.log("train/loss_nats", 3.0, 1)
        log.log("train/loss_nats", 2.0, 2)
    with MetricsLog(files, resume_step=1) as log:
        log.log("train/loss_nats", 2.5, 2)
    lines = [json.loads(line) for line in files.read("metrics.jsonl").splitlines()]
    assert [(line["step"], line["value"]) for line in lines] == [(1, 3.0), (2, 2.5)]
    with pytest.raises(ValueError, match="expected <verb>/<what>_<unit>"):
        log.log("loss", 1.0)
