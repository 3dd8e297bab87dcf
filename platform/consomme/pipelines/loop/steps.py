"""The steps of a loop: stages before the rounds, the rounds, stages after; and their references.

A stage refers to what it reads by the stage that makes it. So the whole chain, with every round, is
known and checked before the first stage starts. Only the best round is unknown until the end, so
references to it are resolved then.

    @name             a stage before the rounds, or one of the same round
    @previous:name    that stage of the round before; in the first round what `rounds.initial` says
    @best:name        that stage of the best round, for stages after the rounds
    @last:name        that stage of the last round
    {round}           the round's number
    {other}           what the recipe has under `values.other`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consomme.base.recipe import check_recipe, recipe_problems
from consomme.base.secrets import replaced
from consomme.base.suggest import did_you_mean
from consomme.pipelines.loop.chain import LoopChain, LoopRounds, LoopStage, SummaryRow
from consomme.pipelines.loop.choice import CHOICE, round_stage, start_stage
from consomme.pipelines.verbs import recipe_class
from consomme.storage.stores.store import join_url

STAGE_VERBS = (
    "assemble",
    "download",
    "prepare",
    "score",
    "tag",
    "filter",
    "dedup",
    "recaption",
    "train",
    "sweep",
    "soup",
    "prune",
    "evaluate",
)


@dataclass(frozen=True, kw_only=True)
class LoopStep:
    """One run of a stage: its name, recipe and resolved references."""

    name: str
    """Name of the run."""

    verb: str
    recipe: Mapping[str, Any]
    names: Mapping[str, str]
    """Run name of each reference that the recipe may use."""

    where: str
    """Key path in the loop's recipe, for messages."""


def first_steps(recipe: LoopChain) -> list[LoopStep]:
    """Return the stages before the rounds."""
    names = {stage.name: stage.name for stage in recipe.stages}
    steps = _steps("stages", recipe.stages, names, recipe.values, recipe.modules)
    stop = recipe.rounds.early_stop if recipe.rounds else None
    if stop is not None and (added := start_stage(stop)):
        steps += _added(added, added.name, names, recipe.values, recipe.modules)
    return steps


def round_steps(recipe: LoopChain, number: int) -> list[LoopStep]:
    """Return the stages of one round, counted from 1."""
    rounds = recipe.rounds
    assert rounds is not None
    names = {stage.name: stage.name for stage in recipe.stages}
    names |= {stage.name: f"{stage.name}-{number}" for stage in rounds.stages}
    if number == 1:
        names |= {f"previous:{name}": target for name, target in rounds.initial.items()}
    else:
        names |= {f"previous:{s.name}": f"{s.name}-{number - 1}" for s in rounds.stages}
    values = {**recipe.values, "round": number}
    steps = _steps("rounds.stages", rounds.stages, names, values, recipe.modules)
    if rounds.early_stop and (added := round_stage(rounds.early_stop)):
        steps += _added(added, f"{CHOICE}-{number}", names, values, recipe.modules)
    return steps


def _added(
    stage: LoopStage,
    name: str,
    names: Mapping[str, str],
    values: Mapping[str, Any],
    modules: Sequence[str],
) -> list[LoopStep]:
    """Return the step of a stage that `early_stop` adds."""
    return [
        LoopStep(
            name=name,
            verb=stage.verb,
            recipe=_with_modules(stage.verb, _filled(stage.recipe, values), modules),
            names=names,
            where=f"rounds.early_stop ({name})",
        )
    ]


def last_steps(recipe: LoopChain, best: int, last: int) -> list[LoopStep]:
    """Return the stages after the rounds, given the best and the last round."""
    names = {stage.name: stage.name for stage in (*recipe.stages, *recipe.after)}
    for stage in recipe.rounds.stages if recipe.rounds else ():
        names[f"best:{stage.name}"] = f"{stage.name}-{best}" if best else _start(recipe, stage)
        names[f"last:{stage.name}"] = f"{stage.name}-{last}"
    return _steps("after", recipe.after, names, recipe.values, recipe.modules)


def _steps(
    key: str,
    stages: Sequence[LoopStage],
    names: Mapping[str, str],
    values: Mapping[str, Any],
    modules: Sequence[str],
) -> list[LoopStep]:
    return [
        LoopStep(
            name=names[stage.name],
            verb=stage.verb,
            recipe=_with_modules(stage.verb, _filled(stage.recipe, values), modules),
            names=names,
            where=f"{key}[{number}] ({stage.name})",
        )
        for number, stage in enumerate(stages)
    ]


_ASKING_VERBS = ("evaluate", "soup", "sweep", "train", "prune")
"""Verbs whose recipes name benchmarks and modules."""


def _with_modules(
    verb: str, recipe: Mapping[str, Any], modules: Sequence[str]
) -> Mapping[str, Any]:
    if not modules or verb not in _ASKING_VERBS:
        return recipe
    return {**recipe, "modules": list(dict.fromkeys([*modules, *recipe.get("modules", ())]))}


