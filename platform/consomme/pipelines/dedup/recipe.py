"""The recipe of `dedup`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from consomme.base.bounds import Fraction, NonNegativeInt, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.needs import Need
from consomme.base.schema import added, located, runtime, strategy
from consomme.curate.dedup.copies import MAX_DISTANCE
from consomme.curate.dedup.samples import DropRule
from consomme.evaluate.names import benchmark_name
from consomme.storage.options import StorageOptions
from consomme.storage.reading import Reading
from consomme.storage.shards import input_problems


@dataclass(frozen=True, kw_only=True)
class DedupRecipe(Checked):
    """A view without duplicate images; two texts about the same images are copies too."""

    name: str
    """Name of the run."""

    inputs: tuple[str, ...] = located(())
    """Shards: files, folders, globs, brace ranges; local, `s3://` or `gs://`."""

    source: str = "data"
    """Name of the data set in `inputs`, used in references and unit ids."""

    sources: dict[str, list[str]] = located({})
    """More data sets: name -> inputs. Copies are found across data sets."""

    view: str | None = located(None)
    """Folder of a finished filter or dedup run to deduplicate, instead of `inputs`."""

    hashes: str | None = located(None)
    """Folder of a finished dedup run: decide again on its hashes, instead of `inputs`."""

    reading: Reading = added(Reading())
    """How the records of the inputs become samples: names of columns, where images lie, lists of
    captions, expected rejects."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    max_distance: Annotated[int, Interval(ge=0, le=MAX_DISTANCE)] | None = 5
    """Maximum Hamming distance between the 64-bit perceptual hashes of images that are compared;
    null finds exact copies only. Whether they are copies is decided by their thumbnails. 5 finds
    resized and recompressed images, and most of those cropped by 2 %; each bit more finds more of
    the cropped ones and takes two to three times as long."""

    max_colour: Annotated[int, Interval(ge=0, le=255)] = 8
    """Maximum difference, of 255, between the mean colours of the quarters of images that are
    compared. JPEG changes them by 1 to 5; a heart in another colour by 30 to 150. 255: then a grey
    version of a coloured image is a copy. Colours of details are compared as well, whatever is set
    here."""

    flips: bool = False
    """Whether mirror images are copies. They are for a classifier, but not for captions that say
    left or right, or that read text in the image."""

    scores: str | None = located(None)
    """Folder of a finished score run over the same data. Without it, the largest copy is kept; of
    samples with several pictures, the one with the most."""

    best_by: str | None = None
    """Score column that selects the best copy: `perplexity`, `image_gain`, …"""

    best_is: Literal["highest", "lowest"] = "highest"
    """Which end of that column is best: `highest` for image_gain, `lowest` for perplexity."""

    drop_sample_if: DropRule = added("all_copies")
    """When a sample goes with its pictures: `all_copies` of them are in samples that stay, or
    `any_copy`, or the `first_copy`. Samples are decided about from the best to the worst, and
    those without pictures stay. With one picture per sample there is no difference."""

    against: tuple[dict[str, Any], ...] = strategy(
        "consomme.evaluate.benchmarks:BENCHMARKS", default=(), was_added=True
    )
    """Benchmarks whose images and texts must not be in the data. A sample that shows one of the
    images, or quotes one of the texts, is left out; `contaminated.parquet` says what was found."""

    against_words: PositiveInt | None = added(8)
    """Texts are compared by runs of so many words; shorter texts are not compared. null: only
    images are."""

    against_fraction: Annotated[float, Interval(gt=0, le=1)] = added(0.7)
    """Share of a benchmark's text, in runs of words, that a sample holds if it quotes it."""

    keep_copies: bool = added(False)
    """Keep copies inside the data: only what is of a benchmark goes."""

    unit_rows: PositiveInt = 1024
    """Maximum number of samples per unit, which is what is retried, resumed and committed."""

    max_reject_fraction: Fraction = runtime(0.01)
    """The run fails if more than this share of the samples is rejected; finished units are kept."""

    num_actors: PositiveInt | None = runtime(None)
    """Maximum number of hashing actors; None: one per CPU."""

    min_actors: PositiveInt = runtime(1)
    """Minimum number of actors; the pool scales between the two with the work and the nodes."""

    num_readers: NonNegativeInt | None = runtime(None)
    """Tasks that read units ahead of the actors. More of them hide slow storage, and each holds a
    unit in memory. 0: actors read for themselves. None: 0 without GPUs, else one per actor."""

    def needs(self, num_gpus: float) -> Iterator[Need]:
        """Yield what the run claims at least: the smallest pool of actors."""
        if self.hashes is None:
            yield Need(key=f"min_actors={self.min_actors}", count=self.min_actors, cpus=0.8)

    @rule
    def _one_kind_of_data(self) -> Iterator[str]:
        has_shards = bool(self.inputs or self.sources)
        given = [has_shards, self.view is not None, self.hashes is not None]
        if sum(given) != 1:
            yield (
                "expected one of inputs (or sources), view and hashes: found"
                f" {sum(given) or 'none'}"
            )
        if has_shards:
            yield from input_problems(self.inputs, self.source, self.sources)
        else:
            yield from self.reading.beside_a_view()

    @rule
    def _scores_and_column(self) -> Iterator[str]:
        if (self.scores is None) != (self.best_by is None):
            yield (
                f"scores and best_by go together: found scores: {self.scores}, best_by:"
                f" {self.best_by}; name the column that selects the best copy, or leave out both"
            )

    @rule
    def _against_what(self) -> Iterator[str]:
        for number, node in enumerate(self.against):
            for control in ("blank", "text_only", "shuffled"):
                if node.get(control):
                    yield (
                        f"against[{number}].{control}: found {node[control]}, which shows other"
                        " images than the benchmark's; leave it out"
                    )
        names = [benchmark_name(node) for node in self.against if "name" in node]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield (
                f"against: found {names.count(name)} that are called {name} in tables; give them"
                " labels of their own"
            )
        if self.keep_copies and not self.against:
            yield "keep_copies: found true without against, so nothing would go; name benchmarks"
        if self.against and self.hashes is not None and self.against_words is not None:
            yield (
                f"against_words: found {self.against_words} with hashes, which hold no texts; set"
                " it to null to compare images only, or name inputs"
            )

    @rule
    def _flips_are_near_copies(self) -> Iterator[str]:
        if self.max_distance is None and self.flips:
            yield (
                "flips: found true with max_distance: null, but mirror images are near copies; set"
                " max_distance, or flips: false"
            )
