"""Plan what a train recipe takes, without reading any weight.

The model is built from shapes alone and marked by the same function as in training, so what is
planned is what is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consomme.pipelines.train.lengths import lengths_of
from consomme.pipelines.train.machine import Machine, misfit, size_text, this_machine
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.storage.model_folder import model_folder

if TYPE_CHECKING:
    from consomme.train.planner import ResourcePlan


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Plan of a run as the command line shows it."""

    name: str
    table: Mapping[str, Any]
    notes: tuple[str, ...]


def plan(recipe: TrainRecipe) -> TrainPlan:
    """Plan a run for this machine; nothing is started, and no weight is read.

    Raises:
        RecipeError: The recipe asks for something that cannot be trained.
        CheckpointError: The model does not exist.
    """
    machine = this_machine()
    resources = plan_of(recipe, recipe.model, machine)
    problem = misfit(resources, machine, recipe)
    return TrainPlan(
        name=recipe.name,
        table=table_of(resources),
        notes=(
            *summary_lines(resources),
            *resources.notes,
            *([f"on this machine: {problem}"] if problem else []),
        ),
    )


def plan_of(recipe: TrainRecipe, start: str, machine: Machine) -> ResourcePlan:
    """Plan a run.

    Args:
        recipe: The run's.
        start: The model that training starts from, as `model_folder` takes it.
        machine: Machine that workers run on.
    """
    import torch

    from consomme.models.attention import packing_masks
    from consomme.models.weights import build_from_config
    from consomme.train.activations import SavedActivations, saved_activations
    from consomme.train.cost import step_cost
    from consomme.train.parallel.registry import PARALLELISMS
    from consomme.train.planner import make_plan, tensors_of
    from consomme.train.trainable import set_trainable

    notes: list[str] = []
    if recipe.min_workers is not None and recipe.min_workers < recipe.num_workers:
        notes.append(
            f"planned for {recipe.num_workers} workers; with fewer, each may need more memory"
        )
    start = model_folder(start, has_weights=False)
    samples_per_rank = recipe.global_batch / recipe.num_workers

    def marked(selected: Sequence[int] | None) -> tuple[Any, Any]:
        with torch.device("meta"):
            model = build_from_config(start)
            every = range(model.config.get_text_config().num_hidden_layers)
            chosen = every if selected is None else selected
            return model, set_trainable(model, recipe.trainability, chosen, lr=recipe.lr)

    def cost_of(model: Any, lowest_layer: int | None) -> Any:
        return step_cost(
            model,
            lowest_layer,
            lengths.mean,
            num_samples=samples_per_rank,
            checkpointing=recipe.activation_checkpointing,
            device=machine.device,
        )

    whole, trained_whole = marked(None)
    packing = packing_masks(whole)
    if recipe.pack_tokens is not None and isinstance(packing, str):
        notes.append(f"samples are not packed: {packing}")
    lengths = lengths_of(recipe, start, notes, can_pack=not isinstance(packing, str))
    num_layers = whole.config.get_text_config().num_hidden_layers
    cost_of_all = cost_of(whole, trained_whole.lowest_layer)
    selected = _selected(recipe, num_layers, notes)
    model, trained = (whole, trained_whole)
    if len(selected) < num_layers:
        model, trained = marked(selected)
    activations: SavedActivations | None = None
    if lengths.in_pass is not None:
        try:
            activations = saved_activations(
                model,
                trained.lowest_layer,
                lengths.in_pass,
                num_samples=lengths.num_rows,
                precision=recipe.precision,
            )
        except Exception as error:  # noqa: BLE001 - an estimate must not stop a run.
            # Some families' forward pass needs more than embeddings, which are all it gets here.
            reason = str(error).partition("\n")[0]
            notes.append(f"activations are unknown: {type(error).__name__}: {reason}")
    cost = cost_of(model, trained.lowest_layer)
    return make_plan(
        PARALLELISMS.build(recipe.parallelism, "parallelism"),
        tensors_of(model, trained),
        num_parameters=trained.num_parameters,
        world=recipe.num_workers,
        num_micro_batches=lengths.num_passes,
        device=machine.device,
        activations=activations,
        checkpointing=recipe.activation_checkpointing,
        cost=cost,
        cost_of_all=cost_of_all,
        flops_per_token=cost.needed / (samples_per_rank * lengths.mean.num_tokens),
        notes=notes,
    )


def _selected(recipe: TrainRecipe, num_layers: int, notes: list[str]) -> tuple[int, ...]:
    from consomme.train.layers import LAYER_SELECTORS

    selector = LAYER_SELECTORS.build(recipe.layers, "layers")
    if selector.plan_note:
        notes.append(selector.plan_note)
    return selector.planned(num_layers)


def summary_lines(resources: ResourcePlan) -> list[str]:
    """Summarise in a few lines what a run takes."""
    from consomme.train.parallel.memory import ACTIVATIONS, BUFFERS, EXACT

    exact = ", ".join(f"{kind} {size_text(resources.kinds[kind].total)}" for kind in EXACT)
    about = (
        f"activations about {size_text(resources.kinds[ACTIVATIONS].total)}"
        if resources.activations
        else "activations unknown"
    )
    time = (
        f"; a step is predicted to take {resources.saving_fraction:.0%} less time than with all"
        " layers"
        if resources.num_trained and resources.cost != resources.cost_of_all
        else ""
    )
    return [
        f"memory of a worker: {exact}, buffers {size_text(resources.kinds[BUFFERS].total)},"
        f" {about};"
        f" peak of a step about {size_text(resources.step.total)}",
        f"a checkpoint takes {size_text(resources.checkpoint_bytes)}, the model"
        f" {size_text(resources.model_bytes)}{time}",
    ]


def table_of(resources: ResourcePlan) -> dict[str, Any]:
    """Tabulate memory by kind."""
    from consomme.train.parallel.memory import EXACT

    rows = [
        [kind, size_text(one.device), size_text(one.host), "exact" if kind in EXACT else "estimate"]
        for kind, one in resources.kinds.items()
    ]
    for label, one, how in (
        ("peak of a step", resources.step, "estimate"),
        ("while loading: the whole model", resources.loading, "exact"),
    ):
        rows.append([label, size_text(one.device), size_text(one.host), how])
    title = (
        f"{resources.num_trained:,} of {resources.num_parameters:,} parameters trained by"
        f" {resources.num_workers} {'worker' if resources.num_workers == 1 else 'workers'};"
        " memory of each"
    )
    first = "GPU" if resources.device == "cuda" else "memory"
    other = "host" if resources.device == "cuda" else "memory, if offloaded"
    return {"title": title, "columns": ["kind", first, other, "accuracy"], "rows": rows}


def as_json(resources: ResourcePlan) -> dict[str, Any]:
    """Return a plan as it is stored, with its derived values."""
    plain: dict[str, Any] = dataclasses.asdict(resources)
    plain["kept"] = plain.pop("activations")
    plain["num_parts"] = plain.pop("num_micro_batches")
    plain["kinds"] = {kind: one._asdict() for kind, one in resources.kinds.items()}
    for name in ("loading", "export"):
        plain[name] = getattr(resources, name)._asdict()
    plain["step"] = resources.step._asdict()
    plain["saving_fraction"] = resources.saving_fraction
    return plain
