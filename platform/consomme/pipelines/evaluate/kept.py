"""Every answer of an evaluation beside its question, in one file of the run folder."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.sample import Turn
from consomme.evaluate.benchmark import Benchmark
from consomme.pipelines.evaluate.answers import Answers
from consomme.storage.sidecar import table_bytes
from consomme.storage.stores.store import Store

KEPT = "answers.parquet"
"""A row for each request and model. Images stay in the file of questions."""

SCHEMA = pa.schema(
    [
        pa.field("benchmark", pa.string()),
        pa.field("model", pa.string()),
        pa.field("number", pa.int32()),
        pa.field("question", pa.string()),
        pa.field("truth", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("judged", pa.string()),
        pa.field("verdict", pa.float64()),
        pa.field("refused", pa.string()),
        pa.field("is_cut", pa.bool_()),
    ]
)
"""`number` is of the request, from 0; `question` has `<image>` where images stand, and other turns
than the last one with their roles; `answer` is null where `refused` says why there is none;
`judged` is what a judge wrote about it, or the cosines of a caption as JSON; null without."""


def write_answers(store: Store, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the answers of all models to all benchmarks."""
    store.write(KEPT, table_bytes(pa.Table.from_pylist(list(rows), schema=SCHEMA)))


def read_answers(store: Store) -> pa.Table:
    """Return the answers of a run; none of runs of earlier versions."""
    if not store.exists(KEPT):
        return SCHEMA.empty_table()
    return pq.read_table(io.BytesIO(store.read(KEPT)))


def answer_rows(
    name: str,
    benchmark: Benchmark,
    answers: Mapping[str, Answers],
    verdicts: Mapping[str, Sequence[float]],
    replies: Mapping[str, Mapping[int, str]],
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one benchmark.

    Args:
        name: Of the benchmark in tables.
        benchmark: The benchmark.
        answers: Of each model, by its label.
        verdicts: The same.
        replies: Of judges, by the label of the model and the number of the request.
    """
    asked = [(question_text(item.placed_turns), item.truth) for item in benchmark.items()]
    for label, given in answers.items():
        cut = set(given.cut)
        for number, (question, truth) in enumerate(asked):
            refused = given.refused.get(number)
            yield {
                "benchmark": name,
                "model": label,
                "number": number,
                "question": question,
                "truth": truth,
                "answer": None if refused else given.texts[number],
                "judged": replies[label].get(number),
                "verdict": verdicts[label][number],
                "refused": refused,
                "is_cut": number in cut,
            }


def question_text(turns: Sequence[Turn]) -> str:
    """Return a question as one text: images as marks, and roles where there are several turns."""
    texts = [
        "".join(part if isinstance(part, str) else "<image>" for part in turn.parts)
        for turn in turns
    ]
    if len(turns) == 1:
        return texts[0]
    return "\n".join(f"{turn.role}: {text}" for turn, text in zip(turns, texts, strict=True))
