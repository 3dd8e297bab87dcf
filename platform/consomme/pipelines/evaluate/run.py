"""Evaluate models on benchmarks; every result is cached by the content of model and benchmark."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from consomme.base.manifest import Manifest
from consomme.base.own_modules import module_inputs
from consomme.base.sample import Sample
from consomme.evaluate.names import benchmark_name, shown_figure
from consomme.execution.runs import Run, once
from consomme.execution.session import ray_session
from consomme.pipelines.evaluate.answers import AskedBenchmark, Asking, answer_all
from consomme.pipelines.evaluate.examples import examples_of, write_examples
from consomme.pipelines.evaluate.export import write_export
from consomme.pipelines.evaluate.kept import answer_rows, write_answers
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.stores.open import absolute_url

if TYPE_CHECKING:
    from consomme.engines.generation.models import EngineModel
    from consomme.evaluate.benchmark import Benchmark


@dataclass(frozen=True, kw_only=True)
class EvaluateInputs:
    """The resolved inputs of an evaluate recipe."""

    models: Mapping[str, EngineModel]
    """By the label of each model."""


def run(recipe: EvaluateRecipe) -> Manifest:
    """Evaluate every model on every benchmark; running again does what is missing."""
    return once(open_run, recipe, _evaluate)


def open_run(recipe: EvaluateRecipe) -> Run[EvaluateInputs]:
    """Resolve the models that the recipe names; writes nothing."""
    from consomme.engines.generation.models import find_model
    from consomme.engines.generation.registry import GENERATION_ENGINES
    from consomme.evaluate.benchmarks import BENCHMARKS, data_inputs
    from consomme.pipelines.evaluate.clip_scores import encoder_inputs
    from consomme.pipelines.evaluate.judges import judges_of

    engine = GENERATION_ENGINES.build(recipe.engine, "engine")
    models = {label: find_model(model, engine) for label, model in recipe.models.items()}
    by_key = {
        f"models.{label}" if mark == "model" else mark: one
        for label, model in models.items()
        for mark, one in model.marks.items()
    }
    by_key |= module_inputs(recipe.modules)
    by_key |= data_inputs(recipe.benchmarks, "benchmarks")
    by_key |= {
        f"benchmarks[{k}].judge[{number}].{mark}": one
        for k, node in enumerate(recipe.benchmarks)
        for number, judge in enumerate(judges_of(BENCHMARKS.build(node, "benchmarks")))
        for mark, one in find_model(
            judge.model, GENERATION_ENGINES.build(judge.engine, "judge.engine")
        ).marks.items()
    }
    for k, node in enumerate(recipe.benchmarks):
        by_key |= encoder_inputs(BENCHMARKS.build(node, "benchmarks"), f"benchmarks[{k}]")
    reads = [] if engine.is_remote else [one.model for one in models.values()]
    return Run.open("evaluate", recipe, EvaluateInputs(models=models), inputs=by_key, reads=reads)


def _evaluate(run: Run[EvaluateInputs]) -> Manifest:
    from consomme.evaluate.benchmark import HasData
    from consomme.evaluate.benchmarks import BENCHMARKS
    from consomme.pipelines.evaluate.clip_scores import encoders_of, with_clip_scores
    from consomme.pipelines.evaluate.judges import judge_all, judges_of

    recipe, models = run.recipe, run.resolved.models
    questions = [
        AskedBenchmark(
            label=label, model=model, name=benchmark_name(node), node=node, benchmark=one
        )
        for node in recipe.benchmarks
        for one in [BENCHMARKS.build(node, "benchmarks")]
        for label, model in models.items()
    ]
    asking = Asking(
        engine=recipe.engine,
        template=recipe.template,
        num_actors=recipe.num_actors,
        min_actors=recipe.min_actors,
        unit_items=recipe.unit_items,
        max_reject_fraction=recipe.max_reject_fraction,
    )
    folder = RunFolder.at(absolute_url(run.folder.url))
    needs_more = any(judges_of(one.benchmark) or encoders_of(one.benchmark) for one in questions)
    # Judges are asked on the same Ray, and captions compared.
    with ray_session() if needs_more else contextlib.nullcontext():
        answers = answer_all(recipe.root, folder, questions, asking)
        written = [one.texts for one in answers]
        judged, judges = judge_all(folder, recipe, questions, written, _run_again)
        judged = with_clip_scores(recipe.root, questions, written, judged)
    table: dict[str, dict[str, dict[str, float]]] = {label: {} for label in models}
    examples: list[Sample] = []
    rows: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    for number in range(0, len(questions), len(models)):
        some = questions[number : number + len(models)]
        given = {one.label: answers[number + k] for k, one in enumerate(some)}
        read = {one.label: judged[number + k] for k, one in enumerate(some)}
        name, benchmark = some[0].name, some[0].benchmark
        for label, one in read.items():
            table[label][name] = benchmark.measure(one.texts)
            if isinstance(benchmark, HasData):
                table[label][name]["num_refused"] = float(len(given[label].refused))
        verdicts = {label: benchmark.verdicts(one.texts) for label, one in read.items()}
        texts = {label: one.texts for label, one in given.items()}
        examples += examples_of(name, benchmark, texts, verdicts)
        replies = {label: one.replies for label, one in read.items()}
        rows += answer_rows(name, benchmark, given, verdicts, replies)
        comparisons += _comparisons(name, benchmark, {k: one.texts for k, one in read.items()})
    write_examples(run.folder.store, examples)
    write_answers(run.folder.store, rows)
    nodes = {one.name: one.node for one in questions}
    write_export(run.folder.store, table, nodes, rows, recipe.models)
    metrics = {
        f"evaluate/{label}/{name}/{figure}": value
        for label, by_name in table.items()
        for name, figures in by_name.items()
        for figure, value in figures.items()
    }
    return run.finish(
        counts=folder.total_counts()
        | {"models": len(models), "benchmarks": len(recipe.benchmarks)},
        decisions={
            "results": table,
            "comparisons": comparisons,
            **({"judges": judges} if judges else {}),
            "main_figures": {
                name: next(iter(figures)) for name, figures in next(iter(table.values())).items()
            },
            "table": _main_figures(table),
        },
        metrics=metrics,
    )


def _run_again(recipe: EvaluateRecipe) -> Manifest:
    """Let a judge answer, in a run of its own."""
    return run(recipe)


def _comparisons(
    name: str, benchmark: Benchmark, answers: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, Any]]:
    """Compare each pair of models on one benchmark."""
    from consomme.evaluate.benchmark import outcomes_of
    from consomme.evaluate.comparison import compare

    outcomes = {label: outcomes_of(benchmark, given) for label, given in answers.items()}
    for one, other in itertools.combinations(answers, 2):
        found = asdict(compare(outcomes[one], outcomes[other]))
        yield {"benchmark": name, "models": [one, other], **found}


def _main_figures(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Make the table for the command line: the first figure of each benchmark, by model."""
    labels = list(table)
    names = list(table[labels[0]])
    rows = []
    for name in names:
        figure = next(iter(table[labels[0]][name]))
        shown = f"{name}: {shown_figure(figure)}"
        rows.append([shown, *(table[label][name][figure] for label in labels)])
    return {"title": "main figure of each benchmark", "columns": ["", *labels], "rows": rows}
