"""What a sweep will do, checked before Ray starts: its trials' recipes, and what they read.

One decision is made here: a sweep is right if every trial is that changes one key only, and with a
grid or random draws every trial there is; all of it is said at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from consomme.base.errors import CheckpointError, DataError, RecipeError
from consomme.base.recipe import check_recipe, load_values, recipe_problems
from consomme.base.suggest import did_you_mean
from consomme.evaluate.benchmarks import BENCHMARKS, Benchmark
from consomme.execution.runs import RunNotDoneError, looking
from consomme.pipelines.evaluate.recipe import EvaluateRecipe, benchmark_name
from consomme.pipelines.train import run as train
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.sweep.choices import CHOICES, Choice
from consomme.sweep.keys import label, merged, put
from consomme.sweep.searchers import SEARCHERS, Keys, Searcher
from consomme.sweep.stoppers import STOPPERS, Stopper

if TYPE_CHECKING:
    from consomme.pipelines.sweep.recipe import SweepRecipe

LOSS = "train/last_loss_nats"
TRAIN_METRICS = (LOSS, "train/first_loss_nats", "train/step_s", "train/peak_bytes")


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep whose recipe was checked."""

    recipe: SweepRecipe
    base: dict[str, Any]
    """The train recipe that trials change, as plain values."""

    space: Mapping[str, Choice]
    searcher: Searcher
    stopper: Stopper
    metric: str
    """A metric of a trial's training or evaluation, by its name in the manifest."""

    mode: Literal["max", "min"]
    figures: tuple[str, ...]
    """Main figures of the benchmarks, named as in the manifest."""

    inputs: Mapping[str, str]
    """Fingerprint of what the trials read."""

    @classmethod
    def of(cls, recipe: SweepRecipe) -> SweepPlan:
        """Check a recipe.

        Raises:
            RecipeError: Something is wrong; all of it at once.
        """
        base = _base(recipe)
        space = {key: CHOICES.build(node, f"space.{key}") for key, node in recipe.space.items()}
        searcher = SEARCHERS.build(recipe.searcher, "searcher")
        stopper = STOPPERS.build(recipe.stopper, "stopper")
        checks = _Checks(base, recipe.root)
        if not space:
            checks.problems["space: found no key, expected at least one to try values of"] = None
        trials = list(_samples(space))
        try:
            trials += searcher.known(space) or []
        except RecipeError as error:
            checks.problems[str(error)] = None
        marks = [mark for keys in trials if (mark := checks.look(keys, stopper))]
        named = {
            benchmark_name(node): BENCHMARKS.build(node, f"benchmarks[{number}]")
            for number, node in enumerate(recipe.benchmarks)
        }
        if len(named) < len(recipe.benchmarks):
            checks.problems[f"benchmarks: two of them have one name, of {', '.join(named)}"] = None
        metric = _metric(recipe, named, checks)
        if checks.problems:
            raise RecipeError.from_problems("sweep", list(checks.problems))
        digest = hashlib.sha256("".join(sorted(set(marks))).encode()).hexdigest()
        return cls(
            recipe=recipe,
            base=base,
            space=space,
            searcher=searcher,
            stopper=stopper,
            metric=metric,
            mode=recipe.mode or ("min" if metric.startswith("train/") else "max"),
            figures=tuple(_figure(name, _first(one)) for name, one in named.items()),
            inputs={"trials": digest[:16]},
        )

    @property
    def num_trials(self) -> int:
        """How many there will be."""
        known = self.searcher.known(self.space)
        return self.recipe.searcher["num_trials"] if known is None else len(known)

    def train_values(self, keys: Keys) -> dict[str, Any]:
        """The train recipe of a trial as plain values."""
        return trial_values(self.base, keys, self.recipe.root)[0]

    def train_recipe(self, keys: Keys) -> TrainRecipe:
        """The train recipe of a trial."""
        return check_recipe(TrainRecipe, self.train_values(keys), f"trial {label(keys)}")

    def mark(self, keys: Keys) -> str:
        """Fingerprint of the training of a trial."""
        return _fingerprint(self.train_recipe(keys))

    def evaluate_recipe(self, name: str, model: str) -> EvaluateRecipe | None:
        """How the model of a trial is measured; None if there is nothing to measure."""
        return judge_of(name, model, self.recipe.benchmarks, self.recipe.root)


def judge_of(name: str, model: str, benchmarks: Any, root: str) -> EvaluateRecipe | None:
    """The evaluation of one trained model: what `consomme evaluate` would do with it."""
    if not benchmarks:
        return None
    return EvaluateRecipe(
        name=name,
        models={"model": model},
        benchmarks=tuple(benchmarks),
        root=root,
        # A trial has the share of the cluster that one worker takes.
        num_actors=1,
    )


