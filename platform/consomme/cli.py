"""The command line `consomme VERB RECIPE [key=value …]`; here errors become exit codes.

Verbs are a table; a verb's pipeline, and with it Ray and torch, is imported when it is used. What a
verb does, and what its recipe may say, is the pipeline's business.
"""

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

from consomme import __version__
from consomme.base.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_OK,
    RecipeError,
)
from consomme.base.process import end, leave_fast
from consomme.base.suggest import did_you_mean
from consomme.execution.errors import find_own
from consomme.pipelines.verbs import VERBS, Verb, recipe_class, resolve

_LOG = logging.getLogger(__name__)
_HELP = ("-h", "--help", "help")


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
    schema: type[Any], run: Callable[[Any], Any], argv: Sequence[str] | None = None
) -> NoReturn:
    """Run one pipeline as a script, as `jobs/*.py` do: `script RECIPE [key=value …]`.

    Args:
        schema: The pipeline's recipe.
        run: Takes the recipe and returns a manifest.
        argv: Arguments after the script's name; by default the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = schema.__name__.removesuffix("Recipe").lower()
    code = _guard(verb, lambda: _run_recipe(verb, schema, run, arguments))
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
        _run_recipe(name, recipe_class(name), lambda recipe: resolve(verb.run)(recipe), arguments)
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
    result = resolve(verb.run)(arguments[0], **options)
    if isinstance(result, str):
        print(result)
    else:
        _summarise(name, result)


def _run_recipe(
    verb: str, schema: type[Any], run: Callable[[Any], Any], arguments: list[str]
) -> None:
    if any(text in _HELP for text in arguments):
        print(_verb_help(verb, schema))
        return
    dry_run = VERBS[verb].dry_run if verb in VERBS else None
    is_always_dry = verb in VERBS and VERBS[verb].is_always_dry
    is_dry = dry_run is not None and (is_always_dry or dry_run.option in arguments)
    if dry_run and not is_always_dry:
        arguments = [text for text in arguments if text != dry_run.option]
    options = [text for text in arguments if text.startswith("-")]
    if options:
        known = f"; the one option is {dry_run.option}" if dry_run and not is_always_dry else ""
        raise RecipeError(f"unknown option {options[0]}; settings are written key=value{known}")
    if not arguments or "=" in arguments[0]:
        raise RecipeError(f"no recipe is named; expected {verb} RECIPE [key=value …]")
    from consomme.base.recipe import load_recipe

    recipe = load_recipe(schema, arguments[0], arguments[1:])
    _configure()
    if dry_run and is_dry:
        seen = resolve(dry_run.target)(recipe)
        _print_table(seen.table)
        print("\n".join([*seen.notes, f"{verb} {seen.name}: only a preview, no run was made"]))
        return
    _summarise(verb, run(recipe))


def _configure() -> None:
    from consomme.base.telemetry import configure_logging

    configure_logging()


def _verb_help(verb: str, schema: type[Any]) -> str:
    import inspect

    from consomme.base.describe import describe

    about = VERBS[verb].help.capitalize() if verb in VERBS else verb
    dry_run = VERBS[verb].dry_run if verb in VERBS and not VERBS[verb].is_always_dry else None
    option = f" [{dry_run.option}]" if dry_run else ""
    meaning = f"  {dry_run.option}  {dry_run.help}\n\n" if dry_run else ""
    return (
        f"consomme {verb} RECIPE [key=value …]{option}\n\n{about}.\n\n{meaning}"
        f"{inspect.getdoc(schema) or ''}\n\n"
        f"Keys of the recipe, each of which may be overridden as key=value:\n\n"
        f"{describe(schema, '  ')}"
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
        ours = find_own(error)
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


if __name__ == "__main__":
    entry()
