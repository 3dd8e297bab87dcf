"""The command line `consomme VERB RECIPE [key=value …]`; here errors become exit codes.

Verbs are a table; a verb's pipeline, and with it Ray and torch, is imported when it is used. What a
verb does, and what its recipe may say, is the pipeline's business.
"""

import importlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn

from consomme import __version__
from consomme.base.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_OK,
    ConsommeError,
    RecipeError,
)
from consomme.base.process import end, leave_fast
from consomme.base.suggest import did_you_mean

_LOG = logging.getLogger(__name__)
_HELP = ("-h", "--help", "help")


@dataclass(frozen=True, kw_only=True)
class Look:
    """A way to see what a recipe would do without doing it."""

    option: str
    """What is written behind the recipe; the module's function has the same name."""

    module: str
    """Where it is: takes the recipe, returns `name`, `table` and `notes`."""

    help: str
    """What it shows, in one line."""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One thing the command line can do."""

    module: str
    """Where its `run` is."""

    recipe: str
    """Name of its recipe class there; empty if it takes a run folder instead of a recipe."""

    help: str
    """What it does, in one line."""

    switches: Mapping[str, str] = field(default_factory=dict)
    """What may follow a run folder as `name=true` or `name=false`, and what it does."""

    look: Look | None = None
    """How to look at what a run of a recipe would do, if there is a way."""

    only_looks: bool = False
    """Whether it does nothing but look, without being asked to."""


_LOOKS = {
    "filter": Look(
        option="--preview",
        module="consomme.pipelines.preview",
        help="show what the run would do, on the terminal and on a page, and write no run folder",
    ),
    "train": Look(
        option="--plan",
        module="consomme.pipelines.train_plan",
        help="show what the run would take, memory by kind and time, and train nothing",
    ),
    "loop": Look(
        option="--plan",
        module="consomme.pipelines.loop_plan",
        help="show every stage and whether it is done, and run nothing",
    ),
}


def _verb(name: str, text: str) -> Verb:
    recipe = f"{name.capitalize()}Recipe"
    return Verb(
        module=f"consomme.pipelines.{name}",
        recipe=recipe,
        help=text,
        look=_LOOKS.get(name),
    )


VERBS: Mapping[str, Verb] = {
    name: _verb(name, text)
    for name, text in {
        "score": "give each sample a perplexity, with and without its image",
        "tag": "say what each sample is: language, main object, class, embedding, verdicts",
        "filter": "decide exactly which samples stay, and write a view of them",
        "dedup": "find copies of pictures, exact and near, and keep the best of each",
        "recaption": "let a model write new captions for the samples of a view",
        "train": "train a model on a view, all of it or chosen layers only",
        "evaluate": "measure a model on benchmarks",
        "sweep": "try values of any keys of a train recipe, and compare what comes out",
        "soup": "average fine-tuned models, choosing what goes in",
        "loop": "run a chain of these from one recipe, skipping what is done",
        "download": "fetch the pictures of URL lists and write shards",
        "prepare": "write the embedded data sets as shards to work on",
    }.items()
} | {
    "plan": Verb(
        module="consomme.pipelines.train",
        recipe="TrainRecipe",
        help="say what a training would take, from shapes alone: memory by kind, time, checkpoints",
        look=_LOOKS["train"],
        only_looks=True,
    ),
    "report": Verb(
        module="consomme.pipelines.report", recipe="", help="draw the report of a finished run"
    ),
    "status": Verb(
        module="consomme.ops.status",
        recipe="",
        help="tell how far a run is, from its folder alone, while it runs or after",
    ),
    "verify": Verb(
        module="consomme.ops.verify",
        recipe="",
        help="prove that a finished run is complete and uncorrupted",
        switches={
            "checksums": "read every output and compare its checksum (true unless you say false)",
            "repair": "forget damaged units, so that running the recipe again redoes them",
        },
    ),
}

_INTRO = """\
consomme {version}: clarify the data, soup the models.

  consomme VERB RECIPE [key=value …]
  consomme report|status|verify RUN_FOLDER

A recipe is a YAML file that says all about one run. The usual round:

  shards ─▶ score ─▶ filter ─▶ recaption ─▶ train ─▶ evaluate ─▶ soup ─▶ model

Every run writes one folder, <root>/<verb>/<name>-<fingerprint>/, named after what it makes. The
same recipe on the same inputs finds that folder again and does only what is missing, so after
Ctrl-C, a crash or a lost machine the answer is the same: run the same command again.

Verbs:
{verbs}

Overrides change a recipe for one run, at any depth:
  consomme filter recipes/filter/points.yaml keep.fraction=0.5 name=half
  consomme train recipes/train/full.yaml 'data=[{{inputs: [a.tar]}}]' layers.name=sparse_uniform

