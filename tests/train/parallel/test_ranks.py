"""Two ranks train as one, and a batch that cannot be learned from stops the run.

The model here is a table of bigrams, so that a second process starts without transformers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from consomme.base.errors import DataError
from consomme.base.process import end
from consomme.models.batches import IGNORE_INDEX
from consomme.train.loop import Batch, ScheduleConfig, StepReport, fit
from consomme.train.parallel.ddp_fsdp2 import Ddp
from consomme.train.parts import ParamGroup


def train(model: Any, batches: Any, num_steps: int) -> list[StepReport]:
    reports: list[StepReport] = []
    group = ParamGroup(names=("table.weight",), lr=0.1, weight_decay=0.0)
    sharded = Ddp()(model, [group], torch.device("cpu"))
    fit(sharded, batches, ScheduleConfig(num_steps=num_steps), start=0, after_step=reports.append)
    return reports


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Bigram(nn.Module):
    """The smallest language model there is: the next token from this one."""

    def __init__(self, size: int = 11) -> None:
        super().__init__()
        self.table = nn.Embedding(size, size)
        nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, input_ids: Tensor) -> Output:
        return Output(self.table(input_ids))


def bigram_rows(step: int) -> list[Batch]:
    """Four rows per step with differing numbers of labelled tokens."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 11, (4, 9), generator=generator)
    labels = ids.clone()
    for row in range(4):
        labels[row, : 2 * row + 1] = IGNORE_INDEX
    return [{"input_ids": ids[row : row + 1], "labels": labels[row : row + 1]} for row in range(4)]


def train_bigram(rank: int, world: int) -> list[float]:
    """Losses and the table's sum; as one of `world` ranks."""
    model: Any = Bigram()
    reports = train(model, lambda step: bigram_rows(step)[rank::world], 4)
    table = next(model.parameters())
    return [*[report.loss for report in reports], float(table.detach().double().pow(3).sum())]


def rank_main(rank: int, world: int, rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world
    )
    Path(out).write_text(json.dumps(train_bigram(rank, world)))
    # A rank that exits first may crash the other one.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # A thread of gloo that frees a tensor while the interpreter is torn down would abort it.
    end(0)


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    ranks = []
    for rank in range(2):
        arguments = (rank, 2, str(tmp_path / "meet"), str(tmp_path / f"{rank}.json"))
        program = f"import runpy; runpy.run_path({__file__!r})['rank_main'](*{arguments!r})"
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        )
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first == pytest.approx(train_bigram(0, 1), rel=1e-5)


def test_no_labelled_token_is_an_error() -> None:
    rows = [{**row, "labels": torch.full((1, 9), IGNORE_INDEX)} for row in bigram_rows(0)]
    with pytest.raises(DataError, match="step 1: no labelled token in the whole batch"):
        train(Bigram(), lambda step: rows, 2)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = Bigram()
    with torch.no_grad():
        model.table.weight[:] = float("nan")
    with pytest.raises(DataError, match="step 1: the loss is nan; lower lr"):
        train(model, bigram_rows, 2)
