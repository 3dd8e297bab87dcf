"""The stages of `tag`: with decoded pictures, or without decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from consomme.curate.tag.registry import TAGGERS
from consomme.curate.tag.tagger import TaggerInput, TagProblem
from consomme.execution.stage import (
    BytesStage,
    DecodedSample,
    Outcome,
    UnitSample,
    UnitStage,
    reject_of,
)

if TYPE_CHECKING:
    from consomme.pipelines.tag.recipe import TagRecipe
    from consomme.storage.ledger.run_folder import RunFolder

TAGS = "tags"
"""Kind of the output files that hold a unit's columns."""


class _OpenTaggers:
    """All taggers of a recipe, opened."""

    def __init__(
        self,
        recipe: TagRecipe,
        folders: Mapping[str, str],
        hashes: Mapping[str, str],
        run_folder: RunFolder | None,
    ) -> None:
        from consomme.pipelines.tag.models import OpenModels

        models = OpenModels(
            folders, recipe.token_budget, recipe.dtype, hashes=hashes, run_folder=run_folder
        )
        self.taggers = [TAGGERS.build(node, "taggers") for node in recipe.taggers]
        self.tags = [tagger.open(models) for tagger in self.taggers]

    def outcome(self, rows: Sequence[int], inputs: Sequence[TaggerInput]) -> Outcome:
        """Tag samples; a sample is rejected if any tagger cannot tag it."""
        results = [tag(inputs) for tag in self.tags]
        problems: dict[int, TagProblem] = {}
        for tags in reversed(results):
            problems |= tags.problems
        good = [k for k in range(len(inputs)) if k not in problems]
        columns: dict[str, Any] = {
            "row": pa.array([rows[k] for k in good], pa.int32()),
            "sample_id": pa.array([inputs[k].sample.sample_id for k in good], pa.string()),
        }
        counts: dict[str, int] = {}
        for tagger, tags in zip(self.taggers, results, strict=True):
            for name, kind in tagger.columns.items():
                values = [tags.columns[name][k] for k in good]
                columns[name] = pa.array(values, kind)
                if kind == pa.string():
                    for value in values:
                        key = f"{name}/{value or ''}"
                        counts[key] = counts.get(key, 0) + 1
        rejects = [
            (rows[k], reject_of(inputs[k].sample, problem.reason, problem.detail))
            for k, problem in sorted(problems.items())
        ]
        return Outcome(table=pa.table(columns), rejects=rejects, counts=counts)


class PictureTagStage(UnitStage):
    """Tag samples with their pictures decoded."""

    def __init__(
        self,
        recipe: TagRecipe,
        folders: Mapping[str, str],
        *,
        hashes: Mapping[str, str] | None = None,
        run_folder: RunFolder | None = None,
    ) -> None:
        """Open the taggers.

        Args:
            recipe: The recipe of the run.
            folders: Folder on this machine of each model that the taggers name.
            hashes: Of the models' content, for the cache of self-checks.
            run_folder: Of the run; the results of self-checks are written there.
        """
        self.taggers = _OpenTaggers(recipe, folders, hashes or {}, run_folder)

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        """Tag one unit, or a piece of it."""
        inputs = [TaggerInput(sample=item.sample, images=item.images) for item in samples]
        return self.taggers.outcome([item.row for item in samples], inputs)


class TextTagStage(BytesStage):
    """Tag samples without decoding their pictures."""

    def __init__(
        self,
        recipe: TagRecipe,
        folders: Mapping[str, str],
        *,
        hashes: Mapping[str, str] | None = None,
        run_folder: RunFolder | None = None,
    ) -> None:
        """Open the taggers.

        Args:
            recipe: The recipe of the run.
            folders: Folder on this machine of each model that the taggers name.
            hashes: Of the models' content, for the cache of self-checks.
            run_folder: Of the run; the results of self-checks are written there.
        """
        self.taggers = _OpenTaggers(recipe, folders, hashes or {}, run_folder)

    def work(self, samples: Sequence[UnitSample]) -> Outcome:
        """Tag one unit."""
        inputs = [TaggerInput(sample=item.sample) for item in samples]
        return self.taggers.outcome([item.row for item in samples], inputs)
