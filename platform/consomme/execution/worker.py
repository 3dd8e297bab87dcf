"""What an actor does with a unit: read it if no task did, decode, run the stage, commit.

Pictures are decoded in pieces of at most `PIECE_BYTES`, cut by the pictures' own sizes. So memory
does not depend on what is in a unit, and results do not depend on which actor does it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
from PIL import Image

from consomme.base.errors import ConsommeError, EngineLostError, StorageAwayError
from consomme.base.hashing import hash_ids
from consomme.base.sample import Reject, Sample
from consomme.base.secrets import redact_output
from consomme.execution.errors import without_secrets
from consomme.execution.job import Job
from consomme.execution.loading import load
from consomme.execution.spans import Spans, timed
from consomme.execution.stage import (
    BytesStage,
    DecodedSample,
    Outcome,
    UnitSample,
    UnitStage,
    decoded_images,
    merge,
    reject_of,
)
from consomme.execution.wire import Receipt, Row, UnitRow, UnitSamples
from consomme.storage.ledger.commits import CommitRecord
from consomme.storage.ledger.inflight import ReadWriteGate, clear, run_with_bisection
from consomme.storage.sidecar import ID_HASH, table_bytes
from consomme.storage.stores.local import away_errors
from consomme.storage.unit import Unit
from consomme.vision.decode import DecodeProblem, decode

logger = logging.getLogger(__name__)

DECODE_THREADS = 2

PIECE_BYTES = 256 * 2**20
"""Bytes of decoded pictures in one piece; each unit in an actor holds one piece in memory."""

KILLED = "the process ended each time it worked on this sample alone"

Rejected = list[tuple[int, Reject]]


@dataclass
class _Piece:
    """Samples of a unit that are worked on at a time."""

    samples: list[DecodedSample] = field(default_factory=list)
    rejects: Rejected = field(default_factory=list)
    """Samples whose picture cannot be decoded."""


class UnitWorker:
    """Runs a job's stage in an actor: one unit from reading, or from its samples, to its commit."""

    def __init__(self, job: Job, attempt_no: int) -> None:
        """Make the stage.

        Args:
            job: What is done.
            attempt_no: The attempt whose commits count.
        """
        redact_output()
        self.job, self.attempt_no = job, attempt_no
        self.folder = job.folder
        self.turn = threading.Lock()
        self.gate = ReadWriteGate()
        self.threads = ThreadPoolExecutor(DECODE_THREADS)
        self.broken: ConsommeError | None = None
        self._open()

    def _open(self) -> None:
        """Make the stage; a storage that is away is tried again with the next unit."""
        try:
            self.stage = self.job.stage()
        except ConsommeError as error:
            # An error in an actor's constructor reaches Ray only, not the user; so it is returned
            # for the first unit.
            self.broken = error
        else:
            self.broken = None

    def __call__(self, row: Row) -> Row:
        """Do one unit and return its receipt."""
        work = UnitRow.unpack(row)
        try:
            with away_errors():
                return self._do(work).pack()
        except StorageAwayError as error:
            # Another worker may still reach the storage, or this one later.
            logger.warning("unit %s is handed back: %s", work.work.unit.unit_id, error)
            return Receipt(error=error, handed_back=work.work.unit.unit_id).pack()
        except EngineLostError:
            # An engine that is dead or hangs cannot be restarted in this process. The note about
            # the unit outlives it, so a sample that does this every time is found.
            logger.exception("this process ends, and another one takes over")
            os.kill(os.getpid(), signal.SIGKILL)
            raise
        except ConsommeError as error:
            error.unit = error.unit or work.work.unit.unit_id
            return Receipt(error=error).pack()
        # Whatever a library raises is raised again, without the URLs that it quotes.
        except Exception as error:
            clean = without_secrets(error)
            if clean is error:
                raise
            raise clean from None

    def _do(self, row: UnitRow) -> Receipt:
        if self.broken is not None:
            if isinstance(self.broken, StorageAwayError):
                with self.turn:
                    if self.broken is not None:
                        self._open()
            if self.broken is not None:
                raise self.broken
        unit, content, spans = row.work.unit, row.content, row.spans
        if content is None:
            with timed(spans, "read"):
                content = load(self.folder.store, row.work, self.job.read, self.gate)
        outcome, rejects = self._outcome(unit, content, spans)
        with timed(spans, "commit"):
            record = self._commit(unit, outcome, rejects)
        gauges = self.stage.gauges() if isinstance(self.stage, UnitStage) else []
        return Receipt(record=record, spans=spans, gauges=gauges)

    def _outcome(
        self, unit: Unit, content: UnitSamples, spans: Spans
    ) -> tuple[Outcome, list[Reject]]:
        """Run the stage on a unit's samples; leave out those that kill the process."""
        samples = content.samples

        def work(rows: Sequence[int]) -> tuple[Outcome, Rejected]:
            chosen = {row: samples[row] for row in rows}
            if isinstance(self.stage, BytesStage):
                items = [UnitSample(row=row, sample=sample) for row, sample in chosen.items()]
                with self.turn, timed(spans, "work"):
                    return self.stage.work(items), []
            turn = contextlib.nullcontext() if self.stage.is_shared else self.turn
            undecoded: Rejected = []
            outcomes: list[Outcome] = []
            pieces = self._pieces(chosen, self.stage.min_side_px)
            while True:
                with timed(spans, "decode"):
                    piece = next(pieces, None)
                if piece is None:
                    return merge(outcomes), undecoded
                undecoded += piece.rejects
                if piece.samples or not outcomes:
                    with turn, timed(spans, "work"):
                        outcomes.append(self.stage.work(piece.samples))

        (outcome, undecoded), poison_rows = run_with_bisection(
            self.folder.store, unit.unit_id, list(samples), work, self.gate
        )
        killers = [(row, reject_of(samples[row], "killed_worker", KILLED)) for row in poison_rows]
        every = [*content.rejects, *undecoded, *outcome.rejects, *killers]
        return outcome, [reject for _, reject in sorted(every, key=lambda entry: entry[0])]

    def _pieces(self, samples: Mapping[int, Sample], min_side_px: int | None) -> Iterator[_Piece]:
        """Decode pictures in threads, a piece at a time; yields one piece at least."""
        waiting: deque[tuple[int, Sample, list[Future[Image.Image | DecodeProblem]]]] = deque()
        read = partial(decode, min_side_px=min_side_px)
        coming = iter(samples.items())
        piece = _Piece()
        num_bytes, num_pieces = 0, 0
        while True:
            for row, sample in coming:
                decoding = [self.threads.submit(read, image.data) for image in sample.images]
                waiting.append((row, sample, decoding))
                if sum(len(images) for *_, images in waiting) > 2 * DECODE_THREADS:
                    break
            if not waiting:
                break
            row, sample, decoding = waiting.popleft()
            images = decoded_images(sample, [future.result() for future in decoding])
            if isinstance(images, Reject):
                piece.rejects.append((row, images))
                continue
            piece.samples.append(DecodedSample(row=row, sample=sample, images=images))
            num_bytes += sum(image.width * image.height * 3 for image in images)
            if num_bytes >= PIECE_BYTES:
                yield piece
                piece, num_bytes, num_pieces = _Piece(), 0, num_pieces + 1
        if piece.samples or piece.rejects or not num_pieces:
            yield piece

    def _commit(self, unit: Unit, outcome: Outcome, rejects: Sequence[Reject]) -> CommitRecord:
        """Write a unit's files, and commit them."""
        files = [
            self.folder.write_output(unit, name, data, suffix)
            for name, suffix, data in [
                (self.job.kind, "parquet", table_bytes(with_id_hash(outcome.table, unit.source))),
                *outcome.files,
            ]
        ]
        counts = {"samples": outcome.table.num_rows, **outcome.counts}
        record = self.folder.commit(self.attempt_no, unit, files, counts, rejects, outcome.sums)
        clear(self.folder.store, unit.unit_id)
        return record


def with_id_hash(table: pa.Table, source: str) -> pa.Table:
    """Add the column `id_hash` after `sample_id`: ties are broken by it, without reading the ids.

    The hash covers the source's name too, since two sources may use the same ids.
    """
    hashes = hash_ids(f"{source}\t{name}" for name in table["sample_id"].to_pylist())
    at = table.schema.get_field_index("sample_id") + 1
    return table.add_column(at, ID_HASH, pa.array(hashes, pa.uint64()))
