"""Evaluate models on benchmarks; every result is cached by the content of model and benchmark."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from consomme.base.manifest import Manifest
from consomme.base.sample import Sample
from consomme.evaluate.names import benchmark_name
from consomme.execution.runs import Run, once
from consomme.pipelines.evaluate.answers import answer_all
from consomme.pipelines.evaluate.examples import examples_of, write_examples
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_hash, portable_path
from consomme.storage.stores.open import absolute_url


@dataclass(frozen=True, kw_only=True)
class EvaluateInputs:
    """The resolved inputs of an evaluate recipe, by the label of each model."""

    models: Mapping[str, str]
    """Where any node finds the models; see `portable_path`."""

    hashes: Mapping[str, str]
    """Hashes of their content."""


def run(recipe: EvaluateRecipe) -> Manifest:
    """Evaluate every model on every benchmark."""
    return once(open_run, recipe, _evaluate)


def open_run(recipe: EvaluateRecipe) -> Run[EvaluateInputs]:
    """Resolve the models that the recipe names; writes nothing."""
    from consomme.evaluate.benchmarks import data_inputs

    models = {label: portable_path(model) for label, model in recipe.models.items()}
    hashes = {label: model_hash(model) for label, model in models.items()}
    inputs = EvaluateInputs(models=models, hashes=hashes)
    by_key = {f"models.{label}": one for label, one in hashes.items()}
    by_key |= data_inputs(recipe.benchmarks, "benchmarks")
    return Run.open("evaluate", recipe, inputs, inputs=by_key, reads=list(models.values()))


def _evaluate(run: Run[EvaluateInputs]) -> Manifest:
    from consomme.evaluate.benchmark import outcomes_of
    from consomme.evaluate.benchmarks import BENCHMARKS
    from consomme.evaluate.comparison import compare

    recipe, models, hashes = run.recipe, run.resolved.models, run.resolved.hashes
    benchmarks = [BENCHMARKS.build(node, "benchmarks") for node in recipe.benchmarks]
    wanted = [(label, number) for label in models for number in range(len(benchmarks))]
    answers = answer_all(
        recipe.root,
        RunFolder.at(absolute_url(run.folder.url)),
        [(models[label], hashes[label], recipe.benchmarks[number]) for label, number in wanted],
        recipe.num_actors,
        recipe.template,
    )
    table: dict[str, dict[str, dict[str, float]]] = {label: {} for label in models}
    metrics: dict[str, float] = {}
    names = [benchmark_name(node) for node in recipe.benchmarks]
    for (label, number), given in zip(wanted, answers, strict=True):
        name = names[number]
        table[label][name] = benchmarks[number].measure(given)
        for figure, value in table[label][name].items():
            metrics[f"evaluate/{label}/{name}/{figure}"] = value
    by_model = dict(zip(wanted, answers, strict=True))
    examples: list[Sample] = []
    comparisons: list[dict[str, Any]] = []
    for number, benchmark in enumerate(benchmarks):
        given_by = {label: by_model[label, number] for label in models}
        verdicts = {label: benchmark.verdicts(given) for label, given in given_by.items()}
        examples += examples_of(names[number], benchmark, given_by, verdicts)
        outcomes = {label: outcomes_of(benchmark, given) for label, given in given_by.items()}
        for one, other in itertools.combinations(models, 2):
            found = asdict(compare(outcomes[one], outcomes[other]))
            comparisons.append({"benchmark": names[number], "models": [one, other], **found})
    write_examples(run.folder.store, examples)
    return run.finish(
        counts={"models": len(models), "benchmarks": len(benchmarks)},
        decisions={
            "results": table,
            "comparisons": comparisons,
            "table": _main_figures(table),
        },
        metrics=metrics,
    )


def _main_figures(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Make the table for the command line: the first figure of each benchmark, by model."""
    labels = list(table)
    names = list(table[labels[0]])
    rows = []
    for name in names:
        figure = next(iter(table[labels[0]][name]))
        shown = f"{name}: {figure.removesuffix('_fraction').replace('_', ' ')}"
        rows.append([shown, *(table[label][name][figure] for label in labels)])
    return {"title": "main figure of each benchmark", "columns": ["", *labels], "rows": rows}
