"""Put columns of one or more taggers beside samples, for a filter to use beside scores.

One decision is made here: taggers of one recipe share everything they can. A unit is read once, its
pictures are decoded once, and only if any tagger looks at pictures; a model that several taggers
name is loaded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest
from consomme.base.schema import runtime, strategy
from consomme.curate.taggers import TAGGERS
from consomme.curate.tagging import Problem, Subject, Tagger
from consomme.pipelines.flow import Pool, run_units
from consomme.pipelines.planning import plan_shards
from consomme.pipelines.runs import begin, check_rejects, folders_of
from consomme.pipelines.session import num_cpus, ray_session
from consomme.pipelines.stage import BytesStage, Decoded, Item, Outcome, UnitStage, reject_of
from consomme.storage.shards import find_shards, shards_fingerprint

TAGS = "tags"
"""Kind of the output files that hold a unit's columns."""

_OWN = ("row", "sample_id", "id_hash", "source", "samples", "rejected")
"""Names that columns and counts of every run have."""

_SHOWN = 12
"""Most frequent values of a column that the final table shows."""


@dataclass(frozen=True, kw_only=True)
class TagRecipe:
    """Columns about samples, kept beside them by unit and row, as scores are."""

    name: str
    """Name of the run."""

    taggers: tuple[dict[str, Any], ...] = strategy("consomme.curate.taggers:TAGGERS")
    """What finds the columns; a filter calls them `tags.COLUMN`."""

    inputs: tuple[str, ...] = ()
    """Shards: files, folders, globs, brace ranges; local, `s3://` or `gs://`."""

    source: str = "data"
    """Name of the data set behind `inputs`, in references and unit ids."""

    sources: dict[str, list[str]] = field(default_factory=dict)
    """More data sets, by name: inputs of each."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    unit_rows: int = 1024
    """Most samples per unit: what is retried, resumed and committed. A filter that uses the tags
    beside scores needs the same number for both."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of models' weights; `auto` is bfloat16 on a GPU. Logits are float32 always."""

    max_reject_fraction: float = runtime(0.01)
    """More rejects than this share fail the run; nothing of it is lost."""

    num_actors: int | None = runtime(None)
    """Most actors; None takes one per GPU if a tagger asks a model, or one per CPU."""

    min_actors: int = runtime(1)
    """Fewest; between the two the pool follows the work and the nodes there are."""

    num_readers: int | None = runtime(None)
    """Tasks that read units ahead of the actors; more hide slow storage, each costs a unit of
    memory. 0 lets actors read for themselves. None: 0 without GPUs, else one per actor."""

    token_budget: int | None = runtime(None)
    """Padded tokens per micro-batch; None takes 1,024 on a CPU and 16,384 on a GPU."""

    def __post_init__(self) -> None:
        """Check that every column is made once."""
        if not self.taggers:
            raise RecipeError("taggers: found none, expected one at least")
        makers: dict[str, list[str]] = {}
        for node in self.taggers:
            for column in TAGGERS.build(node, "taggers").columns:
                makers.setdefault(column, []).append(str(node["name"]))
        for column, names in makers.items():
            if len(names) > 1:
                raise RecipeError(
                    f"taggers: {' and '.join(names)} both make the column {column!r}; give one of"
                    " them another `column`, or leave it out"
                )
            if column in _OWN:
                raise RecipeError(
                    f"taggers: {names[0]} makes the column {column!r}, which every run has; give it"
                    " another name"
                )


class _Taggers:
    """All taggers of a recipe, open."""

    def __init__(
        self,
        nodes: Sequence[Mapping[str, Any]],
        folders: Mapping[str, str],
        token_budget: int | None,
        dtype: str,
    ) -> None:
        from consomme.pipelines.tag_models import OpenModels

        models = OpenModels(folders, token_budget, dtype)
        self.taggers = [TAGGERS.build(node, "taggers") for node in nodes]
        self.tags = [tagger.open(models) for tagger in self.taggers]

    def outcome(self, rows: Sequence[int], subjects: Sequence[Subject]) -> Outcome:
        """Tag some samples; one that any tagger has a problem with is rejected."""
        found = [tag(subjects) for tag in self.tags]
        problems: dict[int, Problem] = {}
        for tags in reversed(found):
            problems |= tags.problems
        good = [k for k in range(len(subjects)) if k not in problems]
        columns: dict[str, Any] = {
            "row": pa.array([rows[k] for k in good], pa.int32()),
            "sample_id": pa.array([subjects[k].sample.sample_id for k in good], pa.string()),
        }
        counts: dict[str, int] = {}
        for tagger, tags in zip(self.taggers, found, strict=True):
            for name, kind in tagger.columns.items():
                values = [tags.columns[name][k] for k in good]
                columns[name] = pa.array(values, kind)
                if kind == pa.string():
                    for value in values:
                        counts[f"{name}/{value}"] = counts.get(f"{name}/{value}", 0) + 1
        rejects = [
            (rows[k], reject_of(subjects[k].sample, problem.reason, problem.detail))
            for k, problem in sorted(problems.items())
        ]
        return Outcome(table=pa.table(columns), rejects=rejects, counts=counts)


