"""A training is planned from its recipe alone; what cannot fit is refused with advice."""

import dataclasses
import io
import logging
from pathlib import Path

import pytest
from PIL import Image

from consomme.base.errors import RecipeError
from consomme.base.sample import ImageFile, Sample, caption_turns
from consomme.cli import run_command
from consomme.pipelines.train.machine import Machine, check, misfit, utilization
from consomme.pipelines.train.plan import plan, plan_of, summary_lines
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.storage.writers import tar_bytes

GPU = Machine(device="cuda", gpu_name="NVIDIA L4", gpu_bytes=24 * 10**9, memory_bytes=64 * 10**9)

CPU = Machine(device="cpu", memory_bytes=64 * 10**9)


@pytest.fixture(scope="module")
def recipe(debug_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainRecipe:
    rows = []
    for number in range(40):
        out = io.BytesIO()
        Image.new("RGB", (32, 32), (number, 90, 20)).save(out, "PNG")
        rows.append(
            Sample(
                sample_id=f"{number:03d}",
                images=(ImageFile(data=out.getvalue(), name=f"{number:03d}.png"),),
                turns=caption_turns("a red circle, " * (1 + number % 3)),
                source="data",
                meta={},
            )
        )
    shard = tmp_path_factory.mktemp("shards") / "a.tar"
    shard.write_bytes(tar_bytes(rows))
    return TrainRecipe(
        name="x", model=str(debug_vlm), data=(TrainSource(inputs=(str(shard),)),), global_batch=8
    )


def test_what_is_told_is_what_the_parts_are(recipe: TrainRecipe, debug_vlm: Path) -> None:
    made = plan_of(recipe, str(debug_vlm), GPU)
    trained = made.num_trained
    assert made.kinds["optimizer"].device == 8 * trained
    assert made.checkpoint_bytes == 12 * trained
    assert made.saving_fraction == 0
    sparse = dataclasses.replace(recipe, layers={"name": "sparse_uniform"}, num_workers=2)
    some = plan_of(sparse, str(debug_vlm), GPU)
    assert some.num_trained < trained / 2
    assert some.kinds["buffers"].device == 4 * some.num_trained
    assert 1 / 4 < plan_of(sparse, str(debug_vlm), CPU).saving_fraction < 1 / 2
    text = "\n".join(summary_lines(some))
    assert f"predicted to take {some.saving_fraction:.0%} less time" in text
    # Texts have three lengths, of which the longest counts.
    assert "lengths are those of the first 32 samples" in some.notes[0]
    longer = dataclasses.replace(recipe, micro_batch=2)
    assert plan_of(longer, str(debug_vlm), GPU).num_micro_batches == 4


def test_packed_rows_are_planned_as_full_as_they_get(recipe: TrainRecipe, debug_vlm: Path) -> None:
    padded = plan_of(recipe, str(debug_vlm), GPU)
    packed = plan_of(dataclasses.replace(recipe, pack_tokens=100), str(debug_vlm), GPU)
    assert packed.num_micro_batches > padded.num_micro_batches
    assert packed.kinds["activations"].device < padded.kinds["activations"].device


def test_what_cannot_fit_is_refused(recipe: TrainRecipe, debug_vlm: Path) -> None:
    made = plan_of(recipe, str(debug_vlm), GPU)
    assert misfit(made, GPU, recipe) is None
    small = dataclasses.replace(GPU, gpu_bytes=made.exact.device - 1)
    with pytest.raises(RecipeError) as refused:
        check(made, small, recipe)
    for part in (
        "a worker needs",
        "on its GPU, and NVIDIA L4 has",
        "activations not counted",
        "{name: fsdp2}",
        "offload: true",
        "fewer layers",
        "lora",
    ):
        assert part in str(refused.value), part
    check(made, dataclasses.replace(GPU, gpu_bytes=made.exact.device), recipe)
    # A machine has to hold the models of all its workers while they are opened.
    two = dataclasses.replace(recipe, num_workers=2)
    both = plan_of(two, str(debug_vlm), GPU)
    tight = dataclasses.replace(GPU, memory_bytes=2 * both.loading.host - 1)
    assert "2 of 2 workers on one machine need" in str(misfit(both, tight, two))
    assert misfit(both, dataclasses.replace(tight, num_machines=2), two) is None


def test_what_may_not_fit_warns(
    recipe: TrainRecipe, debug_vlm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = plan_of(recipe, str(debug_vlm), GPU)
    with caplog.at_level(logging.WARNING):
        check(made, GPU, recipe)
        assert not caplog.records
        check(made, dataclasses.replace(GPU, gpu_bytes=made.step.device - 1), recipe)
    assert "if the estimate of activations is right; a smaller micro_batch" in caplog.text


def test_shards_never_need_a_gpu_for_the_whole_model(recipe: TrainRecipe, debug_vlm: Path) -> None:
    replicas = dataclasses.replace(recipe, num_workers=4)
    shards = dataclasses.replace(replicas, parallelism={"name": "fsdp2"})
    whole, cut = (plan_of(one, str(debug_vlm), GPU) for one in (replicas, shards))
    assert cut.loading.device == 0 < cut.loading.host == whole.loading.host
    tight = dataclasses.replace(GPU, gpu_bytes=whole.loading.device - 1)
    assert misfit(cut, tight, shards) is None
    assert "on its GPU" in str(misfit(whole, tight, replicas))


def test_offload_moves_memory_to_the_host(recipe: TrainRecipe, debug_vlm: Path) -> None:
    node = {"name": "fsdp2", "offload": True}
    made = plan_of(dataclasses.replace(recipe, parallelism=node), str(debug_vlm), GPU)
    for kind in ("weights", "gradients", "optimizer"):
        assert made.kinds[kind].device == 0 < made.kinds[kind].host
    assert made.exact.device == made.loading.device == 0
    assert made.kinds["buffers"].device > 0


def test_the_command_plans_and_makes_no_run(
    recipe: TrainRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(
        f"name: x\nmodel: {recipe.model}\nroot: {tmp_path}/runs\nglobal_batch: 8\n"
        f"data: [{{inputs: [{recipe.data[0].inputs[0]}]}}]\n"
    )
    for command in (["plan", str(path)], ["train", str(path), "--plan"]):
        assert run_command([*command, "layers.name=sparse_uniform"]) == 0
        shown = capsys.readouterr().out
        for part in ("optimizer", "exact", "a checkpoint takes", "less time", "no run was made"):
            assert part in shown, part
    assert not (tmp_path / "runs").exists()
    assert run_command(["plan", str(path), "--plan"]) == 2
    # A language model's projector does not exist: the same message that training would give.
    assert run_command(["plan", str(path), "projector.state=frozen", "language_model.state=frozen"])
    assert "nothing would be trained" in capsys.readouterr().err


def test_by_score_is_planned_as_an_even_choice(recipe: TrainRecipe) -> None:
    node = {"name": "by_score", "measure": "block_influence", "fraction": 0.5}
    seen = plan(dataclasses.replace(recipe, layers=node))
    assert any("selected by score later" in note for note in seen.notes)


def test_utilization_is_told_only_of_known_gpus(recipe: TrainRecipe) -> None:
    bf16 = dataclasses.replace(recipe, precision="bfloat16", num_workers=2)
    found = utilization(bf16, "NVIDIA A100-SXM4-80GB", 6e9, 52_000)
    assert found == {"train/mfu_fraction": pytest.approx(0.5)}
    assert utilization(bf16, None, 6e9, 52_000) == {}
