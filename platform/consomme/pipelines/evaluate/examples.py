"""Some questions of an evaluation with their images and answers, kept in the run folder."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence

import pyarrow.parquet as pq
from PIL import Image

from consomme.base.sample import ImageFile, Sample
from consomme.base.sample_tables import table_to_samples
from consomme.evaluate.benchmark import Benchmark
from consomme.storage.stores.store import Store
from consomme.storage.writers import parquet_bytes

EXAMPLES = "examples.parquet"
"""A sample for each question: its turns with all images in their places. `meta` has `benchmark`,
`expected`, and by the label of each model `answers` and `verdicts`, from 0, wrong, to 1, right."""

NUM_EXAMPLES = 6
"""Questions kept of each benchmark, evenly spread."""


def write_examples(store: Store, samples: Sequence[Sample]) -> None:
    """Write the examples of all benchmarks."""
    store.write(EXAMPLES, parquet_bytes(samples))


def read_examples(store: Store) -> list[Sample]:
    """Return the examples of a run; none of runs of earlier versions, which kept none."""
    if not store.exists(EXAMPLES):
        return []
    return table_to_samples(pq.read_table(io.BytesIO(store.read(EXAMPLES))))


def examples_of(
    name: str,
    benchmark: Benchmark,
    answers: Mapping[str, Sequence[str]],
    verdicts: Mapping[str, Sequence[float]],
) -> Iterator[Sample]:
    """Yield some questions of a benchmark.

    Args:
        name: Of the benchmark in tables.
        benchmark: The benchmark.
        answers: Of each model, by its label.
        verdicts: The same.
    """
    items = benchmark.items()
    for number in sorted({len(items) * k // NUM_EXAMPLES for k in range(NUM_EXAMPLES)}):
        item = items[number]
        yield Sample(
            sample_id=f"{name}/{number}",
            images=tuple(
                ImageFile(data=_png(image), name=f"{number}.{k}.png")
                for k, image in enumerate(item.images)
            ),
            turns=item.placed_turns,
            source="benchmark",
            meta={
                "benchmark": name,
                "expected": item.truth,
                "answers": {label: given[number] for label, given in answers.items()},
                "verdicts": {label: given[number] for label, given in verdicts.items()},
            },
        )


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.convert("RGB").save(out, "PNG")
    return out.getvalue()