class SeeingTagStage(UnitStage):
    """Tag samples with their pictures decoded."""

    def __init__(self, **options: Any) -> None:
        """Open the taggers."""
        self.taggers = _Taggers(**options)

    def work(self, samples: Sequence[Decoded]) -> Outcome:
        """Tag one unit, or a piece of it."""
        subjects = [Subject(sample=item.sample, image=item.image) for item in samples]
        return self.taggers.outcome([item.row for item in samples], subjects)


class BlindTagStage(BytesStage):
    """Tag samples without a look at their pictures."""

    def __init__(self, **options: Any) -> None:
        """Open the taggers."""
        self.taggers = _Taggers(**options)

    def work(self, samples: Sequence[Item]) -> Outcome:
        """Tag one unit."""
        subjects = [Subject(sample=item.sample) for item in samples]
        return self.taggers.outcome([item.row for item in samples], subjects)


def run(recipe: TagRecipe) -> Manifest:
    """Tag every sample of the inputs exactly once; running again does what is missing."""
    from consomme.evaluate.cache import model_content_hash
    from consomme.pipelines.checkpoints import model_folder

    taggers = [TAGGERS.build(node, "taggers") for node in recipe.taggers]
    shards = find_shards(recipe.inputs, recipe.source, recipe.sources)
    folders = {tagger.model: model_folder(tagger.model) for tagger in taggers if tagger.model}
    inputs = {"data": shards_fingerprint(shards)}
    inputs |= {f"model {name}": model_content_hash(path) for name, path in folders.items()}
    inputs |= {
        f"tagger {node['name']}": tagger.knowledge
        for node, tagger in zip(recipe.taggers, taggers, strict=True)
        if tagger.knowledge
    }
    reads = [*folders_of(shards), *folders.values()]
    attempt = begin("tag", recipe, inputs=inputs, reads=reads)
    if attempt.folder.is_done:
        return attempt.folder.manifest()
    sees = any(tagger.needs_pictures for tagger in taggers)
    with ray_session():
        run_units(
            plan_shards(attempt.folder, shards, recipe.unit_rows),
            attempt.folder,
            kind=TAGS,
            stage=SeeingTagStage if sees else BlindTagStage,
            stage_options={
                "nodes": [dict(node) for node in recipe.taggers],
                "folders": folders,
                "token_budget": recipe.token_budget,
                "dtype": recipe.dtype,
            },
            what="tag",
            pool=_pool(recipe, asks_models=bool(folders)),
            max_reject_fraction=recipe.max_reject_fraction,
        )
    counts = attempt.folder.total_counts()
    check_rejects(counts, recipe.max_reject_fraction, attempt.folder.url)
    return attempt.finish(
        counts=counts,
        decisions=_table(taggers, counts),
        outputs={"tags": "data", "rejects": "rejects"},
    )


def _table(taggers: Sequence[Tagger], counts: Mapping[str, int]) -> dict[str, Any]:
    """Show how often each value of the columns of text was found."""
    rows: list[list[Any]] = []
    for column in [c for t in taggers for c, kind in t.columns.items() if kind == pa.string()]:
        found = {
            name.removeprefix(f"{column}/"): number
            for name, number in counts.items()
            if name.startswith(f"{column}/")
        }
        ranked = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
        rows += [[column, value or "(none)", f"{number:,}"] for value, number in ranked[:_SHOWN]]
        rest = sum(number for _, number in ranked[_SHOWN:])
        if rest:
            rows.append([column, f"{len(ranked) - _SHOWN} more values", f"{rest:,}"])
    if not rows:
        return {}
    return {
        "table": {
            "title": "What was found",
            "columns": ["column", "value", "samples"],
            "rows": rows,
        }
    }


def _pool(recipe: TagRecipe, *, asks_models: bool) -> Pool:
    """One actor per GPU where models are asked and GPUs are there; else one per CPU."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0)) if asks_models else 0
    return Pool(
        max_actors=recipe.num_actors or gpus or num_cpus(),
        min_actors=recipe.min_actors,
        num_readers=recipe.num_readers,
        cpus=0.8,
        gpus=1.0 if gpus else 0.0,
    )
