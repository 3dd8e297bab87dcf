"""Reading, decoding and writing: consomme's pipeline against a plain loop and against Ray Data.

All three read the same tars, decode every picture in full, and write all samples into new tars with
unchanged names and bytes. They run in turn in one process tree with Ray already up; figures are
medians of three rounds. The loop is one process; `io.ray_over_two_loops` compares with two
processes, each with half of the shards, for machines with two cores.
"""

from __future__ import annotations

import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NUM_SHARDS, SHARD_ROWS, SIDE = 40, 500, 320
ROUNDS = 3


def write_data(folder: Path) -> int:
    """Write tars of JPEGs with the statistics of photos, about 30 kB each."""
    from consomme.base.sample import ImageFile, Sample, caption_turns
    from consomme.storage.writers import tar_bytes

    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(64):
        # Noise of all scales, like a photo's spectrum.
        total = np.zeros((SIDE, SIDE, 3), np.float32)
        for cells in (4, 8, 16, 32, 64, 160):
            small = rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8)
            grown = Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            total += np.asarray(grown, np.float32) / cells**0.5
        scaled = 255 * (total - total.min()) / (total.max() - total.min())
        out = io.BytesIO()
        Image.fromarray(scaled.astype(np.uint8)).save(out, "JPEG", quality=88)
        pictures.append(out.getvalue())
    for shard in range(NUM_SHARDS):
        samples = [
            Sample(
                sample_id=f"{shard:03d}-{row:05d}",
                images=(
                    ImageFile(
                        data=pictures[(shard * 7 + row) % 64], name=f"{shard:03d}-{row:05d}.jpg"
                    ),
                ),
                turns=caption_turns(f"picture {row} of shard {shard}"),
                source="data",
                meta={},
            )
            for row in range(SHARD_ROWS)
        ]
        (folder / f"{shard:03d}.tar").write_bytes(tar_bytes(samples))
    return NUM_SHARDS * SHARD_ROWS


def loop(shards: Sequence[str], out: str) -> int:
    """Run in one process, shard by shard, with the same reader, decoder and writer."""
    from consomme.storage.units import plan_units, read_unit
    from consomme.storage.writers import tar_bytes
    from consomme.vision.decode import DecodeProblem, decode

    done = 0
    for number, unit in enumerate(plan_units(shards, "data", 500)):
        samples = [
            s
            for _, s in read_unit(unit)[0]
            if not isinstance(decode(s.images[0].data), DecodeProblem)
        ]
        Path(out, f"{number:06d}.tar").write_bytes(tar_bytes(samples))
        done += len(samples)
    return done


def two_loops(shards: Sequence[str], out: str) -> int:
    """Run in two processes, each with every other shard."""
    folders = [Path(out, str(number)) for number in range(2)]
    for folder in folders:
        folder.mkdir()
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        halves = [(shards[number::2], str(folders[number])) for number in range(2)]
        return sum(pool.starmap(loop, halves))


def consomme(shards: Sequence[str], out: str) -> int:
    """Run as a verb does: plan, units, ledger, checksums, commits."""
    from tests.benchmarks.noop_stage import NoopStage

    from consomme.execution.driver import run_job
    from consomme.execution.job import ActorPool, Job
    from consomme.execution.planning import plan_shards
    from consomme.storage.ledger.run_folder import RunFolder
    from consomme.storage.shards import find_shards

    folder = RunFolder.at(out)
    job = Job(
        name="no-op",
        plan=plan_shards(folder, find_shards(shards), 500),
        folder=folder,
        kind="rows",
        stage=NoopStage,
        pool=ActorPool(max_actors=2, min_actors=2, cpus=0.7),
    )
    run_job(job)
    return folder.total_counts()["samples"]


def ray_webdataset(shards: Sequence[str], out: str) -> int:
    """Run with Ray Data's WebDataset reader and writer, and our decoder."""
    import ray.data

    def decode_row(row: dict[str, Any]) -> dict[str, Any]:
        from consomme.vision.decode import decode

        decode(row["jpg"])
        return row

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 128 * 2**20
    data = ray.data.read_webdataset(list(shards), decoder=None).map(decode_row)
    data.write_webdataset(out, encoder=None)
    return sum(path.stat().st_size > 0 for path in Path(out).rglob("*.tar")) and NUM_SHARDS * (
        SHARD_ROWS
    )


def measure() -> list[dict[str, Any]]:
    """Time the contestants in turn."""
    from consomme.execution.session import ray_session

    contestants: dict[str, Callable[[Sequence[str], str], int]] = {
        "loop": loop,
        "two loops": two_loops,
        "consomme": consomme,
        "ray webdataset": ray_webdataset,
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch, "data")
        data.mkdir()
        total = write_data(data)
        shards = sorted(str(path) for path in data.glob("*.tar"))
        with ray_session():
            for number in range(ROUNDS + 1):
                for name, work in contestants.items():
                    with tempfile.TemporaryDirectory(dir=scratch) as out:
                        began = time.monotonic()
                        done = work(shards, out)
                        seconds = time.monotonic() - began
                    assert done == total, (name, done, total)
                    if number:  # The first round warms up disks, caches and worker processes.
                        rates[name].append(total / seconds)
    middle = {name: statistics.median(found) for name, found in rates.items()}
    how = ", ".join(f"{name} {rate:,.0f} samples/s" for name, rate in middle.items())
    how += f"; {total:,} JPEGs of {SIDE} px, medians of {ROUNDS} rounds in turn"
    ours = middle["consomme"]
    return [
        row("io.ray_over_loop", ours / middle["loop"], "a loop in one process", how),
        row("io.ray_over_two_loops", ours / middle["two loops"], "two such loops at once", how),
        row(
            "io.vs_ray_webdataset",
            ours / middle["ray webdataset"],
            "ray.data.read_webdataset, map, write_webdataset",
            how,
        ),
    ]


def row(key: str, value: float, baseline: str, how: str) -> dict[str, Any]:
    """Return one figure."""
    return {
        "key": key,
        "value": round(value, 3),
        "unit": "ratio",
        "baseline": baseline,
        "how": how,
    }
