"""A Ray Data source whose every block is one unit, read when the next stages have room.

We cut the reading tasks, not Ray. Ray delays a task while the next stages are full, and neither
splits nor merges what a task yields.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from consomme.execution.ray_private import LOGGERS, ray_private


class UnitReadTask(NamedTuple):
    """Reads some units in a task."""

    tables: Callable[[], Iterable[pa.Table]]
    """Yields one table of one row per unit."""

    num_units: int


class UnitSource(Datasource):  # type: ignore[misc]
    """A Ray Data source whose blocks are units; see the module docstring."""

    def __init__(self, name: str, tasks: Sequence[UnitReadTask]) -> None:
        """Keep the tasks; nothing is read yet.

        Args:
            name: Of the stage in Ray's own reports.
            tasks: In the order in which they begin.
        """
        super().__init__()
        self.name, self.tasks = name, tasks

    def get_name(self) -> str:
        """Name of the stage in Ray's own reports."""
        return self.name

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return one Ray task for each of ours, whatever parallelism Ray asks for."""
        return [
            ReadTask(
                task.tables,
                BlockMetadata(
                    num_rows=task.num_units, size_bytes=None, input_files=None, exec_stats=None
                ),
            )
            for task in self.tasks
        ]


def where_cpus_are() -> dict[str, Any]:
    """Return options that keep tasks that claim no CPU away from nodes without CPUs.

    Otherwise Ray sends some to the head node, which is often declared with no CPUs so that nothing
    runs there, and where Ray ends each process as soon as it is idle.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    bare = [node["NodeID"] for node in alive if not node["Resources"].get("CPU")]
    if not bare:
        return {}
    return {"label_selector": {ray_private("NODE_ID_LABEL"): f"!in({','.join(bare)})"}}


def unit_context() -> Any:
    """Return Ray Data's context of this process, set up for units; its log lines are not shown.

    Each row is a block of its own, so a unit never waits for another or fails with it.
    """
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context
