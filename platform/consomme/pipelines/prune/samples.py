"""Calibration samples: a few of each source, drawn by the seed, and read as `train` reads them."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from consomme.base.errors import DataError
from consomme.models.attention import max_positions
from consomme.models.batches import Batcher
from consomme.pipelines.prune.recipe import PruneRecipe
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.pipelines.train.samples import PreparedSample, Preparer, encode, plan_source
from consomme.prune.checking import to_device
from consomme.storage.plan import Work, pack_rows

logger = logging.getLogger(__name__)

_SPARE_ROWS = 8
"""Rows that are read beyond those needed, in the place of rejects."""


def calibration_recipe(recipe: PruneRecipe) -> TrainRecipe:
    """Return the train recipe whose samples are the calibration samples."""
    return TrainRecipe(
        name=recipe.name,
        model=recipe.model,
        data=recipe.data,
        prompt=recipe.prompt,
        max_tokens=recipe.max_tokens,
        template=recipe.template,
        layers=recipe.protect or {"name": "all"},
        seed=recipe.seed,
    )


class CalibrationSamples:
    """The inputs of the calibration samples, encoded once."""

    def __init__(self, recipe: TrainRecipe, num_samples: int, model: Any, chat: Any) -> None:
        """Read and encode the samples.

        Args:
            recipe: Returned by `calibration_recipe`, with paths for this machine.
            num_samples: Wanted of all sources together.
            model: The open model.
            chat: Its encoder of conversations.

        Raises:
            DataError: A source has no sample that the model takes.
        """
        self._batcher, self._model = Batcher(model, chat.tokenizer), model
        preparer = Preparer(recipe, chat, max_positions(model.config))
        self._rows = []
        share = math.ceil(num_samples / len(recipe.data))
        self.ids: list[str] = []
        for number, source in enumerate(recipe.data):
            for prepared in drawn(preparer, source, number, share, recipe.seed):
                self.ids.append(prepared.sample.sample_id)
                self._rows.append(encode(chat, prepared))

    @property
    def num_images(self) -> int:
        """Samples that have an image."""
        return sum(row.pixels is not None for row in self._rows)

    def batches(self, num: int | None = None) -> Iterator[Mapping[str, Any]]:
        """Yield the inputs of the samples, or of the first few, one at a time."""
        for row in self._rows[:num]:
            yield to_device(self._batcher.collate([row]), self._model)


def drawn(
    preparer: Preparer, source: TrainSource, number: int, count: int, seed: int
) -> list[PreparedSample]:
    """Draw samples of a source; no more of it is read than needed.

    Args:
        preparer: Reads and checks them.
        source: The source.
        number: Of the source.
        count: Samples wanted; fewer if the source has fewer.
        seed: Of the draw.

    Raises:
        DataError: The model takes none of the samples.
    """
    draw = random.Random(f"prune-{seed}-{number}")
    works = list(plan_source(source, f"data[{number}]").works)
    draw.shuffle(works)
    # Some of each unit: neighbours in a shard are often alike. What is still missing then comes
    # from whichever unit has more.
    share = max(1, math.ceil(count / len(works)))
    found: dict[str, PreparedSample] = {}
    rejects = []
    for limit in (share, count):
        for work in works:
            wanted = min(limit, count - len(found))
            if wanted <= 0:
                break
            rows = list(range(work.unit.count)) if work.rows is None else work.rows
            some = sorted(draw.sample(rows, min(len(rows), wanted + _SPARE_ROWS)))
            part = Work(unit=work.unit, bitmap=pack_rows(work.unit, some))
            contents = preparer.read(source, part, number, epoch=0)
            rejects += contents.rejects
            new = [one for one in contents.samples if one.sample.sample_id not in found]
            found |= {one.sample.sample_id: one for one in new[:wanted]}
    if not found:
        why = f"; {rejects[0].reason}: {rejects[0].detail}" if rejects else ""
        raise DataError(
            f"data[{number}]: the model takes none of {len(rejects)} samples that were read{why}"
        )
    if len(found) < count:
        logger.info("prune: data[%d] gave %d samples, %d wanted", number, len(found), count)
    return list(found.values())
