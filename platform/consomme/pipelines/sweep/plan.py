"""Check a sweep before Ray starts: the recipes of its trials, what they read, and the metric.

Every value of the search space is checked in a trial that changes one key only; with a grid or
random draws every trial is checked. All problems are reported at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from consomme.base.errors import CheckpointError, DataError, RecipeError
from consomme.base.own_modules import module_inputs
from consomme.base.recipe import check_recipe, load_values, recipe_problems
from consomme.base.suggest import did_you_mean
from consomme.evaluate.benchmark import main_figure
from consomme.evaluate.benchmarks import BENCHMARKS, Benchmark, data_inputs
from consomme.evaluate.disjoint import NamedBenchmark, shared_problems
from consomme.evaluate.names import benchmark_name
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.sweep.evaluations import evaluations_of
from consomme.pipelines.train import run as train
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.sweep.choices import CHOICES, AdditionsChoice, Choice, ListChoice
from consomme.sweep.keys import label, merged, set_value
from consomme.sweep.registry import SEARCHERS
from consomme.sweep.searchers import Keys, Searcher
from consomme.sweep.stoppers import STOPPERS, Stopper

if TYPE_CHECKING:
    from consomme.pipelines.sweep.recipe import SweepRecipe

LOSS_METRIC = "train/last_loss_nats"
"""Metric of a sweep without benchmarks."""

EVAL_METRIC = "eval/best_loss_nats"
"""Metric of trainings that have `evaluation.data`."""

TRAIN_METRICS = (
    LOSS_METRIC,
    EVAL_METRIC,
    "train/first_loss_nats",
    "train/step_s",
    "train/peak_bytes",
)


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A checked sweep: its recipe with everything resolved."""

    recipe: SweepRecipe
    base: dict[str, Any]
    """The train recipe that trials modify, as plain values."""

    space: Mapping[str, Choice]
    searcher: Searcher
    stopper: Stopper
    metric: str
    """Metric that trials are compared by, as named in the manifest of a training or evaluation."""

    mode: Literal["max", "min"]
    figures: tuple[str, ...]
    """Main figure of each benchmark, as named in the manifest of an evaluation."""

    inputs: Mapping[str, str]
    """Fingerprint over the trainings that were checked, and so over what they read."""

    hashed_space: dict[str, dict[str, Any]]
    """The space for the fingerprint of the sweep: listed values are those of its trainings, because
    a value may name data, which are the same wherever they lie."""

    @classmethod
    def of(cls, recipe: SweepRecipe) -> SweepPlan:
        """Check a recipe.

        Raises:
            RecipeError: Lists all problems.
        """
        modules = module_inputs(recipe.modules)
        base = _base(recipe)
        space = {key: CHOICES.build(node, f"space.{key}") for key, node in recipe.space.items()}
        searcher = SEARCHERS.build(recipe.searcher, "searcher")
        stopper = STOPPERS.build(recipe.stopper, "stopper")
        checks = _TrialChecks(base, recipe.root)
        if not space:
            checks.problems["space: found no key, expected at least one to try values of"] = None
        trials = list(_samples(space))
        try:
            trials += searcher.list_trials(space) or []
        except RecipeError as error:
            checks.problems[str(error)] = None
        fingerprints = [checks.fingerprint(keys, stopper) for keys in trials]
        first = {key: choice.samples[0] for key, choice in space.items() if choice.samples}
        hashed_space = dict(recipe.space)
        for key, choice in space.items():
            if isinstance(choice, ListChoice | AdditionsChoice):
                marks = [checks.fingerprint({**first, key: v}, stopper) for v in choice.samples]
                values = [f"{number} {mark}" for number, mark in enumerate(marks)]
                listed = "values" if isinstance(choice, ListChoice) else "candidates"
                named = {k: v for k, v in recipe.space[key].items() if k != "always"}
                hashed_space[key] = {**named, listed: values}
        benchmarks = {
            benchmark_name(node): BENCHMARKS.build(node, f"benchmarks[{number}]")
            for number, node in enumerate(recipe.benchmarks)
        }
        if len(benchmarks) < len(recipe.benchmarks):
            names = ", ".join(benchmarks)
            checks.problems[f"benchmarks: two of them have the same name, of {names}"] = None
        metric = _metric(recipe, benchmarks, checks)
        if len({benchmark_name(guard.benchmark) for guard in recipe.guards}) < len(recipe.guards):
            checks.problems["guards: two of their benchmarks have the same name"] = None
        if not recipe.reports_what_it_chose_by:
            checks.problems |= dict.fromkeys(_shared(recipe, base, metric))
        if checks.problems:
            raise RecipeError.from_problems("sweep", list(checks.problems))
        every = base.get("checkpoint_every", TrainRecipe.checkpoint_every)
        digest = hashlib.sha256(f"{every} {fingerprints}".encode()).hexdigest()
        return cls(
            recipe=recipe,
            base=base,
            space=space,
            searcher=searcher,
            stopper=stopper,
            metric=metric,
            mode=recipe.mode or ("min" if metric.startswith(("train/", "eval/")) else "max"),
            figures=tuple(_figure(name, main_figure(one)) for name, one in benchmarks.items()),
            inputs={
                "trials": digest[:16],
                **modules,
                **data_inputs(recipe.benchmarks, "benchmarks"),
                **data_inputs([guard.benchmark for guard in recipe.guards], "guards"),
            },
            hashed_space=hashed_space,
        )

    @property
    def num_trials(self) -> int:
        """Total number of trials."""
        return self.searcher.count_trials(self.space)

    @property
    def samples(self) -> list[Keys]:
        """Trials that cover all values of all keys."""
        return list(_samples(self.space))

    def train_values(self, keys: Keys) -> dict[str, Any]:
        """Return the train recipe of a trial as plain values."""
        return trial_values(self.base, keys, self.recipe.root)[0]

    def train_recipe(self, keys: Keys) -> TrainRecipe:
        """Return the train recipe of a trial."""
        return check_recipe(TrainRecipe, self.train_values(keys), f"trial {label(keys)}")

    def fingerprint(self, keys: Keys) -> str:
        """Return the fingerprint of a trial's train run."""
        return train.open_run(self.train_recipe(keys)).fingerprint

    def evaluations_of(self, recipe: TrainRecipe, model: str) -> list[EvaluateRecipe]:
        """Return the evaluations of a trial's model; see the function of this name."""
        return evaluations_of(recipe, model, self.recipe.benchmarks, self.recipe.guards)


