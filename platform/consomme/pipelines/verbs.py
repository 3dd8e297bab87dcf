"""The table of verbs: name, recipe, run, dry run and report section of each.

Adding a verb is adding a folder beside this file and an entry here. Everything is named by
`module:attribute` and imported when it is used, so `consomme --help` imports neither Ray nor torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_HERE = "consomme.pipelines"


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """A way to show what a run of a recipe would do, without doing it."""

    option: str
    """The option after the recipe on the command line."""

    target: str
    """`module:function` that takes the recipe and returns `name`, `table` and `notes`."""

    help: str
    """What it shows, in one line."""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One command of the command line."""

    help: str
    """What it does, in one line."""

    run: str
    """`module:function` that runs it; takes a recipe, or `argument` if there is no recipe."""

    open_run: str = ""
    """`module:function` that resolves a recipe to a run and does not start it."""

    recipe: str = ""
    """`module:Class` of its recipe; empty if it takes `argument` instead."""

    argument: tuple[str, str] = ("RUN_FOLDER", "local path or URL")
    """What follows a verb without a recipe, and what that is."""

    switches: Mapping[str, str] = field(default_factory=dict)
    """Switches that may follow a run folder as `name=true` or `name=false`, with their help."""

    report: str = ""
    """`module:function` that draws the sections of a report about runs of this verb."""

    dry_run: DryRun | None = None
    """Shows what a run of a recipe would do, if the verb can."""

    is_always_dry: bool = False
    """Whether the verb is only ever a dry run."""


def resolve(target: str) -> Any:
    """Import what `module:attribute` names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def recipe_class(verb: str) -> type[Any]:
    """Return the recipe class of a verb that takes a recipe."""
    found: type[Any] = resolve(VERBS[verb].recipe)
    return found


_PLAN = DryRun(
    option="--plan",
    target=f"{_HERE}.train.plan:plan",
    help="show the memory by kind and the time that the run needs, and train nothing",
)

_DRY_RUNS = {
    "filter": DryRun(
        option="--preview",
        target=f"{_HERE}.filter.preview:preview",
        help="show what the run would do, on the terminal and on a page, and write no run folder",
    ),
    "dedup": DryRun(
        option="--preview",
        target=f"{_HERE}.dedup.preview:preview",
        help="show on a page which pairs would be called copies, and write no run folder",
    ),
    "soup": DryRun(
        option="--preview",
        target=f"{_HERE}.soup.preview:preview",
        help="show whether the models can be mixed and how far each moved, and mix nothing",
    ),
    "train": _PLAN,
    "loop": DryRun(
        option="--plan",
        target=f"{_HERE}.loop.plan:plan",
        help="show every stage and whether it is done, and run nothing",
    ),
}


_REPORTED = ("score", "tag", "filter", "dedup", "recaption", "train", "evaluate", "soup", "prune")
"""Verbs with a section of their own in reports; those of `loop` and `sweep` are whole pages."""


def _verb(name: str, text: str) -> Verb:
    return Verb(
        help=text,
        run=f"{_HERE}.{name}.run:run",
        open_run=f"{_HERE}.{name}.run:open_run",
        recipe=f"{_HERE}.{name}.recipe:{name.capitalize()}Recipe",
        report=f"{_HERE}.{name}.report:sections" if name in _REPORTED else "",
        dry_run=_DRY_RUNS.get(name),
    )


VERBS: Mapping[str, Verb] = {
    name: _verb(name, text)
    for name, text in {
        "score": "give each sample a perplexity, with and without its image",
        "tag": "label each sample: language, main object, class, embedding, a model's answers",
        "filter": "choose samples exactly, and write a view of them",
        "dedup": "find copies of pictures, exact and near, and keep the best of each",
        "recaption": "write new captions for the samples of a view with a model",
        "assemble": "build a VLM from a vision encoder, a connector and a language model",
        "train": "fine-tune a model on views, all layers or selected ones",
        "evaluate": "evaluate models on benchmarks",
        "sweep": "train and evaluate with different values of any keys of a train recipe",
        "soup": "average fine-tuned models, and search for the best average",
        "prune": "remove layers of a language model that matter least, and measure what is left",
        "loop": "run a chain of verbs from one recipe, skipping what is done",
        "download": "fetch the pictures of URL lists and write shards",
        "prepare": "write the embedded data sets as shards",
    }.items()
} | {
    "plan": Verb(
        help="estimate what a training needs, from shapes alone: memory by kind, time, checkpoints",
        run=f"{_HERE}.train.run:run",
        open_run=f"{_HERE}.train.run:open_run",
        recipe=f"{_HERE}.train.recipe:TrainRecipe",
        dry_run=_PLAN,
        is_always_dry=True,
    ),
    "fetch": Verb(
        help="bring a model to this machine, from the Hugging Face hub or object storage",
        run="consomme.ops.fetch:fetch_model",
        argument=("MODEL", "as a recipe names it: org/name, hf://org/name@revision, a URL, a path"),
    ),
    "inspect": Verb(
        help="show a model's parts, parameters, chat template, and what trains by default",
        run="consomme.ops.inspection:inspect_model",
        argument=("MODEL", "as a recipe names it: org/name, hf://org/name@revision, a URL, a path"),
    ),
    "report": Verb(help="draw the report of a finished run", run=f"{_HERE}.report.run:run_folder"),
    "status": Verb(
        help="show the state of a run from its folder alone, while it runs or after",
        run="consomme.ops.status:describe_run",
    ),
    "verify": Verb(
        help="check that a finished run is complete and uncorrupted, and repair it",
        run="consomme.ops.verify:verify_run",
        switches={
            "checksums": "read every file and compare its checksum (default true)",
            "repair": "take away what is damaged, so that running the recipe again redoes it",
            "plan": "only say what a repair would do; --plan says the same",
        },
    ),
}
