"""Run a chain of stages from one recipe, each once, and draw one report of them all.

One decision is made here: a stage names what it reads by the stage that made it (`@filter-low`,
`@data/data`), so the chain is checked whole, before the first stage starts.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest
from consomme.base.recipe import check_recipe, recipe_problems
from consomme.base.schema import runtime
from consomme.base.suggest import did_you_mean
from consomme.pipelines.runs import begin
from consomme.pipelines.session import shared_ray
from consomme.storage.files import join_url
from consomme.storage.ledger import load_manifest

logger = logging.getLogger(__name__)

STAGE_VERBS = (
    "prepare",
    "score",
    "tag",
    "filter",
    "dedup",
    "recaption",
    "train",
    "soup",
    "evaluate",
)


@dataclass(frozen=True, kw_only=True)
class LoopStage:
    """One stage of the chain."""

    name: str
    """Name of the stage and of its run; later stages refer to it as `@name`."""

    verb: str
    """What it does: a verb of the command line."""

    recipe: dict[str, Any] = field(default_factory=dict)
    """The verb's recipe without `name` and `root`; values such as `@name/data` mean run folders."""


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One line of the final table."""

    label: str
    """What the figure is."""

    value: str
    """Where it comes from: `stage:metric`, several of them divided by ` | `."""

    note: str = ""
    """How to read it."""


@dataclass(frozen=True, kw_only=True)
class LoopRecipe:
    """A chain of stages."""

    name: str
    """Name of the loop's own run."""

    stages: tuple[LoopStage, ...]
    """In the order they run."""

    root: str = runtime("runs")
    """Where all run folders are made: a local path or a URL."""

    summary: tuple[SummaryRow, ...] = ()
    """The final table, made from the stages' metrics."""

    story: str = ""
    """What the report says first."""


def run(recipe: LoopRecipe) -> Manifest:
    """Run every stage that is not done, then write the report."""
    from consomme.pipelines.report import loop_report

    _check(recipe)
    urls: dict[str, str] = {}
    with shared_ray():
        for number, stage in enumerate(recipe.stages, 1):
            module, schema = _verb(stage.verb)
            values = _resolve(stage.recipe, urls)
            node = check_recipe(
                schema, {**values, "name": stage.name, "root": recipe.root}, f"stage {stage.name}"
            )
            logger.info("stage %d of %d: %s %s", number, len(recipe.stages), stage.verb, stage.name)
            urls[stage.name] = module.run(node).url
    attempt = begin("loop", recipe, parents=list(urls.values()))
    if attempt.folder.is_done:
        return attempt.folder.manifest()
    manifests = {name: load_manifest(url) for name, url in urls.items()}
    table = [_summary_row(row, manifests) for row in recipe.summary]
    page = loop_report(recipe, manifests, table)
    attempt.folder.store.write("report.html", page.encode())
    attempt.folder.store.write("summary.json", json.dumps(table, indent=1).encode())
    return attempt.finish(
        counts={"stages": len(urls)},
        decisions={
            "summary": table,
            "seconds": {n: m.seconds for n, m in manifests.items()},
            "table": {
                "title": f"{recipe.name}: what came out",
                "columns": ["figure", "value"],
                "rows": [[r["label"], " | ".join(f"{v:.3g}" for v in r["values"])] for r in table],
            },
        },
        outputs={"report": "report.html", "summary": "summary.json"},
    )


def _verb(name: str) -> tuple[Any, type[Any]]:
    module = importlib.import_module(f"consomme.pipelines.{name}")
    return module, getattr(module, f"{name.capitalize()}Recipe")


def _check(recipe: LoopRecipe) -> None:
    """Find everything that is wrong with the chain before any of it runs."""
    problems: list[str] = []
    seen: list[str] = []
    for number, stage in enumerate(recipe.stages):
        where = f"stages[{number}] ({stage.name})"
        if stage.name in seen:
            problems.append(f"{where}: the name is taken by an earlier stage")
        if stage.verb not in STAGE_VERBS:
            hint = did_you_mean(stage.verb, STAGE_VERBS)
            problems.append(f"{where}: unknown verb {stage.verb!r}{hint}")
            seen.append(stage.name)
            continue
        for target in _references(stage.recipe):
            if target not in seen:
                hint = did_you_mean(target, seen)
                problems.append(f"{where}: @{target} is no earlier stage{hint}")
        _, schema = _verb(stage.verb)
        values = {**stage.recipe, "name": stage.name, "root": recipe.root}
        problems += [
            problem.replace("recipe", where, 1)
            if problem.startswith("recipe")
            else f"{where}: {problem}"
            for problem in recipe_problems(schema, values)
        ]
        seen.append(stage.name)
    for number, row in enumerate(recipe.summary):
        for source in row.value.split(" | "):
            if source.split(":")[0] not in seen:
                hint = did_you_mean(source.split(":")[0], seen)
                problems.append(f"summary[{number}]: {source!r} names no stage{hint}")
    if problems:
        raise RecipeError.from_problems("loop", problems)


def _references(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value[1:].split("/")[0]] if value.startswith("@") else []
    if isinstance(value, Mapping):
        return [name for item in value.values() for name in _references(item)]
    if isinstance(value, list | tuple):
        return [name for item in value for name in _references(item)]
    return []


def _resolve(value: Any, urls: Mapping[str, str]) -> Any:
    if isinstance(value, str) and value.startswith("@"):
        name, _, rest = value[1:].partition("/")
        return join_url(urls[name], rest) if rest else urls[name]
    if isinstance(value, Mapping):
        return {key: _resolve(item, urls) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_resolve(item, urls) for item in value]
    return value


def _summary_row(row: SummaryRow, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    values = []
    for source in row.value.split(" | "):
        stage, _, metric = source.partition(":")
        metrics = manifests[stage].metrics
        if metric not in metrics:
            hint = did_you_mean(metric, list(metrics))
            raise RecipeError(
                f"summary {row.label!r}: stage {stage} has no metric {metric!r}{hint}"
            )
        values.append(metrics[metric])
    return {"label": row.label, "values": values, "note": row.note}
