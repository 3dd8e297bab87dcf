"""Let checkpoints of a training, and what it starts from, answer benchmarks.

A checkpoint is written as it would be exported, and answers as `evaluate` would have it: both share
the answers in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consomme.base.places import Scratch
from consomme.evaluate.benchmark import BENCHMARKS
from consomme.evaluate.guards import judge_guard
from consomme.evaluate.names import benchmark_name
from consomme.pipelines.evaluate.in_memory import AnswerCache, answer_folder
from consomme.pipelines.train.context import TrainContext
from consomme.pipelines.train.export import write_trained
from consomme.storage.model_folder import model_content_hash, model_folder, model_hash
from consomme.storage.stores.store import join_url


def ask_start(context: TrainContext) -> dict[str, Any]:
    """Let the model that training starts from answer; returns its figures, as `ask_trained`."""
    return _measured(context, _start_answers(context))


def ask_trained(
    context: TrainContext, layers: Sequence[int], weights: Mapping[str, Any]
) -> dict[str, Any]:
    """Let a checkpoint answer.

    Args:
        context: The run's.
        layers: As in `open_trained`.
        weights: As in `open_trained`.

    Returns:
        `score`, `figure` and `figures` of the benchmark, if there is one; `guards`, what was kept
        of each guard's benchmark.
    """
    with Scratch() as scratch:
        write_trained(context, layers, weights, scratch)
        folder = str(scratch / "model")
        answers = _answers(context, folder, model_content_hash(folder), _nodes(context))
    return _measured(context, answers)


def ask_exported(context: TrainContext) -> dict[str, dict[str, float]]:
    """Let the exported model answer the benchmarks that only report; figures by benchmark."""
    nodes = context.recipe.evaluation.report
    model = join_url(context.folder_url, "model")
    given = _answers(context, model_folder(model), model_hash(model), nodes)
    return {
        benchmark_name(node): BENCHMARKS.build(node).measure(answers)
        for node, answers in zip(nodes, given, strict=True)
    }


def _nodes(context: TrainContext) -> list[Mapping[str, Any]]:
    evaluation = context.recipe.evaluation
    chooses = [evaluation.benchmark] if evaluation.benchmark is not None else []
    return [*chooses, *(guard.benchmark for guard in evaluation.guards)]


def _start_answers(context: TrainContext) -> list[Sequence[str]]:
    folder = model_folder(context.start)
    return _answers(context, folder, model_hash(context.start), _nodes(context))


def _answers(
    context: TrainContext, folder: str, print_: str, nodes: Sequence[Mapping[str, Any]]
) -> list[Sequence[str]]:
    return answer_folder(
        AnswerCache(context.cache_url, context.recipe.template),
        folder,
        print_,
        nodes,
        template=context.recipe.template,
        run=context.folder,
    )


def _measured(context: TrainContext, answers: Sequence[Sequence[str]]) -> dict[str, Any]:
    evaluation = context.recipe.evaluation
    measured: dict[str, Any] = {}
    rest = list(answers)
    if evaluation.benchmark is not None:
        figures = BENCHMARKS.build(evaluation.benchmark).measure(rest.pop(0))
        figure = next(iter(figures))
        measured |= {"figure": figure, "score": figures[figure], "figures": figures}
    if evaluation.guards:
        base = _start_answers(context)[-len(evaluation.guards) :]
        measured["guards"] = [
            judge_guard(guard, benchmark_name(guard.benchmark), before, after).plain()
            for guard, before, after in zip(evaluation.guards, base, rest, strict=True)
        ]
    return measured
