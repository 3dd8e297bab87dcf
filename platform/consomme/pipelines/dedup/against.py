"""What a recipe is deduplicated against: the images and texts of benchmarks.

A sample that shows an image of a benchmark, or quotes one of its texts, is no training data for a
model that is measured by this benchmark.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from consomme.base.errors import DataError
from consomme.curate.dedup.confirmation import ThumbnailTable
from consomme.curate.dedup.copies import NearDuplicateLimits
from consomme.curate.dedup.hash_tables import Index
from consomme.curate.dedup.known_images import KnownCopies, KnownImages, find_known
from consomme.curate.dedup.quotes import QuoteIndex
from consomme.evaluate.benchmark import BENCHMARKS, parts_of
from consomme.evaluate.from_files import FileBenchmark
from consomme.evaluate.names import benchmark_name
from consomme.pipelines.dedup.copies import HASHES, SampleHashes
from consomme.pipelines.dedup.recipe import DedupRecipe
from consomme.pipelines.dedup.stage import MIN_SIDE_PX, QUOTES, content_hash
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.sidecar import iter_columns, table_bytes
from consomme.storage.unit import Unit
from consomme.vision.decode import DecodeProblem, decode

# Shapes: N images of the data set, P pairs, T texts and K images of all benchmarks.
CONTAMINATED = "contaminated.parquet"
"""Name of the table of samples that are of a benchmark, in the run folder."""

_SHOWN_CHARACTERS = 200
_IMAGES_AT_A_TIME = 256
_SCHEMA = pa.schema(
    [
        ("unit_id", pa.string()),
        ("row", pa.int32()),
        ("sample_id", pa.string()),
        ("found_by", pa.string()),
        ("image_index", pa.int32()),
        ("benchmark", pa.string()),
        ("question", pa.int32()),
        ("distance", pa.uint8()),
        ("difference", pa.float32()),
        ("quoted_fraction", pa.float32()),
        ("question_text", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class KnownQuestion:
    """A question of a benchmark, without its images."""

    benchmark: str
    number: int
    """From 0, in the benchmark."""

    text: str


@dataclass(frozen=True, kw_only=True)
class KnownQuestions:
    """All questions of the benchmarks that a recipe names, as they are looked for."""

    questions: tuple[KnownQuestion, ...]
    images: KnownImages
    question_K: NDArray[np.int64]  # noqa: N815
    """Index of each image's question."""

    index: QuoteIndex | None
    """Their texts; None if texts are not compared."""

    question_T: tuple[int, ...]  # noqa: N815
    """Index of each text's question."""

    @classmethod
    def of(cls, recipe: DedupRecipe) -> KnownQuestions | None:
        """Read the benchmarks of a recipe; None if it names none.

        Raises:
            DataError: A benchmark cannot be read.
        """
        if not recipe.against:
            return None
        questions: list[KnownQuestion] = []
        images: list[KnownImages] = []
        question_K: list[int] = []
        groups: list[list[str]] = []
        question_T: list[int] = []
        for number, node in enumerate(recipe.against):
            group: list[str] = []
            name = benchmark_name(node)
            batch: list[tuple[Image.Image, bytes]] = []
            first = len(questions)
            for shown, texts in _asked(node, f"against[{number}]"):
                at = len(questions)
                text = " ".join(texts)[:_SHOWN_CHARACTERS]
                questions.append(KnownQuestion(benchmark=name, number=at - first, text=text))
                question_K += [at] * len(shown)
                question_T += [at] * len(texts)
                group += texts
                batch += shown
                if len(batch) >= _IMAGES_AT_A_TIME:
                    images.append(_hashed(batch))
                    batch = []
            images.append(_hashed(batch))
            groups.append(group)
        index = None
        if recipe.against_words is not None:
            index = QuoteIndex.of(
                groups, num_words=recipe.against_words, min_fraction=recipe.against_fraction
            )
        return cls(
            questions=tuple(questions),
            images=KnownImages.of(images),
            question_K=np.array(question_K, dtype=np.int64),
            index=index,
            question_T=tuple(question_T),
        )