def trial_values(
    base: Mapping[str, Any], keys: Mapping[str, Any], root: str
) -> tuple[dict[str, Any], list[str]]:
    """Put a trial's keys into the train recipe; also says which keys cannot be put."""
    values = merged(base, {"root": root})
    problems = [put(values, key, value) for key, value in keys.items()]
    return values, [problem for problem in problems if problem]


class _Checks:
    """Looks at trials and gathers what is wrong, each thing once."""

    def __init__(self, base: Mapping[str, Any], root: str) -> None:
        self.base, self.root = base, root
        self.problems: dict[str, None] = {}
        self._seen: dict[str, str | None] = {}

    def look(self, keys: Keys, stopper: Stopper) -> str | None:
        """Check one trial; its fingerprint, if nothing is wrong."""
        name = label(keys)
        if name not in self._seen:
            self._seen[name] = self._look(keys, stopper, name)
        return self._seen[name]

    def _look(self, keys: Keys, stopper: Stopper, name: str) -> str | None:
        values, found = trial_values(self.base, keys, self.root)
        for key in keys:
            if key.partition(".")[0] in ("name", "root"):
                found.append(f"{key}: is not to be tried; it changes no training")
        found += recipe_problems(TrainRecipe, values)
        if not found:
            recipe = check_recipe(TrainRecipe, values)
            found += stopper.problems(recipe.checkpoint_every, recipe.num_steps)
            try:
                mark = _fingerprint(recipe)
            except (RecipeError, DataError, CheckpointError) as error:
                found.append(str(error))
        for problem in found:
            self._add(problem, keys, name)
        return None if found else mark

    def _add(self, problem: str, keys: Keys, name: str) -> None:
        """A problem is told with the key it is about, or the trial it was first met in."""
        where = problem.partition(":")[0].replace("[", ".").replace("]", "")
        own = [key for key in keys if _is_inside(where, key) or _is_inside(key, where)]
        if own:
            self.problems[f"space.{problem}"] = None
        elif not any(known.endswith(f": {problem}") for known in self.problems):
            self.problems[f"trial {name}: {problem}"] = None


def _is_inside(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.")


def _fingerprint(recipe: TrainRecipe) -> str:
    """Of the run that a recipe makes; the recipe and what it reads are checked on the way."""
    try:
        with looking():
            return train.run(recipe).fingerprint
    except RunNotDoneError as pending:
        return pending.folder.url.rpartition("-")[2]


def _base(recipe: SweepRecipe) -> dict[str, Any]:
    """The train recipe that trials change."""
    changes = {key: value for key, value in recipe.train.items() if key != "recipe"}
    file = recipe.train.get("recipe")
    if file is None:
        return changes
    if not isinstance(file, str):
        raise RecipeError(f"train.recipe: found {file!r}, expected the path of a train recipe")
    return merged(load_values(file), changes)


def _samples(space: Mapping[str, Choice]) -> Iterator[Keys]:
    """Trials that together have every value: the first one, and it with one key changed."""
    first = {key: choice.samples[0] for key, choice in space.items()}
    if first:
        yield first
    for key, choice in space.items():
        yield from ({**first, key: value} for value in choice.samples[1:])


def _metric(recipe: SweepRecipe, named: Mapping[str, Benchmark], checks: _Checks) -> str:
    """What trials are compared by, as the manifest names it."""
    wanted = recipe.metric
    if wanted is None:
        name = next(iter(named), None)
        return LOSS if name is None else _figure(name, _first(named[name]))
    if wanted in TRAIN_METRICS:
        return wanted
    name, _, figure = wanted.partition("/")
    if name not in named:
        choices = [*named, *TRAIN_METRICS]
        hint = did_you_mean(wanted, choices) or f"; expected one of {', '.join(choices)}"
        checks.problems[f"metric: unknown {wanted!r}{hint}"] = None
        return LOSS
    if not figure:
        return _figure(name, _first(named[name]))
    figures = _figures(named[name])
    if figure not in figures:
        hint = did_you_mean(figure, figures) or f"; expected one of {', '.join(figures)}"
        checks.problems[f"metric: {name} has no figure {figure!r}{hint}"] = None
    return _figure(name, figure)


def _figure(name: str, figure: str) -> str:
    return f"evaluate/model/{name}/{figure}"


def _first(benchmark: Benchmark) -> str:
    return _figures(benchmark)[0]


def _figures(benchmark: Benchmark) -> list[str]:
    """What a benchmark measures; the answers do not matter."""
    return list(benchmark.measure([""] * len(benchmark.items())))
