"""Refuse a run that asks for more than its machine or cluster has and can get.

Ray itself waits for what is missing, for ever, because an autoscaler might bring it. Without a
cluster there is none, so the check needs no Ray; on a cluster it follows the connection.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from consomme.base.errors import RecipeError
from consomme.base.needs import HasNeeds, Need
from consomme.execution.ray_private import ray_private

logger = logging.getLogger(__name__)

_RECIPES: ContextVar[tuple[HasNeeds, ...]] = ContextVar("recipes", default=())
"""Recipes to check once the cluster is known."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """CPUs and GPUs that Ray may hand out."""

    where: str
    """Subject of a message: `this machine`, `the cluster`."""

    cpus: float
    gpus: float
    node_cpus: float
    """Of the largest node."""

    can_grow: bool = False
    """Whether an autoscaler may add nodes of unknown size."""


def check_capacity(recipe: Any, where: str = "") -> None:
    """Check what a recipe claims, now if this machine is the cluster, else once it is joined.

    Raises:
        RecipeError: It claims more than there is.
    """
    if not isinstance(recipe, HasNeeds):
        return
    if os.environ.get("RAY_ADDRESS"):
        _RECIPES.set((*_RECIPES.get(), recipe))
    else:
        _check(recipe, this_machine(), where)


def check_cluster() -> None:
    """Check the recipes that wait for it against the cluster that was just joined."""
    recipes = _RECIPES.get()
    _RECIPES.set(())
    if recipes:
        capacity = cluster()
        for recipe in recipes:
            _check(recipe, capacity, "")


def this_machine() -> Capacity:
    """Return what a private Ray on this machine will have, by Ray's own counting."""
    cpus = float(ray_private("get_num_cpus")())
    manager = ray_private("NvidiaGPUAcceleratorManager")
    gpus = int(manager.get_current_node_num_accelerators())
    visible = manager.get_current_process_visible_accelerator_ids()
    if visible is not None:
        gpus = min(gpus, len(visible))
    return Capacity(where="this machine", cpus=cpus, gpus=float(gpus), node_cpus=cpus)


def cluster() -> Capacity:
    """Return what the joined cluster has, or may have at most by its autoscaler's configuration."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = ray_private("state").get_max_resources_from_cluster_config() or {}
    cpus, gpus = (
        max(sum(node.get(name, 0.0) for node in nodes), float(most.get(name, 0)))
        for name in ("CPU", "GPU")
    )
    return Capacity(
        where="the cluster",
        cpus=cpus,
        gpus=gpus,
        node_cpus=max((node.get("CPU", 0.0) for node in nodes), default=0.0),
        # KubeRay's autoscaler does not tell Ray how far it may go.
        can_grow=not most and "KUBERNETES_SERVICE_HOST" in os.environ,
    )


def problems(needs: Sequence[Need], capacity: Capacity) -> list[str]:
    """Say which needs a cluster cannot meet."""
    found = []
    for name in ("cpus", "gpus"):
        claims = [need for need in needs if getattr(need, name)]
        total = sum(need.count * getattr(need, name) for need in claims)
        there = getattr(capacity, name)
        # The claims of actors add up to a share of a CPU that binary fractions miss.
        if total > there + 1e-6:
            keys = ", ".join(dict.fromkeys(need.key for need in claims))
            found.append(
                f"{keys}: needs {total:g} {name.upper()[:-1]}s at the same time, and"
                f" {capacity.where} has {there:g}"
            )
    found += [
        f"{need.key}: needs {need.cpus:g} CPUs on one node, and the largest of {capacity.where} has"
        f" {capacity.node_cpus:g}"
        for need in needs
        if need.cpus > capacity.node_cpus + 1e-6 and not found
    ]
    return found


def _check(recipe: HasNeeds, capacity: Capacity, where: str) -> None:
    found = problems(list(recipe.needs(capacity.gpus)), capacity)
    if not found:
        return
    text = "; ".join(f"{where}{problem}" for problem in found)
    if capacity.can_grow:
        logger.warning(
            "%s now; the run waits until an autoscaler brings more, for ever if there is none", text
        )
        return
    raise RecipeError(f"{text}. Lower it, or run on a cluster that has as much")
