"""What one bad sample costs: itself. The stages step by step, without Ray."""

from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.support.jobs import job_of
from tests.support.samples import with_image

from consomme.base.errors import DataError, RecipeError
from consomme.base.recipe import check_recipe
from consomme.base.sample import ImageRef, Reject, Sample, Turn, caption_turns, turns_of
from consomme.datasets.sources import SceneSource
from consomme.execution.loading import read_ahead
from consomme.execution.rejects import check_rejects
from consomme.execution.wire import UnitRow
from consomme.execution.worker import UnitWorker
from consomme.models.chat import ChatEncoder
from consomme.models.weights import open_vlm
from consomme.pipelines.score.recipe import ScoreRecipe
from consomme.pipelines.score.stage import PerplexityStage
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.pipelines.train.samples import PreparedSample, Preparer, encode, plan_source
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Work
from consomme.storage.sidecar import read_columns
from consomme.storage.stores.open import open_store
from consomme.storage.units import plan_units, read_unit
from consomme.storage.writers import WebDatasetWriter
from consomme.vision.decode import decode

PROMPT = "describe the image."
GOOD = list(SceneSource(num=6)())


def bad_samples() -> list[Sample]:
    """Six scenes: one truncated, one with a special token in it, one longer than the model."""
    changed = list(GOOD)
    changed[1] = with_image(GOOD[1], GOOD[1].images[0].data[:90])
    changed[3] = GOOD[3].with_caption("a red <image> circle <end>")
    changed[4] = GOOD[4].with_caption("a large word " * 300)
    return changed


EXPECTED = {
    GOOD[1].sample_id: "image_truncated",
    GOOD[3].sample_id: "text_not_encodable",
}


def score(
    folder: Path, samples: list[Sample], model: Path, *, is_read_ahead: bool = False
) -> RunFolder:
    """Read, score and commit as a score run does."""
    writer = WebDatasetWriter(open_store(str(folder / "shards")), "s", max_rows=100)
    for sample in samples:
        writer.write(sample)
    writer.close()
    run = RunFolder.at(str(folder / "run"))
    recipe = ScoreRecipe(
        name="s", model=str(model), inputs=("x",), prompt=PROMPT, token_budget=4096
    )
    attempt = run.start_attempt()
    stage = partial(PerplexityStage, recipe, str(model))
    worker = UnitWorker(job_of(stage, run, "scores"), attempt)
    for unit in plan_units([str(folder / "shards")], "data", 100):
        work = Work(unit=unit)
        row = read_ahead(run.store, work, read_unit) if is_read_ahead else UnitRow(work=work)
        worker(row.pack().to_pylist()[0])
    run.close(attempt)
    return run


@pytest.mark.parametrize("is_read_ahead", [True, False])
def test_scoring_leaves_out_what_cannot_be_scored_and_nothing_else(
    tmp_path: Path, debug_vlm: Path, is_read_ahead: bool
) -> None:
    run = score(tmp_path / "bad", bad_samples(), debug_vlm, is_read_ahead=is_read_ahead)
    reasons = {reject.sample_id: reject.reason for reject in run.rejects()}
    assert reasons == EXPECTED | {GOOD[4].sample_id: "caption_too_long"}
    counts = run.total_counts()
    assert (counts["samples"], counts["rejected"]) == (3, 3)
    assert counts["rejected/text_not_encodable"] == 1

    columns = ["nll", "num_tokens", "perplexity", "image_gain"]
    undisturbed = read_columns(score(tmp_path / "good", GOOD, debug_vlm).url, columns).to_pylist()
    wanted = {row["sample_id"]: row for row in undisturbed}
    kept = read_columns(run.url, columns).to_pylist()
    assert [row["row"] for row in kept] == [0, 2, 5]
    for row in kept:
        for column in columns:
            assert row[column] == pytest.approx(wanted[row["sample_id"]][column], rel=1e-5)


@pytest.fixture(scope="module")
def chat(debug_vlm: Path) -> ChatEncoder:
    model, processor = open_vlm(debug_vlm)
    return ChatEncoder(model.config, processor)