def trial_values(
    base: Mapping[str, Any], keys: Mapping[str, Any], root: str
) -> tuple[dict[str, Any], list[str]]:
    """Set a trial's keys in the train recipe.

    Returns:
        values: The recipe as plain values.
        problems: Why some of the keys could not be set.
    """
    values = merged(base, {"root": root})
    problems = [set_value(values, key, value) for key, value in keys.items()]
    return values, [problem for problem in problems if problem]


class _TrialChecks:
    """Checks trials and collects their problems, each problem once."""

    def __init__(self, base: Mapping[str, Any], root: str) -> None:
        self.base, self.root = base, root
        self.problems: dict[str, None] = {}
        self._fingerprints: dict[str, str | None] = {}

    def fingerprint(self, keys: Keys, stopper: Stopper) -> str | None:
        """Check one trial; return the fingerprint of its train run, None if it has problems."""
        name = label(keys)
        if name not in self._fingerprints:
            self._fingerprints[name] = self._check(keys, stopper, name)
        return self._fingerprints[name]

    def _check(self, keys: Keys, stopper: Stopper, name: str) -> str | None:
        values, problems = trial_values(self.base, keys, self.root)
        for key in keys:
            if key.partition(".")[0] in ("name", "root"):
                problems.append(f"{key}: does not change the training, so it cannot be swept")
        problems += recipe_problems(TrainRecipe, values)
        fingerprint = None
        if not problems:
            recipe = check_recipe(TrainRecipe, values)
            problems += stopper.problems(recipe.checkpoint_every, recipe.num_steps)
            try:
                fingerprint = train.open_run(recipe).fingerprint
            except (RecipeError, DataError, CheckpointError) as error:
                problems.append(str(error))
        for problem in problems:
            self._add(problem, keys, name)
        return None if problems else fingerprint

    def _add(self, problem: str, keys: Keys, name: str) -> None:
        """Prefix a problem with the key that it is about, or with the first trial that has it."""
        where = problem.partition(":")[0].replace("[", ".").replace("]", "")
        swept = [key for key in keys if _is_inside(where, key) or _is_inside(key, where)]
        if swept:
            self.problems[f"space.{problem}"] = None
        elif not any(known.endswith(f": {problem}") for known in self.problems):
            self.problems[f"trial {name}: {problem}"] = None


