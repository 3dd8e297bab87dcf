"""Runs of dedup and score made by hand, without Ray, for the tests of dedup."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.manifest import Manifest
from consomme.base.sample import Sample
from consomme.execution.runs import Run
from consomme.execution.stage import DecodedSample
from consomme.execution.worker import with_id_hash
from consomme.pipelines.dedup import run as dedup
from consomme.pipelines.dedup.recipe import DedupRecipe
from consomme.pipelines.dedup.stage import HashStage
from consomme.pipelines.score.recipe import ScoreRecipe
from consomme.storage.shards import shard_urls
from consomme.storage.sidecar import table_bytes
from consomme.storage.stores.open import open_store
from consomme.storage.units import plan_units, read_unit
from consomme.storage.view import View, read_view_unit
from consomme.storage.writers import WebDatasetWriter
from consomme.vision.decode import decode


def written(folder: Path, samples: Sequence[Sample], max_rows: int = 16) -> str:
    with WebDatasetWriter(open_store(str(folder)), "shard", max_rows=max_rows) as writer:
        for sample in samples:
            writer.write(sample)
    return str(folder)


def hashed(root: Path, inputs: str, unit_rows: int, *, without: Sequence[str] = ()) -> str:
    """A finished run whose units were hashed one after the other, without Ray."""
    recipe = DedupRecipe(
        name=f"by-hand-{unit_rows}", root=str(root), inputs=(inputs,), unit_rows=unit_rows
    )
    opened = Run.open("dedup", recipe, None)
    opened.start()
    folder, number = opened.folder, opened.folder.start_attempt()
    for unit in plan_units(shard_urls([inputs]), "data", unit_rows):
        decoded = [
            DecodedSample(row=r, sample=s, images=tuple(decode(one.data) for one in s.images))
            for r, s in read_unit(unit)[0]
        ]
        table = with_id_hash(HashStage().work(decoded).table, unit.source)
        table = table.drop_columns([name for name in without if name in table.column_names])
        file = folder.write_output(unit, "hashes", table_bytes(table), "parquet")
        folder.commit(number, unit, [file], {"samples": len(decoded)})
    folder.close(number)
    return opened.finish().url


def scored(root: Path, inputs: str, unit_rows: int, score: dict[str, float]) -> str:
    """A finished score run made by hand."""
    recipe = ScoreRecipe(name=f"s{unit_rows}", root=str(root), inputs=(inputs,), model="none")
    opened = Run.open("score", recipe, None)
    opened.start()
    number = opened.folder.start_attempt()
    for unit in plan_units(shard_urls([inputs]), "data", unit_rows):
        rows = [(row, s.sample_id) for row, s in read_unit(unit)[0] if s.sample_id in score]
        table = pa.table(
            {
                "row": pa.array([row for row, _ in rows], pa.int32()),
                "sample_id": pa.array([name for _, name in rows], pa.string()),
                "perplexity": pa.array([score[name] for _, name in rows], pa.float32()),
                "noise": pa.array(["clean"] * len(rows), pa.string()),
            }
        )
        file = opened.folder.write_output(
            unit, "scores", table_bytes(with_id_hash(table, unit.source)), "parquet"
        )
        opened.folder.commit(number, unit, [file], {"samples": len(rows)})
    opened.folder.close(number)
    return opened.finish().url


def deduped(root: Path, hashes: str, **options: Any) -> Manifest:
    return dedup.run(DedupRecipe(name="again", root=str(root), hashes=hashes, **options))


def kept(url: str) -> set[str]:
    return {
        sample.sample_id
        for unit, bitmap in View.load(url).entries
        for _, sample in read_view_unit(unit, bitmap)
    }


def groups(url: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(f"{url}/groups.parquet").to_pylist()
    return rows
