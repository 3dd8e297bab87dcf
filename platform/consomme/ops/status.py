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

from consomme.base.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, DataError
from consomme.base.process import is_running
from consomme.storage.ledger import attempts
from consomme.storage.ledger.commits import reject_reasons
from consomme.storage.ledger.run_folder import FAILURE, MANIFEST, PROGRESS, RECIPE, RunFolder
from consomme.storage.plan import Plan
from consomme.storage.stores.retries import was_away_within
from consomme.storage.stores.store import Store

STALE_S = 35.0
"""A driver that beats every ten seconds is silent if its heartbeat is older than this."""

OUTAGE_S = 60.0
"""After an outage that this process saw, a heartbeat may be old although its driver lives."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """Status of a run."""

    url: str
    state: str
    """`done`, `running`, `starting`, `stopped`, `failed`, `gone` (its process is), `silent` (old
    heartbeat), `planned` or `begun`."""

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

    failure: Mapping[str, Any] = field(default_factory=dict)
    """Why the last attempt ended, if it did not finish the run; see `failure.json`."""

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
    heartbeat, failure = (_read_json(store, path) for path in (PROGRESS, FAILURE))
    return Status(
        url=folder.url,
        state=_state(folder.is_done, bool(entry.number), plan is not None, heartbeat, failure, now),
        num_units=plan.num_units if plan else None,
        num_units_done=num_units,
        num_rows=plan.num_rows if plan else None,
        num_rows_done=counts["samples"] + counts["rejected"],
        counts=dict(sorted(counts.items())),
        attempt=entry.number - entry.is_closed,
        rows_per_s=float(heartbeat.get("rows_per_s", 0.0)),
        remark=str(heartbeat.get("stages", "")),
        heartbeat=heartbeat,
        failure=failure,
        trials=Counter(
            json.loads(store.read(info.path))["state"] for info in store.list("trials/")
        ),
    )


def _read_json(store: Store, path: str) -> dict[str, Any]:
    """Read a file that may not be there."""
    try:
        content: dict[str, Any] = json.loads(store.read(path))
    except FileNotFoundError:
        return {}
    return content


def _state(
    is_done: bool,
    is_begun: bool,
    is_planned: bool,
    heartbeat: Mapping[str, Any],
    failure: Mapping[str, Any],
    now: float,
) -> str:
    if is_done:
        return "done"
    # A driver that beats is newer than the failure: it deletes the record of the one before.
    if failure:
        is_stop = failure["code"] in (EXIT_INTERRUPTED, EXIT_TERMINATED)
        return "stopped" if is_stop else "failed"
    if not heartbeat:
        # Runs of earlier versions beat only while a stage runs.
        planned = "starting" if is_begun else "planned"
        return planned if is_planned else "begun"
    if str(heartbeat["state"]).startswith("stopped"):
        return "stopped"
    if is_running(int(heartbeat["pid"]), heartbeat) is False:
        return "gone"
    if now - float(heartbeat["time"]) >= STALE_S and not was_away_within(OUTAGE_S):
        return "silent"
    return "running" if is_begun else "starting"


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
    if status.failure:
        lines += _reason(status.failure)
    rejected = status.counts.get("rejected", 0)
    if rejected:
        share = rejected / max(1, status.num_rows_done)
        lines.append(f"  rejects   {rejected:,} ({100 * share:.2f} % of what is done)")
        lines += [f"    {n:>9,}  {reason}" for reason, n in reject_reasons(status.counts)]
    return "\n".join(lines)


def _reason(failure: Mapping[str, Any]) -> list[str]:
    """Say why the last attempt ended, and what to do."""
    of_unit = f", unit {failure['unit']}" if failure.get("unit") else ""
    first, *rest = str(failure["message"]).splitlines() or [""]
    return [
        f"  reason    {failure['class']} (exit code {failure['code']}{of_unit}): {first}",
        *(f"            {line}" for line in rest),
        f"  advice    {failure['advice']}",
    ]


def _sentence(status: Status, now: float) -> str:
    heartbeat = status.heartbeat
    attempt = f"attempt {status.attempt}" if status.attempt else "the driver"
    if heartbeat:
        attempt += f" on {heartbeat['host']} (pid {heartbeat['pid']})"
        ago = _duration(max(0.0, now - float(heartbeat["time"])))
    if status.state in ("running", "starting"):
        return f"{status.state}, {attempt}" + (f", last heartbeat {ago} ago" if heartbeat else "")
    if status.state == "silent":
        return (
            f"no heartbeat for {ago} from {attempt}; if its job is gone, run the same command again"
            " to resume"
        )
    if status.state == "gone":
        return (
            f"gone, {attempt} ended without a word, its last heartbeat was {ago} ago; run the same"
            " command again to resume"
        )
    if status.state == "failed":
        return f"failed at {status.failure['time']}, attempt {status.failure['attempt']}"
    if status.state == "stopped":
        state = heartbeat["state"] if heartbeat else f"stopped: {status.failure['class']}"
        return f"{state}, {attempt}; run the same command again to resume"
    return {
        "done": "done",
        "planned": "planned, not started",
        "begun": "begun" if status.trials else "begun, not planned yet",
    }[status.state]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds / 3600:,.1f} h"
