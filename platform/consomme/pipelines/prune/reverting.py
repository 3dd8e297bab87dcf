"""Put layers of the base back into a tuned model, one at a time and in memory, and ask it."""

from __future__ import annotations

from functools import partial

from consomme.evaluate.names import benchmark_name
from consomme.pipelines.evaluate.in_memory import InMemoryAnswerer
from consomme.pipelines.prune.job import PruneJob
from consomme.prune.comparing import matched_layers
from consomme.prune.diagnosing import reverted_layer


def reverted_figures(
    job: PruneJob, tuned: str, base: str, num_layers: int
) -> list[dict[str, dict[str, float]]]:
    """Return the figures of each benchmark, by layer that is put back; the model itself first.

    Args:
        job: Whose recipe names the benchmarks.
        tuned: Folder of the model.
        base: Folder of the model that it was tuned from.
        num_layers: Of the language model.

    Raises:
        CheckpointError: Their layers are not of the same architecture.
    """
    from consomme.evaluate.benchmarks import BENCHMARKS

    before, after = matched_layers(base, tuned)
    stored = {name: after.tensor(name) for name in after.tensors}
    names = [benchmark_name(node) for node in job.recipe.benchmarks]
    benchmarks = [BENCHMARKS.build(node, "benchmarks") for node in job.recipe.benchmarks]
    answerer = InMemoryAnswerer(
        tuned,
        model_hash=job.inputs.model_hash,
        template=job.recipe.template,
        run=job.folder,
    )

    def figures() -> dict[str, dict[str, float]]:
        return {
            name: one.measure(answerer.answer(one).texts)
            for name, one in zip(names, benchmarks, strict=True)
        }

    found = [figures()]
    for layer in range(num_layers):
        answerer.load_weights(partial(reverted_layer, before, after, layer, stored))
        found.append(figures())
    return found
