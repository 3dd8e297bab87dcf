"""What an actor does with a unit: read it if nobody did, decode, work, commit.

One decision is made here: pictures are decoded in pieces of at most `PIECE_BYTES`, cut by the
pictures' own sizes. So memory does not depend on what is in a unit, and neither do results on who
does it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
from PIL import Image

from consomme.base.errors import ConsommeError, EngineLostError
from consomme.base.hashing import hash_ids
from consomme.base.sample import Reject, Sample
from consomme.execution.loading import Loaded, Row, load, unpack
from consomme.execution.spans import Spans, timed
from consomme.execution.stage import (
    BytesStage,
    DecodedSample,
    Outcome,
    Stage,
    UnitSample,
    UnitStage,
    merge,
    reject_of,
)
from consomme.storage.ledger.commits import CommitRecord
from consomme.storage.ledger.inflight import ReadWriteGate, clear, work_safely
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.sidecar import ID_HASH, table_bytes
from consomme.storage.unit import ReadUnit, Unit
from consomme.storage.units import read_unit
from consomme.vision.decode import DecodeProblem, decode

logger = logging.getLogger(__name__)

DECODE_THREADS = 2

PIECE_BYTES = 256 * 2**20
"""Decoded pictures that are worked on at a time; each unit in an actor has as many in memory."""

KILLED = "the process ended each time it worked on this sample alone"

Rejected = list[tuple[int, Reject]]


class UnitWorker:
    """Runs a stage inside Ray Data: one unit from read, or from its samples, to its commit."""

    def __init__(
        self,
        stage: type[Stage],
        options: Mapping[str, Any],
        run_url: str,
        attempt_no: int,
        kind: str,
        read: ReadUnit = read_unit,
    ) -> None:
        """Load the stage.

        Args:
            stage: Its class.
            options: Its constructor's arguments.
            run_url: The run folder.
            attempt_no: Which attempt commits.
            kind: Kind of the output file.
            read: Reads one unit.
        """
        self.folder = RunFolder.at(run_url)
        self.attempt_no, self.kind, self.read = attempt_no, kind, read
        self.broken: ConsommeError | None = None
        try:
            self.stage = stage(**options)
        except ConsommeError as error:
            # An actor that cannot be made tells Ray, and not the user, why; so it tells with its
            # first unit.
            self.broken = error
        self.turn = threading.Lock()
        self.gate = ReadWriteGate()
        self.threads = ThreadPoolExecutor(DECODE_THREADS)

    def __call__(self, row: Row) -> Row:
        """Do one unit and return its receipt: a commit record, or the error that a user has to see.

        Raised, the error would come back as one of Ray Data's own, and ours would be gone.
        """
        try:
            return self._do(row)
        except EngineLostError:
            # An engine that is dead or hangs cannot be had back in this process. The note about the
            # unit outlives it, so a sample that does this every time is found.
            logger.exception("this process ends, and another one takes over")
            os.kill(os.getpid(), signal.SIGKILL)
            raise
        except ConsommeError as error:
            return {"record": b"", "spans": "[]", "gauges": "[]", "error": pickle.dumps(error)}

    def _do(self, row: Row) -> Row:
        if self.broken is not None:
            raise self.broken
        work, loaded, spans = unpack(row)
        if loaded is None:
            with timed(spans, "read"):
                loaded = load(self.folder.store, work, self.read, self.gate)
        outcome, rejects = self._outcome(work.unit, loaded, spans)
        with timed(spans, "commit"):
            record = self._commit(work.unit, outcome, rejects)
        gauges = self.stage.gauges() if isinstance(self.stage, UnitStage) else []
        return {
            "record": record.to_json(),
            "spans": json.dumps(spans),
            "gauges": json.dumps(gauges),
            "error": b"",
        }

    def _outcome(self, unit: Unit, loaded: Loaded, spans: Spans) -> tuple[Outcome, list[Reject]]:
        """Work on a unit's samples; leave out those that kill the process."""
        samples = loaded.samples

        def run(rows: Sequence[int]) -> tuple[Outcome, Rejected]:
            chosen = {number: samples[number] for number in rows}
            if isinstance(self.stage, BytesStage):
                items = [UnitSample(row=number, sample=sample) for number, sample in chosen.items()]
                with self.turn, timed(spans, "work"):
                    return self.stage.work(items), []
            turn = contextlib.nullcontext() if self.stage.is_shared else self.turn
            bad: Rejected = []
            outcomes: list[Outcome] = []
            pieces = self._pieces(chosen, self.stage.min_side_px, bad)
            while True:
                with timed(spans, "decode"):
                    piece = next(pieces, None)
                if piece is None and outcomes:
                    return merge(outcomes), bad
                with turn, timed(spans, "work"):
                    outcomes.append(self.stage.work(piece or []))

        store, numbers = self.folder.store, list(samples)
        (outcome, bad), poison_rows = work_safely(store, unit.unit_id, numbers, run, self.gate)
        killers = [
            (number, reject_of(samples[number], "killed_worker", KILLED)) for number in poison_rows
        ]
        every = sorted(
            [*loaded.rejects, *bad, *outcome.rejects, *killers], key=lambda entry: entry[0]
        )
        return outcome, [reject for _, reject in every]

    def _pieces(
        self, samples: Mapping[int, Sample], min_side_px: int | None, bad: Rejected
    ) -> Iterator[list[DecodedSample]]:
        """Decode pictures in threads, a piece at a time; those that cannot be had go to `bad`."""
        waiting: deque[tuple[int, Sample, Future[Image.Image | DecodeProblem]]] = deque()
        read = partial(decode, min_side_px=min_side_px)
        coming = iter(samples.items())
        piece: list[DecodedSample] = []
        size = 0
        while True:
            for number, sample in coming:
                waiting.append((number, sample, self.threads.submit(read, sample.image)))
                if len(waiting) > 2 * DECODE_THREADS:
                    break
            if not waiting:
                break
            number, sample, decoding = waiting.popleft()
            image = decoding.result()
            if isinstance(image, DecodeProblem):
                bad.append((number, reject_of(sample, image.reason, image.detail)))
                continue
            piece.append(DecodedSample(row=number, sample=sample, image=image))
            size += image.width * image.height * 3
            if size >= PIECE_BYTES:
                yield piece
                piece, size = [], 0
        if piece:
            yield piece

    def _commit(self, unit: Unit, outcome: Outcome, rejects: Sequence[Reject]) -> CommitRecord:
        """Write a unit's files and make them visible."""
        files = [
            self.folder.write_output(unit, name, data, suffix)
            for name, suffix, data in [
                (self.kind, "parquet", table_bytes(with_id_hash(outcome.table, unit.source))),
                *outcome.files,
            ]
        ]
        counts = {"samples": outcome.table.num_rows, **outcome.counts}
        record = self.folder.commit(self.attempt_no, unit, files, counts, rejects, outcome.sums)
        clear(self.folder.store, unit.unit_id)
        return record


def with_id_hash(table: pa.Table, source: str) -> pa.Table:
    """Add `id_hash` behind `sample_id`: what ties are broken by, so that nobody reads names for it.

    Two sources may use the same names, so the source's own name goes in.
    """
    hashes = hash_ids(f"{source}\t{name}" for name in table["sample_id"].to_pylist())
    at = table.schema.get_field_index("sample_id") + 1
    return table.add_column(at, ID_HASH, pa.array(hashes, pa.uint64()))