def _hashed(batch: Sequence[tuple[Image.Image, bytes]]) -> KnownImages:
    return KnownImages.hashed([image for image, _ in batch], [content for _, content in batch])


def _asked(
    node: Mapping[str, Any], key: str
) -> Iterator[tuple[list[tuple[Image.Image, bytes]], list[str]]]:
    """Yield the images of each question, with the hash of their bytes, and its texts."""
    for part in parts_of(BENCHMARKS.build(node, key)):
        if isinstance(part, FileBenchmark):
            for question in part.prepared.questions:
                images = []
                for data in question.row.images:
                    image = decode(data, min_side_px=MIN_SIDE_PX)
                    if isinstance(image, DecodeProblem):
                        raise DataError(f"{part.file}: {image.detail}")
                    images.append((image, content_hash(data)))
                yield images, list(part.texts_of(question))
        else:
            for item in part.items():
                texts = [*(turn.text for turn in item.turns), item.truth]
                yield [(image, b"") for image in item.images], [t for t in texts if t]


@dataclass(frozen=True, kw_only=True)
class Contaminated:
    """The samples of a data set that are of a benchmark."""

    table: pa.Table
    """A row for each image and each quoted text; see `CONTAMINATED`."""

    rows: Mapping[int, NDArray[np.int64]]
    """Index of a unit -> rows of these samples in it."""

    by_benchmark: Mapping[str, Mapping[str, int]]
    """Benchmark -> what it has, and what was found of it."""

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return sum(map(len, self.rows.values()))

    def save(self, folder: RunFolder) -> str:
        """Write the table and return its path in the folder."""
        folder.store.write(CONTAMINATED, table_bytes(self.table))
        return CONTAMINATED


