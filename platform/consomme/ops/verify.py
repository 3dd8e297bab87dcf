"""Verify a run, and repair it, for the command line."""

from __future__ import annotations

from consomme.base.errors import DataError
from consomme.ops.integrity import VerifyProblem, VerifyReport, verify
from consomme.ops.repair import plan_repair

__all__ = ["VerifyProblem", "VerifyReport", "verify", "verify_run"]

_MAX_LISTED = 20


def verify_run(
    url: str, *, checksums: bool = True, repair: bool = False, plan: bool = False
) -> str:
    """Verify a run and return the result as text.

    Args:
        url: The run folder.
        checksums: Whether to read and compare every file.
        repair: Whether to do what can be done about what is wrong.
        plan: Whether only to say what a repair would do.

    Raises:
        DataError: The run has problems that are not repaired; the message lists them.
    """
    result = verify(url, checksums=checksums)
    damaged = [one for one in result.everything if one.problems]
    if not damaged:
        return "\n".join(_sound(one, checksums) for one in result.everything)
    text = "\n".join(_listed(one) for one in damaged)
    steps = [plan_repair(one) for one in damaged]
    shown = "\n".join(step.text() for step in steps)
    if plan:
        return f"{text}\nWhat repair=true would do:\n{shown}"
    if not repair:
        raise DataError(f"{text}\nWhat can be done:\n{shown}")
    for step in steps:
        step.do()
    done = f"{text}\nRepair:\n{shown}"
    if any(step.lost for step in steps):
        raise DataError(done)
    return done


def _sound(result: VerifyReport, checksums: bool) -> str:
    how = "sizes and checksums" if checksums else "sizes"
    number = len(result.unproved)
    proved = result.num_others - number
    counts = []
    if result.num_units:
        counts.append(f"{result.num_units:,} units, {result.num_files:,} files")
        counts += [f"{proved:,} files beside them"] if proved else []
    elif proved:
        counts.append(f"{proved:,} files")
    text = f"{result.url}: "
    if counts:
        text += f"complete and uncorrupted: {', '.join(counts)}, {result.num_bytes:,} bytes"
        text += f" ({how} checked)"
    if number:
        shown = ", ".join(result.unproved[:3]) + (", …" if number > 3 else "")
        text += (
            f"{chr(10) + '  ' if counts else ''}{number:,} files were written by an earlier"
            " version, which recorded no checksum of them; they are there and of the right form, no"
            f" more is known: {shown}"
        )
    return text


def _listed(result: VerifyReport) -> str:
    lines = [
        f"\n  - {problem.unit_id + ': ' if problem.unit_id else ''}{problem.text}"
        for problem in result.problems[:_MAX_LISTED]
    ]
    more = len(result.problems) - len(lines)
    number = len(result.problems)
    text = f"{result.url}: {number:,} problem{'s' * (number > 1)}" + "".join(lines)
    return text + (f"\n  and {more:,} more" if more > 0 else "")
