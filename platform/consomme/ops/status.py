"""Report the status of a run from its folder alone: no cluster, no Ray, from any machine.

Finished units come from the ledger; rate, host and state come from the driver's heartbeat.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from consomme.base.errors import DataError
from consomme.storage.ledger import attempts
from consomme.storage.ledger.commits import reject_reasons
from consomme.storage.ledger.run_folder import MANIFEST, PROGRESS, RECIPE, RunFolder
from consomme.storage.plan import Plan

STALE_S = 90.0
"""A driver whose heartbeat is older than this, in seconds, counts as gone."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Status of a run."""

    url: str
    state: str
    """`done`, `running`, `starting`, `stopped`, `silent` (old heartbeat), `planned` or `begun`."""

    num_units: int | None = None
    num_units_done: int = 0
    num_rows: int | None = None
    num_rows_done: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    """Rows by outcome, over committed units."""

    attempt: int = 0
    rows_per_s: float = 0.0
    remark: str = ""
    """The driver's description of its stages."""

    heartbeat: Mapping[str, Any] = field(default_factory=dict)

    trials: Mapping[str, int] = field(default_factory=dict)
    """Trials of a sweep by state."""

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining time at the current rate; None if unknown."""
        if self.num_rows is None or self.rows_per_s <= 0 or self.state != "running":
            return None
        return (self.num_rows - self.num_rows_done) / self.rows_per_s


def read_status(url: str, now: float | None = None) -> Status:
    """Read the status of a run.

    Args:
        url: The run folder.
        now: Seconds since 1970; the current time if None.

    Raises:
        DataError: The folder holds no run.
    """
    now = time.time() if now is None else now
    folder = RunFolder.at(url)
    store = folder.store
    if not store.exists(RECIPE) and not store.exists(MANIFEST):
        raise DataError(f"{folder.url}: expected a run folder, found no {RECIPE} in it")
    entry = attempts.latest(store)
    plan = Plan.load(store)
    counts: Counter[str] = Counter()
    num_units = 0
    for record in attempts.iter_field(store, "counts"):
        num_units += 1
        counts.update(record)
    try:
        heartbeat: dict[str, Any] = json.loads(store.read(PROGRESS))
    except FileNotFoundError:
        heartbeat = {}
    return Status(
        url=folder.url,
        state=_state(folder.is_done, bool(entry.number), plan is not None, heartbeat, now),
        num_units=plan.num_units if plan else None,
        num_units_done=num_units,
        num_rows=plan.num_rows if plan else None,
        num_rows_done=counts["samples"] + counts["rejected"],
        counts=dict(sorted(counts.items())),
        attempt=entry.number - entry.is_closed,
        rows_per_s=float(heartbeat.get("rows_per_s", 0.0)),
        remark=str(heartbeat.get("stages", "")),
        heartbeat=heartbeat,
        trials=Counter(
            json.loads(store.read(info.path))["state"] for info in store.list("trials/")
        ),
    )


def _state(is_done: bool, is_begun: bool, is_planned: bool, heartbeat: Any, now: float) -> str:
    if is_done:
        return "done"
    if not is_begun:
        return "planned" if is_planned else "begun"
    if not heartbeat:
        return "starting" if is_planned else "begun"
    if str(heartbeat["state"]).startswith("stopped"):
        return "stopped"
    return "running" if now - float(heartbeat["time"]) < STALE_S else "silent"


def describe_run(url: str) -> str:
    """Return the status of a run as a few lines of text."""
    return describe(read_status(url), time.time())


def describe(status: Status, now: float) -> str:
    """Format a status as text."""
    lines = [f"{status.url}: {_sentence(status, now)}"]
    if status.num_units is not None:
        share = status.num_rows_done / max(1, status.num_rows or 0)
        lines.append(
            f"  done      {status.num_units_done:,} of {status.num_units:,} units,"
            f" {status.num_rows_done:,} of {status.num_rows:,} samples ({100 * share:.1f} %)"
        )
    if status.state == "running" and status.rows_per_s:
        left = status.seconds_left
        lines.append(
            f"  rate      {status.rows_per_s:,.1f} samples/s"
            + (f", {_duration(left)} left" if left is not None else "")
        )
    if status.state == "running" and status.remark:
        lines.append(f"  stages    {status.remark}")
    if status.trials:
        lines.append("  trials    " + ", ".join(f"{n:,} {s}" for s, n in status.trials.items()))
    rejected = status.counts.get("rejected", 0)
    if rejected:
        share = rejected / max(1, status.num_rows_done)
        lines.append(f"  rejects   {rejected:,} ({100 * share:.2f} % of what is done)")
        lines += [f"    {n:>9,}  {reason}" for reason, n in reject_reasons(status.counts)]
    return "\n".join(lines)


def _sentence(status: Status, now: float) -> str:
    heartbeat = status.heartbeat
    attempt = f"attempt {status.attempt}"
    if heartbeat:
        attempt += f" on {heartbeat['host']} (pid {heartbeat['pid']})"
    if status.state == "running":
        return f"running, {attempt}"
    if status.state == "silent":
        ago = _duration(now - float(heartbeat["time"]))
        return (
            f"no heartbeat for {ago} from {attempt}; if its job is gone, run the same command again"
            " to resume"
        )
    if status.state == "stopped":
        return f"{heartbeat['state']}, {attempt}; run the same command again to resume"
    return {
        "done": "done",
        "planned": "planned, not started",
        "begun": "begun" if status.trials else "begun, not planned yet",
        "starting": f"starting, {attempt}",
    }[status.state]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds / 3600:,.1f} h"