def _start(recipe: LoopChain, stage: LoopStage) -> str:
    """Return the run that replaces a stage if no round beat the start."""
    assert recipe.rounds is not None
    return recipe.rounds.initial.get(stage.name, f"{stage.name}-1")


def all_steps(recipe: LoopChain) -> list[LoopStep]:
    """Return all possible steps in order, as if the last possible round were the best."""
    steps = first_steps(recipe)
    most = recipe.rounds.max_rounds if recipe.rounds else 0
    for number in range(1, most + 1):
        steps += round_steps(recipe, number)
    return steps + last_steps(recipe, most, most)


def values_of(step: LoopStep, urls: Mapping[str, str], root: str) -> dict[str, Any]:
    """Return a step's recipe with references replaced by run folders."""
    found = {name: urls[run] for name, run in step.names.items() if run in urls}
    return {**_resolve(step.recipe, found), "name": step.name, "root": root}


def step_recipe(step: LoopStep, root: str) -> Any:
    """Return the recipe of a step before it is known where the stages that it reads lie."""
    values = {**step.recipe, "name": step.name, "root": root}
    return check_recipe(recipe_class(step.verb), values, step.where)


def step_problems(recipe: LoopChain) -> Iterator[str]:
    """Yield the problems of stages, their recipes and references, and of the summary."""
    seen: list[str] = []
    for step in all_steps(recipe):
        where = step.where
        if step.name in seen:
            yield f"{where}: the name is taken by an earlier stage"
        if step.verb not in STAGE_VERBS:
            yield f"{where}: unknown verb {step.verb!r}{did_you_mean(step.verb, STAGE_VERBS)}"
            seen.append(step.name)
            continue
        known = [name for name, run in step.names.items() if run in seen]
        for target in references(step.recipe):
            if target not in known:
                hint = did_you_mean(target, known)
                if not hint and target.startswith("previous:"):
                    hint = "; say what it is in the first round, under rounds.initial"
                yield f"{where}: @{target} is no earlier stage{hint}"
        if "storage" in step.recipe:
            yield f"{where}: storage: found it in a stage; set it for the whole loop instead"
        values = {**step.recipe, "name": step.name, "root": recipe.root}
        for problem in recipe_problems(recipe_class(step.verb), values):
            yield (
                problem.replace("recipe", where, 1)
                if problem.startswith("recipe")
                else f"{where}: {problem}"
            )
        seen.append(step.name)
    yield from _row_problems("summary", recipe.summary, seen)


def round_problems(recipe: LoopChain, rounds: LoopRounds) -> Iterator[str]:
    """Yield the problems of references in `rounds` outside its stages."""
    before = [stage.name for stage in recipe.stages]
    inside = [stage.name for stage in rounds.stages]
    for name, target in rounds.initial.items():
        if name not in inside:
            yield f"rounds.initial: {name!r} is no stage of the rounds{did_you_mean(name, inside)}"
        if target not in before:
            yield f"rounds.initial.{name}: no stage {target!r}{did_you_mean(target, before)}"
    if rounds.early_stop and rounds.early_stop.metric:
        yield from _stage_problems("rounds.early_stop.metric", rounds.early_stop.metric, inside)
        if rounds.early_stop.start:
            yield from _stage_problems("rounds.early_stop.start", rounds.early_stop.start, before)
    for number, row in enumerate(rounds.table):
        start, arrow, value = row.value.rpartition(" > ")
        where = f"rounds.table[{number}]"
        yield from _stage_problems(where, value, inside)
        if arrow:
            yield from _stage_problems(where, start, before)


def _row_problems(key: str, rows: Sequence[SummaryRow], seen: Sequence[str]) -> Iterator[str]:
    for number, row in enumerate(rows):
        for source in row.value.split(" | "):
            yield from _stage_problems(f"{key}[{number}]", source, seen)


def _stage_problems(where: str, source: str, known: Iterable[str]) -> Iterator[str]:
    name = source.partition(":")[0]
    known = list(known)
    if name not in known:
        yield f"{where}: {source!r} names no stage{did_you_mean(name, known)}"


def references(value: Any) -> list[str]:
    """List the references in a recipe."""
    if isinstance(value, str):
        return [value[1:].split("/")[0]] if value.startswith("@") else []
    if isinstance(value, Mapping):
        return [name for item in value.values() for name in references(item)]
    if isinstance(value, list | tuple):
        return [name for item in value for name in references(item)]
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


def _filled(value: Any, known: Mapping[str, Any]) -> Any:
    """Replace `{name}` by its value; other braces stay."""
    if isinstance(value, str):
        if value.startswith("{") and value.endswith("}") and value[1:-1] in known:
            return known[value[1:-1]]
        for name, own in known.items():
            value = replaced(value, "{" + name + "}", own)
        return value
    if isinstance(value, Mapping):
        return {key: _filled(item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, known) for item in value]
    return value
