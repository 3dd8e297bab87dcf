"""Models with tilings in scoring, training and captioning, against plain transformers.

The cells are those of the table of families: perplexities of several budgets, with pictures and
without; the loss of a step, padded and packed; parts by gradients; and texts of a batch.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import family_table
from tests.support.families import noise, write
from tests.support.family_table import OK, VERBS, run_cell, write_family
from tests.support.tiled import TILED

from consomme.base.errors import CheckpointError
from consomme.base.sample import ImageRef, Turn
from consomme.curate.perplexity import token_nll
from consomme.engines.scoring.requests import Score, ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_vlm
from consomme.train.packing import RowLayout

QUICK = ("catty_llava",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in TILED],
)
def test_every_verb_does_what_plain_transformers_does(tmp_path: Path, name: str) -> None:
    write_family(TILED[name], tmp_path / name)
    # Of few tiles and of many, so that a batch has pictures of different token counts.
    assert family_table.SIZES == ((40, 40), (90, 30))
    found = {verb: run_cell(verb, tmp_path / name) for verb in VERBS}
    assert {verb: cell.state for verb, cell in found.items()} == dict.fromkeys(VERBS, OK), found


@pytest.mark.slow
def test_several_pictures_of_a_conversation_are_scored_as_one_by_one(tmp_path: Path) -> None:
    folder = write(TILED["catty_llava"], tmp_path / "tiled")
    turns = (
        Turn(role="user", content=(ImageRef(0), "star?")),
        Turn(role="assistant", content="a large red circle"),
        Turn(role="user", content=("and ", ImageRef(1), " this?")),
        Turn(role="assistant", content="it is green"),
    )
    images = [(noise(0, 90, 30), noise(1, 30, 60)), (noise(2, 40, 40), noise(3, 25, 70))]
    requests = [
        ScoringRequest(turns=turns, images=some, keys=(f"{n}a", f"{n}b"))
        for n, some in enumerate(images)
    ]
    scores = {}
    for budget in (1, 100_000):
        scorer = TransformersScorer(folder, token_nll, token_budget=budget)
        assert not scorer.check.failed
        scores[budget] = scorer.score(requests)
    for alone, together in zip(scores[1], scores[100_000], strict=True):
        assert isinstance(alone, Score)
        assert isinstance(together, Score)
        assert alone.num_tokens == together.num_tokens
        assert alone.nll == pytest.approx(together.nll, rel=1e-5)


def test_vllm_is_not_given_pictures_that_it_would_cut_otherwise(tmp_path: Path) -> None:
    from consomme.engines.vllm_engine import EngineOptions, open_engine

    folder = write(TILED["catty_llava"], tmp_path)
    with pytest.raises(CheckpointError, match=r"catty.*vLLM does not know.*name: transformers"):
        open_engine(str(folder), EngineOptions())


def test_packing_fills_rows_by_counted_tokens(tmp_path: Path) -> None:
    """The number that a row is packed by is that of the tokens which it then has."""
    from consomme.models.batches import Batcher
    from consomme.models.token_counts import token_counter_for

    model, processor = open_vlm(write(TILED["catty_llava"], tmp_path))
    chat = chat_encoder_for(model.config, processor)
    batcher = Batcher(model, chat.tokenizer)
    turns = (Turn(role="user", content="star?"), Turn(role="assistant", content="it is green"))
    sizes = [(90, 30), (40, 40), (30, 120), (200, 40), (64, 64), (33, 32)]
    lengths = [token_counter_for(chat).count(turns, [size]).num_tokens for size in sizes]
    capacity = max(lengths) + min(lengths)
    (passes,) = RowLayout(micro_batch=1, pack_tokens=capacity).split(lengths, 1)
    assert len(passes) < len(sizes)
    for ((*samples,),) in passes:
        rows = [chat.encode(turns, [noise(k, *sizes[k])]) for k in samples]
        packed = batcher.pack(rows)
        assert packed["input_ids"].shape[1] == sum(lengths[k] for k in samples) <= capacity
