"""Read a shard as the stages do, within a memory limit."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from consomme.base.sample import Reject, Sample
from consomme.storage.units import plan_units, read_unit
from consomme.vision.decode import DecodeProblem, decode


def outcomes(url: str, **limits: int) -> list[Sample | Reject]:
    """Read a shard and decode its pictures; return the result of each row, in order."""
    found: list[Sample | Reject] = []
    for unit in plan_units([url], "web", **limits):
        samples, rejects = read_unit(unit)
        rows: dict[int, Sample | Reject] = dict(samples)
        assert not set(rows) & {number for number, _ in rejects}
        rows |= dict(rejects)
        assert sorted(rows) == list(range(unit.count))
        found += [rows[number] for number in sorted(rows)]
    return [_decoded(item) if isinstance(item, Sample) else item for item in found]


def _decoded(sample: Sample) -> Sample | Reject:
    problem = decode(sample.images[0].data)
    if not isinstance(problem, DecodeProblem):
        return sample
    return Reject(
        sample_id=sample.sample_id,
        source=sample.source,
        reason=problem.reason,
        detail=problem.detail,
        reference=sample.images[0].name,
    )


def reasons(url: str, **limits: int) -> list[str | None]:
    """Return the reject reason of each row, in order; None for good rows."""
    return [item.reason if isinstance(item, Reject) else None for item in outcomes(url, **limits)]


@contextmanager
def at_most_mb(limit: float) -> Iterator[None]:
    """Limit the memory that the block may use beyond its start, in megabytes."""
    Path("/proc/self/clear_refs").write_text("5")  # Forget the peak of what went before.
    before = _memory_mb("VmRSS")
    yield
    assert _memory_mb("VmHWM") - before < limit


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def write(folder: Path, name: str, data: bytes) -> str:
    """Write a shard and return its URL."""
    (folder / name).write_bytes(data)
    return str(folder / name)