def preparer(chat: ChatEncoder, max_tokens: int = 512) -> Preparer:
    recipe = TrainRecipe(name="t", model="m", data=(TrainSource(view="v"),), prompt=PROMPT)
    return Preparer(recipe, chat, max_tokens)


def test_training_reads_only_what_it_can_train_on(chat: ChatEncoder, tmp_path: Path) -> None:
    writer = WebDatasetWriter(open_store(str(tmp_path)), "s", max_rows=100)
    for sample in bad_samples():
        writer.write(sample)
    writer.close()
    source = TrainSource(inputs=(str(tmp_path),))
    (work,) = plan_source(source, "data[0]").works
    contents = preparer(chat).read(source, work, 0, 0)
    reasons = {reject.sample_id: reject.reason for reject in contents.rejects}
    assert reasons == EXPECTED | {GOOD[4].sample_id: "sequence_too_long"}
    good = [GOOD[0], GOOD[2], GOOD[5]]
    assert [one.sample.sample_id for one in contents.samples] == [one.sample_id for one in good]
    for one, sample in zip(contents.samples, good, strict=True):
        assert one.sample.images[0].data == sample.images[0].data
        spoken = chat.encode(turns_of(sample, PROMPT), [decode(sample.images[0].data)])
        assert encode(chat, one).input_ids == spoken.input_ids
        assert one.num_tokens == len(spoken.input_ids)


def test_conversations_keep_their_own_questions(chat: ChatEncoder) -> None:
    turns = (Turn(role="user", content="what?"), Turn(role="assistant", content="a circle"))
    talk = Sample(**{**vars(GOOD[0]), "turns": turns})
    shown = (Turn(role="user", content=(ImageRef(0), "what?")), turns[1])
    assert turns_of(talk, PROMPT) == shown
    assert turns_of(GOOD[0], PROMPT) == (
        Turn(role="user", content=(ImageRef(0), PROMPT)),
        *caption_turns(GOOD[0].caption),
    )
    broken = Sample(**{**vars(talk), "turns": (Turn(role="user", content="<end>"), turns[1])})
    source = TrainSource(inputs=("x",))
    made = preparer(chat).prepare(talk, source, Random(0))
    assert isinstance(made, PreparedSample)
    assert made.sample.turns == shown
    refused = preparer(chat).prepare(broken, source, Random(0))
    assert isinstance(refused, Reject)
    assert refused.reason == "text_not_encodable"
    silent = Sample(
        **{**vars(talk), "turns": (turns[0], Turn(role="assistant", content=" "), *turns)}
    )
    refused = preparer(chat).prepare(silent, source, Random(0))
    assert isinstance(refused, Reject)
    assert (refused.reason, refused.detail) == ("caption_empty", "the answer in turn 1 is empty")


def test_too_many_rejects_fail_with_the_top_reasons() -> None:
    counts = {"samples": 90, "rejected": 10, "rejected/image_empty": 3, "rejected/image_missing": 7}
    check_rejects(counts, 0.1, "runs/x")
    with pytest.raises(DataError, match=r"10 of 100 .*image_missing 7, image_empty 3.*=0\.05"):
        check_rejects(counts, 0.05, "runs/x")
    with pytest.raises(DataError, match="no samples at all"):
        check_rejects({}, 1.0, "runs/x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_adapter": True}, r"save_adapter: .* found projector: full, language_model: full"),
        (
            {
                "save_adapter": True,
                "projector": {"state": "lora", "rank": 4},
                "language_model": {"state": "lora", "rank": 8},
            },
            "found projector: lora of rank 4, language_model: lora of rank 8",
        ),
        ({"data": []}, "data: found no source"),
        ({"data": [{}]}, r"data\[0\]: expected either view or inputs"),
        ({"global_batch": 2, "num_workers": 3}, "global_batch=2 is less than num_workers=3"),
    ],
)
def test_a_train_recipe_is_checked_before_ray_starts(changes: dict[str, Any], message: str) -> None:
    values = {"name": "t", "model": "m", "data": [{"view": "nowhere"}], **changes}
    with pytest.raises(RecipeError, match=message):
        check_recipe(TrainRecipe, values)