def _is_inside(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.")


def _base(recipe: SweepRecipe) -> dict[str, Any]:
    """Return the train recipe that trials modify: a file with changes, or plain keys."""
    changes = {key: value for key, value in recipe.train.items() if key != "recipe"}
    if recipe.modules:
        own = [*recipe.modules, *changes.get("modules", ())]
        changes["modules"] = list(dict.fromkeys(own))
    file = recipe.train.get("recipe")
    if file is None:
        return changes
    if not isinstance(file, str):
        raise RecipeError(f"train.recipe: found {file!r}, expected the path of a train recipe")
    return merged(load_values(file), changes)


def _samples(space: Mapping[str, Choice]) -> Iterator[Keys]:
    """Yield trials that cover all values: the first of each key, then one key changed at a time."""
    first = {key: choice.samples[0] for key, choice in space.items()}
    if first:
        yield first
    for key, choice in space.items():
        yield from ({**first, key: value} for value in choice.samples[1:])


def _metric(recipe: SweepRecipe, benchmarks: Mapping[str, Benchmark], checks: _TrialChecks) -> str:
    """Resolve the metric that trials are compared by to its name in the manifest."""
    wanted = recipe.metric
    if wanted is None:
        name = next(iter(benchmarks), None)
        return LOSS_METRIC if name is None else _figure(name, main_figure(benchmarks[name]))
    if wanted == EVAL_METRIC and not (checks.base.get("evaluation") or {}).get("data"):
        checks.problems[
            f"metric: found {wanted}, but the train recipe has no evaluation.data to measure it on"
        ] = None
    if wanted in TRAIN_METRICS:
        return wanted
    name, _, figure = wanted.partition("/")
    if name not in benchmarks:
        choices = [*benchmarks, *TRAIN_METRICS]
        hint = did_you_mean(wanted, choices) or f"; expected one of {', '.join(choices)}"
        checks.problems[f"metric: unknown {wanted!r}{hint}"] = None
        return LOSS_METRIC
    if not figure:
        return _figure(name, main_figure(benchmarks[name]))
    figures = _figures(benchmarks[name])
    if figure not in figures:
        hint = did_you_mean(figure, figures) or f"; expected one of {', '.join(figures)}"
        checks.problems[f"metric: {name} has no figure {figure!r}{hint}"] = None
    return _figure(name, figure)


def _shared(recipe: SweepRecipe, base: Mapping[str, Any], metric: str) -> Iterator[str]:
    """Yield where questions that report are among those that choose a trial or a checkpoint."""
    nodes = [
        NamedBenchmark(key=f"benchmarks[{number}]", node=node)
        for number, node in enumerate(recipe.benchmarks)
    ]
    compares = [one for one in nodes if metric.startswith(_figure(benchmark_name(one.node), ""))]
    reports = [one for one in nodes if one not in compares]
    if node := (base.get("evaluation") or {}).get("benchmark"):
        compares.append(NamedBenchmark(key="train.evaluation.benchmark", node=node))
    yield from shared_problems(compares, reports)


def _figure(name: str, figure: str) -> str:
    return f"evaluate/model/{name}/{figure}"


def _figures(benchmark: Benchmark) -> list[str]:
    """Return the names of a benchmark's figures, by measuring empty answers."""
    return list(benchmark.measure([""] * len(benchmark.items())))
