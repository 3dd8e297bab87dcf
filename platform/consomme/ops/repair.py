"""Repair a run: say what can be done about each thing that is wrong, and do it.

A repair never computes anything. It takes away what is damaged, so that the next run of the recipe
does that part again, with the same bytes; the rest of the run stays. What the next run would not
make again is left as it is, with the command that would. So is a run whose recipe, run again, would
not come back to its folder: its inputs have changed, or an earlier version made it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from consomme.base.errors import ConsommeError
from consomme.base.manifest import Manifest
from consomme.ops.integrity import VerifyReport
from consomme.soup.opening import ingredient_hash
from consomme.storage.identity import PICTURES, data_fingerprints, find_data
from consomme.storage.ledger import attempts
from consomme.storage.ledger.run_folder import MANIFEST, RECIPE, RunFolder, load_manifest
from consomme.storage.ledger.sums import REPORT
from consomme.storage.model_folder import model_hash
from consomme.storage.patterns import LIST_SUFFIXES, SHARD_SUFFIXES
from consomme.storage.pins import pins_kept

_MADE_AGAIN = {
    "prepare": ("data/",),
    "filter": ("view.parquet", "README.md"),
    "download": ("README.md",),
    "dedup": ("view.parquet", "groups.parquet"),
    "evaluate": ("answers.parquet", "examples.parquet", "export/", "judge/"),
    "soup": ("",),
    "prune": ("",),
    "assemble": ("",),
    "loop": ("summary.json", REPORT),
    "sweep": ("trials.json", REPORT, "attempts/"),
    "train": (
        *("model/", "adapter/", "metrics.jsonl", "plan.json", "trainable.json", "attempts/"),
        "selfcheck.json",
        "checkpoints/.validate_storage_marker",
    ),
}
"""Beginnings of the paths of files that a run of the recipe makes again, if they are missing; by
verb. Files of units and of the ledger are not among them."""

_OF_CHECKPOINTS = ("model/", "adapter/")
"""What a training makes again from its checkpoints."""

_MEASURED = ("gauges.json", "selfcheck/")
"""Beginnings of the paths of measurements of a run that nothing is computed from."""

_BY_A_UNIT = ("selfcheck.json", "selfcheck/")
"""Beginnings of the paths of what the next worker writes that opens the model."""

_MODEL_KEYS = (
    *("model", "tuned", "base", "revert_to"),
    *("vision_encoder", "ocr_encoder", "language_model", "tokenizer"),
)
"""Keys of recipes that name a model, known by its content."""

_SAME_TRIALS = ("grid", "random")
"""Searchers that propose the same trials again, whatever came of the others."""


@dataclass(kw_only=True)
class RepairPlan:
    """What is done about one damaged run."""

    folder: RunFolder
    manifest: Manifest | None
    units: set[str] = field(default_factory=set)
    """Units that the next run does again."""

    by_a_unit: list[str] = field(default_factory=list)
    """Files that the next run writes while it does any unit again."""

    parts: list[str] = field(default_factory=list)
    """Damaged files of commit records."""

    entry: str = ""
    """The last entry of the ledger, if it is damaged."""

    again: list[str] = field(default_factory=list)
    """Files that the next run writes again."""

    foreign: list[str] = field(default_factory=list)
    """Files that the run did not write."""

    measured: list[str] = field(default_factory=list)
    """Files that nothing can make again, and nothing needs."""

    has_wrong_manifest: bool = False
    lost: list[str] = field(default_factory=list)
    """What cannot be repaired, each with the reason or the command that would."""

    @property
    def reopens(self) -> bool:
        """Whether the run is not done any more after the repair, until its recipe is run again."""
        anew = (*self.units, *self.by_a_unit, *self.parts, self.entry, *self.again, *self.measured)
        return self.has_wrong_manifest or any(anew)

    def text(self) -> str:
        """Say what is done, in the order in which it is done."""
        lines: list[str] = []
        if self.units:
            lines.append(f"drop the records of {len(self.units):,} units, to redo them")
        if self.parts:
            lines.append(
                f"drop {_names(self.parts)} and with it the records of its units, to redo them"
            )
        if self.entry:
            lines.append(f"write a new entry of the ledger instead of {self.entry}")
        if self.by_a_unit:
            lines.append(
                f"delete {_names(self.by_a_unit)}, and redo one unit, which makes it again"
            )
        if self.again:
            lines.append(f"delete {_names(self.again)}, to be made again")
        if self.measured:
            lines.append(
                f"delete {_names(self.measured)}: measurements of the run, which nothing can make"
                " again and no other run reads"
            )
        if self.foreign:
            lines.append(f"delete {_names(self.foreign)}, which this run did not write")
        if self.reopens:
            verb = self.manifest.verb if self.manifest else "VERB"
            lines.append(
                f"delete {MANIFEST}, so that the run is open; then run its recipe again: consomme"
                f" {verb} RECIPE"
            )
            if self.units:
                lines.append(f"The run is reopened to redo {len(self.units):,} units")
        lines += [f"cannot be repaired here: {text}" for text in self.lost]
        return f"{self.folder.url}:" + "".join(f"\n  - {line}" for line in lines)

    def do(self) -> None:
        """Do it. Interrupted, it leaves a run that is open, and can be repaired again."""
        store = self.folder.store
        if self.reopens:
            store.delete(MANIFEST)
        if self.parts or self.entry:
            attempts.reopen_from(store, without=self.parts, damaged=self.units, entry=self.entry)
        elif self.units or self.by_a_unit:
            units = set(self.units)
            if self.by_a_unit and not units:
                units = {next(self.folder.iter_commits()).unit_id}
            attempts.reopen(store, units)
        store.delete_many([*self.by_a_unit, *self.again, *self.measured, *self.foreign])


def plan_repair(report: VerifyReport) -> RepairPlan:
    """Find out what can be done about a damaged run; changes nothing."""
    plan = RepairPlan(folder=RunFolder.at(report.url), manifest=report.manifest)
    damaged = dict.fromkeys(p.path for p in report.problems if p.path and not p.is_foreign)
    # A manifest that was changed may name files that never were, and leave out others.
    is_unsure = MANIFEST in damaged
    if is_unsure:
        there = {file.path for file in plan.folder.store.list()}
        damaged = {path: None for path in damaged if path in there}
    else:
        plan.foreign = [p.path for p in report.problems if p.is_foreign]
    is_without_checkpoints = any(
        path.startswith("checkpoints/") and not _is_made_again("train", path) for path in damaged
    )
    for path in damaged:
        if path in (MANIFEST, "progress.json", "failure.json"):
            continue
        if is_without_checkpoints and path.startswith(_OF_CHECKPOINTS):
            plan.lost.append(f"{path}: its checkpoints are damaged too. {_anew(report)}")
        else:
            _plan_file(plan, report, path)
    for problem in report.problems:
        if problem.is_elsewhere:
            plan.lost.append(f"{problem.text}. Verify or make that run first")
        elif problem.unit_id:
            plan.units.add(problem.unit_id)
        elif not problem.path or problem.path == MANIFEST:
            plan.has_wrong_manifest = True
        elif problem.path in ("progress.json", "failure.json"):
            plan.foreign.append(problem.path)
    if plan.reopens and not is_unsure and (reason := _stays_open(report.manifest)):
        lost = [f"{len(plan.units):,} units"] if plan.units else []
        lost += [*plan.parts, *filter(None, [plan.entry]), *plan.by_a_unit, *plan.again]
        lost += [*plan.measured, *([MANIFEST] if plan.has_wrong_manifest else [])]
        plan.lost.append(f"{_names(lost)}: {reason}")
        plan = RepairPlan(
            folder=plan.folder, manifest=plan.manifest, foreign=plan.foreign, lost=plan.lost
        )
    return plan


def _plan_file(plan: RepairPlan, report: VerifyReport, path: str) -> None:
    """Add what is done about one file."""
    verb = report.manifest.verb if report.manifest else ""
    has_units = report.num_units > 0 or (
        report.manifest is not None and report.manifest.ledger is not None
    )
    if has_units and path.startswith(attempts.OUTPUTS):
        return  # By its unit.
    if has_units and path.startswith("plan/"):
        # Any part of the plan follows from the shards, or the view.
        rest = [file.path for file in plan.folder.store.list("plan/")]
        plan.again += [one for one in dict.fromkeys([path, *rest]) if one not in plan.again]
    elif has_units and path.startswith("commits/"):
        plan.parts.append(path)
    elif has_units and path.startswith("attempts/"):
        entries = (
            [name for name in report.manifest.files if name.startswith("attempts/")]
            if report.manifest
            else []
        )
        if entries and path == max(entries):
            plan.entry = path
        else:
            plan.again.append(path)
    elif path == RECIPE or _is_made_again(verb, path):
        plan.again.append(path)
    elif path == REPORT:
        plan.foreign.append(path)
        plan.lost.append(f"{path}, drawn again by: consomme report {report.url}")
    elif path.startswith(_BY_A_UNIT) and has_units:
        plan.by_a_unit.append(path)
    elif path.startswith(_MEASURED):
        plan.measured.append(path)
    elif verb == "sweep" and path.startswith("trials/") and _proposes_again(report.manifest):
        plan.again.append(path)
    else:
        plan.lost.append(f"{path}: a run of the recipe does not make it again. {_anew(report)}")


def _is_made_again(verb: str, path: str) -> bool:
    return verb in _MADE_AGAIN and path.startswith(_MADE_AGAIN[verb])


def _proposes_again(manifest: Manifest | None) -> bool:
    searcher = manifest.recipe.get("searcher", {}) if manifest else {}
    return searcher.get("name", "grid") in _SAME_TRIALS


def _anew(report: VerifyReport) -> str:
    """Name the commands that make a whole run anew."""
    url, verb = report.url, report.manifest.verb if report.manifest else "VERB"
    copy, remove = "cp", "rm -r"
    if url.startswith("s3://"):
        copy, remove = "aws s3 cp", "aws s3 rm --recursive"
    elif url.startswith("gs://"):
        copy, remove = "gcloud storage cp", "gcloud storage rm -r"
    return (
        f"To make the whole run anew: {copy} {url}/{RECIPE} again.yaml && {remove} {url} &&"
        f" consomme {verb} again.yaml"
    )


def _stays_open(manifest: Manifest | None) -> str:
    """Say why a run of the recipe would not come back to this folder; empty if it would."""
    if manifest is None:
        return ""
    if not manifest.finished:
        return (
            "this run was made by an earlier version, and its recipe, run again, makes a new run in"
            f" another folder: consomme {manifest.verb} {manifest.url}/{RECIPE}"
        )
    changed = list(_changed_inputs(manifest))
    if not changed:
        return ""
    return (
        f"{'; '.join(changed)}. Its recipe, run again, makes a new run in another folder: consomme"
        f" {manifest.verb} {manifest.url}/{RECIPE}"
    )


def _changed_inputs(manifest: Manifest) -> Iterator[str]:
    """Say which inputs are not what they were, as far as the recipe names them."""
    for key, before in manifest.inputs.items():
        try:
            # A repaired run goes on with the commits that it began with.
            with pins_kept(manifest.pins):
                now = _input_now(manifest, key)
        except (ConsommeError, OSError) as error:
            yield f"{key} cannot be read ({error})"
            continue
        if now is not None and now != before:
            yield f"{key} has changed"


def _input_now(manifest: Manifest, key: str) -> str | None:
    """Fingerprint an input anew; None if it is no place that the recipe names."""
    recipe, root = manifest.recipe, str(manifest.recipe.get("root", ""))
    place = key.removesuffix(PICTURES)
    if place == "data":
        shards = find_data(
            recipe.get("inputs") or [],
            recipe.get("source", "data"),
            recipe.get("sources") or {},
            LIST_SUFFIXES if manifest.verb == "download" else SHARD_SUFFIXES,
        )
        return data_fingerprints(shards, root, image_root=_image_root(recipe)).get(key)
    value = _value_at(recipe, place)
    if isinstance(value, dict) and value.get("inputs"):
        shards = find_data(value["inputs"])
        return data_fingerprints(shards, root, place, _image_root(value)).get(key)
    if not isinstance(value, str):
        return None
    last = re.split(r"[.\]]", key)[-1]
    if key.startswith(("models.", "ingredients.")) or last in _MODEL_KEYS:
        engine = recipe.get("engine")
        if isinstance(engine, dict) and engine.get("url"):
            return None  # The model's name on a server.
        if key.startswith("ingredients."):
            label = key.partition(".")[2]
            found = ingredient_hash(value, recipe.get("base"), label)
        else:
            found = model_hash(value, generates=manifest.verb != "train")
        before = manifest.inputs[key]
        return before if before.startswith(f"{found}+") else found
    return load_manifest(value).identity


def _image_root(source: Any) -> str | None:
    """Return where images lie, by a recipe or one of its sources."""
    root: str | None = (source.get("reading") or {}).get("image_root")
    return root


def _value_at(recipe: Any, key: str) -> Any:
    """Return what a recipe holds under a key such as `data[0].view`; None if it holds nothing."""
    value: Any = recipe
    first, _, label = key.partition(".")
    # Labels that people chose may have dots.
    if isinstance(named := recipe.get(first), Mapping) and label in named:
        return named[label]
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(value, list | tuple):
            value = value[int(part)] if part.isdigit() and int(part) < len(value) else None
        else:
            value = value.get(part) if hasattr(value, "get") else None
    return value


def _names(paths: list[str]) -> str:
    shown = ", ".join(paths[:5])
    return shown + (f" and {len(paths) - 5:,} more" if len(paths) > 5 else "")
