"""Work out what a train recipe takes before any weight is read.

One decision is made here: the model is made of shapes alone and marked by what marks it in
training, so what is planned is what is trained.
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
    """What the command line shows."""

    name: str
    table: Mapping[str, Any]
    notes: tuple[str, ...]


def plan(recipe: TrainRecipe) -> TrainPlan:
    """Say what a training would take; nothing is started, and no weight is read.

    Raises:
        RecipeError: The recipe asks for something that cannot be trained.
        CheckpointError: There is no model.
    """
    machine = this_machine()
    made = plan_of(recipe, recipe.model, machine)
    problem = misfit(made, machine, recipe)
    return TrainPlan(
        name=recipe.name,
        table=table_of(made),
        notes=(
            *summary_lines(made),
            *made.notes,
            *([f"on this machine: {problem}"] if problem else []),
        ),
    )


def plan_of(recipe: TrainRecipe, start: str, machine: Machine) -> ResourcePlan:
    """Plan a run.

    Args:
        recipe: The run's.
        start: The model, as `model_folder` takes it.
        machine: Where workers run.
    """
    import torch

    from consomme.models.weights import build_from_config
    from consomme.train.activations import SavedActivations, saved_activations
    from consomme.train.cost import step_cost
    from consomme.train.parallel.registry import PARALLELISMS
    from consomme.train.planner import make_plan, tensors_of
    from consomme.train.trainable import set_trainable

    notes: list[str] = []
    if recipe.min_workers is not None and recipe.min_workers < recipe.num_workers:
        notes.append(f"planned for {recipe.num_workers} workers; with fewer, each may hold more")
    start = model_folder(start)
    lengths = lengths_of(recipe, start, notes)
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
            # Whatever a family's forward pass wants beside words, it did not get here.
            reason = str(error).partition("\n")[0]
            notes.append(f"activations are not known: {type(error).__name__}: {reason}")
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


def summary_lines(made: ResourcePlan) -> list[str]:
    """Say in a few lines what a run takes."""
    from consomme.train.parallel.memory import ACTIVATIONS, EXACT

    exact = ", ".join(f"{kind} {size_text(made.kinds[kind].total)}" for kind in EXACT)
    about = (
        f"activations about {size_text(made.kinds[ACTIVATIONS].total)}"
        if made.activations
        else "activations not known"
    )
    time = (
        f"; a step is predicted to take {made.saving_fraction:.0%} less time than with all layers"
        if made.num_trained and made.cost != made.cost_of_all
        else ""
    )
    return [
        f"memory of a worker: {exact}, buffers {size_text(made.kinds['buffers'].total)}, {about};"
        f" at most about {size_text(made.step.total)} at once, in a step",
        f"a checkpoint takes {size_text(made.checkpoint_bytes)}, the model"
        f" {size_text(made.model_bytes)}{time}",
    ]


def table_of(made: ResourcePlan) -> dict[str, Any]:
    """Memory by kind as a table."""
    from consomme.train.parallel.memory import EXACT

    rows = [
        [kind, size_text(one.device), size_text(one.host), "exact" if kind in EXACT else "estimate"]
        for kind, one in made.kinds.items()
    ]
    for label, one, how in (
        ("at most at once, in a step", made.step, "estimate"),
        ("at the beginning: the whole model", made.loading, "exact"),
    ):
        rows.append([label, size_text(one.device), size_text(one.host), how])
    title = (
        f"{made.num_trained:,} of {made.num_parameters:,} parameters trained by"
        f" {made.num_workers} {'worker' if made.num_workers == 1 else 'workers'}; memory of each"
    )
    first = "GPU" if made.device == "cuda" else "memory"
    other = "host" if made.device == "cuda" else "memory, where offloaded"
    return {"title": title, "columns": ["kind", first, other, "how sure"], "rows": rows}


def as_json(made: ResourcePlan) -> dict[str, Any]:
    """A plan as it is stored, with what is derived from it."""
    plain: dict[str, Any] = dataclasses.asdict(made)
    plain["kept"] = plain.pop("activations")
    plain["num_parts"] = plain.pop("num_micro_batches")
    plain["kinds"] = {kind: one._asdict() for kind, one in made.kinds.items()}
    for name in ("loading", "export"):
        plain[name] = getattr(made, name)._asdict()
    plain["step"] = made.step._asdict()
    plain["saving_fraction"] = made.saving_fraction
    return plain