Examples:
  consomme loop recipes/quickstart.yaml       the whole round on a laptop, in minutes
  consomme filter RECIPE --preview            what would stay, with pictures at the cut
  consomme plan recipes/train/full.yaml …     what a training takes, and whether it fits here
  consomme loop RECIPE --plan                 which stages are done, and which would run
  consomme filter --help                      every key of a filter recipe, and every policy
  consomme report runs/filter/points-1a2b3c4d
  consomme status s3://bucket/runs/score/points-1a2b3c4d

Exit codes: 0 done · 2 you can fix it (the message says how) · 75 the infrastructure failed, try
again · 130 interrupted · 1 a bug in consomme."""


def entry() -> NoReturn:
    """Run the `consomme` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    _leave(run_command(sys.argv[1:]), is_own=True)


def main(
    recipe_class: type[Any], run: Callable[[Any], Any], argv: Sequence[str] | None = None
) -> NoReturn:
    """Run one pipeline as a script, as `jobs/*.py` do: `script RECIPE [key=value …]`.

    Args:
        recipe_class: The pipeline's recipe.
        run: Takes the recipe and returns a manifest.
        argv: Arguments after the script's name; by default the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = recipe_class.__name__.removesuffix("Recipe").lower()
    code = _guard(verb, lambda: _run_recipe(verb, recipe_class, run, arguments))
    _leave(code, is_own=argv is None)


def _leave(code: int, *, is_own: bool) -> NoReturn:
    """End the process, or if it is not our own raise `SystemExit`.

    After Ctrl-C some thread of Ray's may wait for a Ray that is gone, and the interpreter would
    wait for the thread: seen once in fifty times. So then nobody is waited for; what is to be
    tidied up at the end is, within ten seconds.
    """
    if code != EXIT_INTERRUPTED:
        if is_own:
            leave_fast(code)
        sys.exit(code)
    late = threading.Timer(10.0, os._exit, [code])
    late.daemon = True
    late.start()
    end(code)


def run_command(arguments: Sequence[str]) -> int:
    """Do what a command line asks and return the exit code."""
    if not arguments or arguments[0] in _HELP:
        print(_overview())
        return EXIT_OK
    if arguments[0] == "--version":
        print(__version__)
        return EXIT_OK
    return _guard(arguments[0], lambda: _run_verb(arguments[0], list(arguments[1:])))


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return _INTRO.format(version=__version__, verbs=verbs)


def _run_verb(name: str, arguments: list[str]) -> None:
    if name not in VERBS:
        raise RecipeError(
            f"unknown verb{did_you_mean(name, VERBS)}; expected one of {', '.join(VERBS)}"
        )
    verb = VERBS[name]
    if verb.recipe:
        module = importlib.import_module(verb.module)
        _run_recipe(name, getattr(module, verb.recipe), module.run, arguments)
        return
    _run_on_folder(name, verb, arguments)


def _run_on_folder(name: str, verb: Verb, arguments: list[str]) -> None:
    usage = f"consomme {name} RUN_FOLDER" + (" [switch=true …]" if verb.switches else "")
    if any(text in _HELP for text in arguments):
        switches = "".join(f"\n  {key}: {text}" for key, text in verb.switches.items())
        print(f"{usage}\n\n{verb.help.capitalize()}.{switches and chr(10)}{switches}")
        return
    options = {}
    for text in arguments[1:]:
        key, _, value = text.partition("=")
        if key not in verb.switches or value not in ("true", "false"):
            known = ", ".join(f"{key}=true|false" for key in verb.switches) or "nothing more"
            raise RecipeError(f"found {text!r} after the run folder, expected {known}")
        options[key] = value == "true"
    if not arguments or arguments[0].startswith("-"):
        found = " ".join(arguments) or "nothing"
        raise RecipeError(f"found {found}, expected one run folder: {usage}")
    _configure()
    result = importlib.import_module(verb.module).run_folder(arguments[0], **options)
    if isinstance(result, str):
        print(result)
    else:
        _summarise(name, result)


def _run_recipe(
    verb: str, recipe_class: type[Any], run: Callable[[Any], Any], arguments: list[str]
) -> None:
    if any(text in _HELP for text in arguments):
        print(_verb_help(verb, recipe_class))
        return
    look = VERBS[verb].look if verb in VERBS else None
    always_looks = verb in VERBS and VERBS[verb].only_looks
    only_looks = look is not None and (always_looks or look.option in arguments)
    if look and not always_looks:
        arguments = [text for text in arguments if text != look.option]
    options = [text for text in arguments if text.startswith("-")]
    if options:
        known = f"; the one option is {look.option}" if look and not always_looks else ""
        raise RecipeError(f"unknown option {options[0]}; settings are written key=value{known}")
    if not arguments or "=" in arguments[0]:
        raise RecipeError(f"no recipe is named; expected {verb} RECIPE [key=value …]")
    from consomme.base.recipe import load_recipe

    recipe = load_recipe(recipe_class, arguments[0], arguments[1:])
    _configure()
    if look and only_looks:
        seen = getattr(importlib.import_module(look.module), look.option.strip("-"))(recipe)
        _print_table(seen.table)
        print("\n".join([*seen.notes, f"{verb} {seen.name}: only a preview, no run was made"]))
        return
    _summarise(verb, run(recipe))


def _configure() -> None:
    from consomme.base.telemetry import configure_logging

    configure_logging()


def _verb_help(verb: str, recipe_class: type[Any]) -> str:
    import inspect

    from consomme.base.describe import describe

    about = VERBS[verb].help.capitalize() if verb in VERBS else verb
    look = VERBS[verb].look if verb in VERBS and not VERBS[verb].only_looks else None
    option = f" [{look.option}]" if look else ""
    meaning = f"  {look.option}  {look.help}\n\n" if look else ""
    return (
        f"consomme {verb} RECIPE [key=value …]{option}\n\n{about}.\n\n{meaning}"
        f"{inspect.getdoc(recipe_class) or ''}\n\n"
        f"Keys of the recipe, each of which may be overridden as key=value:\n\n"
        f"{describe(recipe_class, '  ')}"
    )


def _summarise(verb: str, manifest: Any) -> None:
    """Say where the run is and what it counted; print its table if it decided on one.

    A pipeline that has a result table puts it into `decisions["table"]` as
    `{"title": …, "columns": [...], "rows": [[...], …]}`.
    """
    table = manifest.decisions.get("table")
    if table:
        _print_table(table)
    counts = ", ".join(f"{name} {n:,}" for name, n in manifest.counts.items() if "/" not in name)
    print(f"{verb} {manifest.name}: done in {manifest.seconds:,.1f} s{counts and '; '}{counts}")
    print(f"  run folder  {manifest.url}")
    if "report" in manifest.outputs:
        print(f"  report      {manifest.url.rstrip('/')}/{manifest.outputs['report']}")


def _print_table(table: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=table.get("title"), title_justify="left")
    for index, column in enumerate(table["columns"]):
        drawn.add_column(str(column), justify="left" if index == 0 else "right")
    for row in table["rows"]:
        texts = [f"{cell:,.4g}" if isinstance(cell, float) else str(cell) for cell in row]
        drawn.add_row(*(Text(text) for text in texts))
    # A log file has no width; do not let rich fold the table at eighty columns there.
    Console(width=None if sys.stdout.isatty() else 120).print(drawn)


def _guard(verb: str, action: Callable[[], None]) -> int:
    """Turn what happens into an exit code, and errors a user can fix into one message."""
    ctrl_c = _CtrlC()
    try:
        with ctrl_c:
            action()
    except KeyboardInterrupt:
        return _interrupted(verb)
    except BrokenPipeError:
        # Whoever reads us (`| head`) has seen enough; nothing may be written any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except SystemExit:
        # Ray leaves this way if its processes go before it has said goodbye to them.
        if ctrl_c.was_pressed:
            return _interrupted(verb)
        raise
    except Exception as error:  # noqa: BLE001 (the last resort; it logs or explains everything)
        if ctrl_c.was_pressed:
            _LOG.debug("after Ctrl-C", exc_info=error)
            return _interrupted(verb)
        ours = _find_ours(error)
        if ours is None:
            _configure()
            _LOG.exception("consomme %s: this is a bug in consomme", verb)
            return EXIT_BUG
        print(f"consomme {verb}: {ours}", file=sys.stderr)
        return ours.exit_code
    return EXIT_OK


def _interrupted(verb: str) -> int:
    print(
        f"\nconsomme {verb}: interrupted. What is finished is kept; "
        "run the same command again to go on.",
        file=sys.stderr,
    )
    return EXIT_INTERRUPTED


class _CtrlC:
    """Remembers that Ctrl-C was pressed, for libraries that make another error of it."""

    def __init__(self) -> None:
        self.was_pressed = False
        self._before: Any = None

    def __enter__(self) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._press)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        self.was_pressed = True
        signal.default_int_handler(number, frame)


def _find_ours(error: BaseException) -> ConsommeError | None:
    """Find the error a user should see; Ray wraps what was raised on a worker."""
    current: BaseException | None = error
    while current is not None:
        wrapped = getattr(current, "cause", None)
        if isinstance(current, ConsommeError) and not isinstance(wrapped, ConsommeError):
            return current
        current = wrapped if isinstance(wrapped, BaseException) else current.__cause__
    return None


if __name__ == "__main__":
    entry()