def read_contaminated(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the rows of a run's table."""
    rows: list[dict[str, Any]] = pq.read_table(
        io.BytesIO(folder.store.read(CONTAMINATED))
    ).to_pylist()
    return rows


def tables_of(url: str) -> Iterator[tuple[Unit, pa.Table]]:
    """Yield the ids and quotes of each unit of a run, as `find_contaminated` takes them."""
    return ((one.unit, found) for one, found in iter_columns(url, [], HASHES, optional=[QUOTES]))


def find_contaminated(
    recipe: DedupRecipe,
    known: KnownQuestions,
    hashed: SampleHashes,
    tables: Iterable[tuple[Unit, pa.Table]],
    thumbnails: Callable[[Index], ThumbnailTable],
) -> Contaminated:
    """Find the samples that show or quote a question.

    Args:
        recipe: The recipe.
        known: The questions that it names.
        hashed: All images.
        tables: Each unit, in the order of `hashed`, with `row`, `sample_id` and `QUOTES`.
        thumbnails: Opens the thumbnails of images, by index.
    """
    limits = None
    if recipe.max_distance is not None:
        limits = NearDuplicateLimits(max_distance=recipe.max_distance, max_colour=recipe.max_colour)
    copies = find_known(
        hashed.content_N2,
        hashed.phash_N,
        hashed.colour_N,
        hashed.is_flat_N,
        known.images,
        limits,
        thumbnails,
        flips=recipe.flips,
    )
    by_unit = _shown(known, hashed, copies)
    found: list[dict[str, Any]] = []
    rows: dict[int, Index] = {}
    for number, (unit, table) in enumerate(tables):
        mine = [*by_unit.get(number, ()), *_quoted(known, table)]
        if not mine:
            continue
        names = dict(zip(table["row"].to_pylist(), table["sample_id"].to_pylist(), strict=True))
        mine.sort(key=lambda one: (one["row"], one["found_by"] == "text"))
        found += [one | {"unit_id": unit.unit_id, "sample_id": names[one["row"]]} for one in mine]
        rows[number] = np.unique([one["row"] for one in mine])
    return Contaminated(
        table=pa.Table.from_pylist(found, schema=_SCHEMA),
        rows=rows,
        by_benchmark=_by_benchmark(known, found),
    )


def _shown(
    known: KnownQuestions, hashed: SampleHashes, copies: KnownCopies
) -> dict[int, list[dict[str, Any]]]:
    """Return what was found of images, by index of the unit."""
    unit_P = hashed.unit_N[copies.image_P]
    found: dict[int, list[dict[str, Any]]] = {}
    for k, image in enumerate(copies.image_P.tolist()):
        question = known.questions[int(known.question_K[copies.known_P[k]])]
        found.setdefault(int(unit_P[k]), []).append(
            {
                "row": int(hashed.row_N[image]),
                "found_by": "exact" if copies.is_exact_P[k] else "near",
                "image_index": int(hashed.image_N[image]),
                "benchmark": question.benchmark,
                "question": question.number,
                "distance": int(copies.distance_P[k]),
                "difference": float(copies.difference_P[k]),
                "question_text": question.text,
            }
        )
    return found


def _quoted(known: KnownQuestions, table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield what the workers found in the texts of a unit."""
    if known.index is None:
        return
    quotes = table[QUOTES].combine_chunks()
    for place in np.flatnonzero(np.asarray(pc.list_value_length(quotes)) > 0).tolist():
        for quote in quotes[place].as_py():
            question = known.questions[known.question_T[quote["text"]]]
            yield {
                "row": table["row"][place].as_py(),
                "found_by": "text",
                "benchmark": question.benchmark,
                "question": question.number,
                "quoted_fraction": quote["fraction"],
                "question_text": question.text,
            }


def against_table(found: Contaminated) -> dict[str, Any]:
    """Make the table for the command line: what was found of each benchmark."""
    shown = ("questions", "questions_found", "samples_by_image", "samples_by_text")
    return {
        "title": "benchmarks in the data",
        "columns": ["", "questions", "found", "samples by image", "samples by text"],
        "rows": [[name, *(one[key] for key in shown)] for name, one in found.by_benchmark.items()],
    }


def _by_benchmark(
    known: KnownQuestions, found: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, int]]:
    names = dict.fromkeys(question.benchmark for question in known.questions)
    images = [known.questions[number].benchmark for number in known.question_K.tolist()]
    texts = [known.questions[number].benchmark for number in known.question_T]
    compared: list[str] = []
    if known.index is not None:
        num_runs = known.index.num_runs_T.tolist()
        compared = [name for name, number in zip(texts, num_runs, strict=True) if number]
    result = {}
    for name in names:
        mine = [one for one in found if one["benchmark"] == name]
        by_text = [one["found_by"] == "text" for one in mine]
        keys = [(one["unit_id"], one["row"]) for one in mine]
        result[name] = {
            "questions": sum(question.benchmark == name for question in known.questions),
            "images": images.count(name),
            "texts": texts.count(name),
            "texts_compared": compared.count(name),
            "samples_by_image": len({k for k, text in zip(keys, by_text, strict=True) if not text}),
            "samples_by_text": len({k for k, text in zip(keys, by_text, strict=True) if text}),
            "questions_found": len({one["question"] for one in mine}),
        }
    return result


def without(hashed: SampleHashes, rows: Mapping[int, Index]) -> SampleHashes:
    """Return the hashes without those of some samples.

    Args:
        hashed: All images.
        rows: Index of a unit -> rows of the samples in it.
    """
    stays_N = np.ones(hashed.num_pictures, dtype=bool)
    bare = list(hashed.bare_U)
    for unit, some in rows.items():
        begin, end = hashed.begin_U[unit : unit + 2]
        stays_N[begin:end] = ~np.isin(hashed.row_N[begin:end], some)
        bare[unit] = bare[unit][~np.isin(bare[unit], some)]
    sizes = np.diff(np.concatenate([[0], np.cumsum(stays_N)])[hashed.begin_U])
    by_image = {
        name: getattr(hashed, name)[stays_N] for name in hashed.__dataclass_fields__ if "_N" in name
    }
    return replace(
        hashed, begin_U=np.concatenate([[0], np.cumsum(sizes)]), bare_U=tuple(bare), **by_image
    )
