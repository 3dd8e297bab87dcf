"""The command line: `consomme VERB RECIPE [key=value …]`. Errors become exit codes here.

Each verb of `consomme.pipelines.verbs` is a subcommand. Its recipe class is imported for its help
and its checks, its pipeline, with Ray and torch, when it runs; `consomme --help` imports neither.
"""

import argparse
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
    EXIT_TERMINATED,
    EXIT_TRY_AGAIN,
    EXIT_USER,
    RecipeError,
    TerminatedError,
)
from consomme.base.process import end, imports_without_gc, leave_fast
from consomme.base.secrets import redact, redact_output
from consomme.base.suggest import did_you_mean
from consomme.base.visible import visible
from consomme.execution.errors import find_known
from consomme.pipelines.verbs import VERBS, Verb, recipe_class, resolve

_LOG = logging.getLogger(__name__)

_INTRO = """\
consomme {version}: clarify the data, soup the models.

  consomme VERB RECIPE [key=value …]
  consomme report|status|verify RUN_FOLDER
  consomme fetch MODEL

A recipe is a YAML file that fully describes one run. The usual round:

  shards ─▶ score ─▶ filter ─▶ recaption ─▶ train ─▶ evaluate ─▶ soup ─▶ model

Every run writes one folder, <root>/<verb>/<name>-<fingerprint>/. The fingerprint is a hash of the
recipe and its inputs: the same recipe on the same inputs finds the same folder and does only what
is missing. After Ctrl-C, a crash or a lost machine, run the same command again.

Verbs:
{verbs}

Overrides change a recipe for one run, at any depth:
  consomme filter recipes/filter/points.yaml keep.fraction=0.5 name=half
  consomme train recipes/train/full.yaml 'data=[{{inputs: [a.tar]}}]' layers.name=sparse_uniform

Examples:
  consomme loop recipes/quickstart.yaml       the whole round on a laptop, in minutes
  consomme filter RECIPE --preview            what it would keep, with images at the cut
  consomme dedup RECIPE --preview             what it would drop, with both images of each pair
  consomme plan recipes/train/full.yaml …     what a training needs, and whether it fits here
  consomme loop RECIPE --plan                 which stages are done, and which would run
  consomme filter --help                      every key of a filter recipe, and every policy
  consomme report runs/filter/points-1a2b3c4d
  consomme status s3://bucket/runs/score/points-1a2b3c4d

Exit codes: 0 done · 2 you can fix it (the message says how) · 75 the infrastructure failed, try
again · 130 Ctrl-C · 143 SIGTERM · 1 a bug in consomme."""


_FOLDER_PATIENCE_S = 60.0
"""Patience of verbs that only look at a run folder, with someone waiting for the answer."""


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
    arguments = sys.argv[1:] if argv is None else argv
    name = schema.__name__.removesuffix("Recipe").lower()
    parser = _VerbParser(prog=f"consomme {name}")
    _add_recipe_arguments(parser, name, lambda: schema, run)
    code = _guard(name, lambda: _parse_and_run(parser, arguments))
    _leave(code, is_own=argv is None)


def _leave(code: int, *, is_own: bool) -> NoReturn:
    """End the process; if it is not ours to end, raise `SystemExit`.

    After Ctrl-C or a loss a thread of Ray may wait for a Ray that has ended, and the interpreter
    would wait for the thread (seen once in fifty runs). So threads are not joined then; exit
    handlers still run, for at most ten seconds.
    """
    may_hang = code in (EXIT_INTERRUPTED, EXIT_TERMINATED) or (code == EXIT_TRY_AGAIN and is_own)
    if not may_hang:
        if is_own:
            leave_fast(code)
        sys.exit(code)
    late = threading.Timer(10.0, os._exit, [code])
    late.daemon = True
    late.start()
    end(code)


def run_command(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    from consomme.storage.stores.retries import resume_waiting

    resume_waiting()
    arguments = arguments or ["--help"]
    return _guard(arguments[0], lambda: _parse_and_run(_command_parser(), arguments))


class _Parser(argparse.ArgumentParser):
    """A parser that raises a `RecipeError` instead of ending the process."""

    def __init__(self, *, prog: str) -> None:
        super().__init__(
            prog=prog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong."""
        raise RecipeError(message)


class _CommandParser(_Parser):
    """The parser of `consomme` itself, whose help is the overview."""

    def format_help(self) -> str:
        """List all verbs, and explain runs and recipes."""
        width = max(map(len, VERBS))
        verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
        return _INTRO.format(version=__version__, verbs=verbs) + "\n"


class _VerbParser(_Parser):
    """The parser of one verb."""

    details: Callable[[], str] = staticmethod(lambda: "")
    """Returns the last part of the help; it may import what it describes."""

    def format_help(self) -> str:
        """Return the help of argparse and the details."""
        return f"{super().format_help()}\n{self.details()}".rstrip() + "\n"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Accept options between the recipe and its overrides, which argparse does not.

        No option takes a value, so they can be moved to the front.
        """
        ordered = sorted(args, key=lambda text: not text.startswith("-"))
        return super().parse_known_args(ordered, namespace)


def _command_parser() -> _Parser:
    parser = _CommandParser(prog="consomme")
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(refuse=_refuse_command)
    verbs = parser.add_subparsers(parser_class=_VerbParser)
    for name, verb in VERBS.items():
        # Without a prog, argparse would put the usage of `consomme` in front of the name.
        subparser = verbs.add_parser(name, prog=f"consomme {name}")
        if verb.recipe:
            _add_recipe_arguments(subparser, name, _schema_of(name), _run_of(verb))
        else:
            _add_folder_arguments(subparser, name, verb)
    return parser


def _refuse_command(text: str) -> str:
    if text.startswith("-"):
        return f"unknown option {text}{did_you_mean(text, ['--help', '--version'])}"
    hint = did_you_mean(text, VERBS) or f"; expected one of {', '.join(VERBS)}"
    return f"unknown verb{hint}"


def _schema_of(name: str) -> Callable[[], type[Any]]:
    return lambda: recipe_class(name)


def _run_of(verb: Verb) -> Callable[[Any], Any]:
    return lambda recipe: _import(verb.run)(recipe)


def _import(target: str) -> Any:
    """Import a verb's function, and with it Ray and torch where the verb needs them."""
    with imports_without_gc():
        return resolve(target)


def _parse_and_run(parser: _Parser, arguments: Sequence[str]) -> None:
    """Parse a command line and run the verb; `--help` and `--version` only print."""
    texts = ["--help" if text == "help" else text for text in arguments]
    if isinstance(parser, _CommandParser) and texts[0] not in (*VERBS, "-h", "--help", "--version"):
        raise RecipeError(_refuse_command(texts[0]))
    try:
        parsed, unknown = parser.parse_known_args(texts)
    except SystemExit:
        # Only --help and --version end the process: `error` raises.
        return
    if unknown:
        raise RecipeError(parsed.refuse(unknown[0]))
    parsed.action(parsed)


def _add_recipe_arguments(
    parser: _VerbParser, name: str, schema: Callable[[], type[Any]], run: Callable[[Any], Any]
) -> None:
    """Declare `RECIPE [key=value …]` and the option of a dry run."""
    verb = VERBS.get(name)
    dry_run = verb.dry_run if verb else None
    is_always_dry = verb is not None and verb.is_always_dry
    options = [dry_run.option] if dry_run and not is_always_dry else []
    parser.usage = " ".join(
        [f"consomme {name} RECIPE [key=value …]", *(f"[{option}]" for option in options)]
    )
    parser.description = f"{verb.help.capitalize()}." if verb else None
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="YAML file")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="change a key of the recipe, at any depth"
    )
    if dry_run and options:
        parser.add_argument(dry_run.option, dest="is_dry", action="store_true", help=dry_run.help)

    def refuse(option: str) -> str:
        known = f"; the one option is {options[0]}" if options else ""
        hint = did_you_mean(option, [*options, "--help"]).rstrip("?")
        return f"unknown option {option}{hint}; settings are written key=value{known}"

    def action(parsed: argparse.Namespace) -> None:
        if parsed.recipe is None or "=" in parsed.recipe:
            raise RecipeError(f"no recipe is named; expected {name} RECIPE [key=value …]")
        from consomme.base.recipe import load_recipe, secret_in_override
        from consomme.execution.runs import patience_of
        from consomme.storage.pins import pins_kept

        recipe = load_recipe(schema(), parsed.recipe, parsed.overrides)
        _configure()
        for text in parsed.overrides:
            if secret_in_override(text):
                _LOG.warning(
                    "the override of %s holds a secret: on the command line, all users of this"
                    " machine and `ray job list` see it; write ${oc.env:NAME} instead",
                    text.partition("=")[0],
                )
        with patience_of(recipe), pins_kept():
            if dry_run and parsed.is_dry:
                _show_dry_run(name, _import(dry_run.target)(recipe))
            else:
                _summarise(name, run(recipe))

    parser.set_defaults(action=action, refuse=refuse, is_dry=is_always_dry)
    parser.details = lambda: _recipe_help(schema())


def _add_folder_arguments(parser: _VerbParser, name: str, verb: Verb) -> None:
    """Declare `RUN_FOLDER [switch=true …]`, or what else the verb takes."""
    metavar, what = verb.argument
    noun = metavar.lower().replace("_", " ")
    parser.usage = f"consomme {name} {metavar}{' [switch=true …]' if verb.switches else ''}"
    parser.description = f"{verb.help.capitalize()}."
    parser.add_argument("folder", metavar=metavar, nargs="?", help=what)
    parser.add_argument("switches", nargs="*", help=argparse.SUPPRESS)
    if "plan" in verb.switches:
        parser.add_argument("--plan", action="store_true", help=argparse.SUPPRESS)

    def refuse(text: str) -> str:
        known = ", ".join(f"{key}=true|false" for key in verb.switches) or "nothing more"
        return f"found {text!r} after the {noun}, expected {known}"

    def action(parsed: argparse.Namespace) -> None:
        switches = {}
        for text in parsed.switches:
            key, _, value = text.partition("=")
            if key not in verb.switches or value not in ("true", "false"):
                raise RecipeError(refuse(text))
            switches[key] = value == "true"
        if getattr(parsed, "plan", False):
            switches["plan"] = True
        if parsed.folder is None:
            raise RecipeError(f"found nothing, expected one {noun}: {parser.usage}")
        from consomme.storage.stores.retries import patience

        _configure()
        with patience(_FOLDER_PATIENCE_S):
            result = _import(verb.run)(parsed.folder, **switches)
        if isinstance(result, str):
            print(visible(redact(result)))
        else:
            _summarise(name, result)

    parser.set_defaults(action=action, refuse=refuse)
    switches = "\n".join(f"  {key}=true|false\n      {text}" for key, text in verb.switches.items())
    parser.details = lambda: f"switches:\n{switches}" if switches else ""


def _recipe_help(schema: type[Any]) -> str:
    import inspect

    from consomme.base.describe import describe

    return (
        f"{inspect.getdoc(schema) or ''}\n\n"
        "Keys of the recipe, each of which may be overridden as key=value:\n\n"
        f"{describe(schema, '  ')}"
    )


def _configure() -> None:
    from consomme.base.telemetry import configure_logging

    configure_logging()


def _show_dry_run(verb: str, shown: Any) -> None:
    _print_table(shown.table)
    notes = [*shown.notes, f"{verb} {shown.name}: only a preview, no run was made"]
    print(redact("\n".join(notes)))


def _summarise(verb: str, manifest: Any) -> None:
    """Print the run folder, the counts, and the result table if there is one.

    A pipeline puts its result table into `decisions["table"]` as
    `{"title": …, "columns": [...], "rows": [[...], …]}`.
    """
    table = manifest.decisions.get("table")
    if table:
        _print_table(table)
    counts = ", ".join(f"{name} {n:,}" for name, n in manifest.counts.items() if "/" not in name)
    state = f"done in {manifest.seconds:,.1f} s"
    if manifest.is_found:
        from consomme.execution.runs import already_done

        state = already_done(manifest)
    print(f"{verb} {manifest.name}: {state}{counts and '; '}{counts}")
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
        drawn.add_row(*(Text(visible(redact(text))) for text in texts))
    # A log file has no width; without one, rich would wrap the table at 80 columns.
    Console(width=None if sys.stdout.isatty() else 120).print(drawn)


def _guard(verb: str, action: Callable[[], None]) -> int:
    """Run an action and return the exit code; print an error that a user can fix as one message."""
    redact_output()
    signals = _Signals()
    try:
        with signals:
            action()
    except KeyboardInterrupt:
        return _interrupted(verb, signals)
    except BrokenPipeError:
        # The reader of our output (`| head`) has closed it; nothing may be written any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except SystemExit:
        # Ray exits like this if its processes end before it disconnects from them.
        if signals.received:
            return _interrupted(verb, signals)
        raise
    except Exception as error:  # noqa: BLE001 (the last resort: every error is logged or explained)
        if signals.received:
            _LOG.debug("after a signal", exc_info=error)
            return _interrupted(verb, signals)
        ours = find_known(error)
        if ours is None:
            _configure()
            _LOG.exception("consomme %s: this is a bug in consomme", verb)
            return _say_code(verb, EXIT_BUG)
        print(f"consomme {verb}: {visible(redact(str(ours)))}", file=sys.stderr)
        return _say_code(verb, ours.exit_code)
    return EXIT_OK


_MEANINGS = {
    EXIT_BUG: "a bug in consomme",
    EXIT_USER: "something to change; starting again changes nothing",
    EXIT_TRY_AGAIN: "the infrastructure failed; start again to go on",
}


def _say_code(verb: str, code: int) -> int:
    """Write the exit code into the log of a job: `ray job submit` itself returns 1 for all."""
    if _JOB_VARIABLE in os.environ:
        print(f"consomme {verb}: exit code {code} ({_MEANINGS[code]})", file=sys.stderr)
    return code


_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the entry point of a job."""


def _interrupted(verb: str, signals: "_Signals") -> int:
    is_term = signals.received == signal.SIGTERM
    print(
        f"\nconsomme {verb}: {'ended by SIGTERM' if is_term else 'interrupted'}."
        " What is finished is kept; run the same command again to go on.",
        file=sys.stderr,
    )
    return EXIT_TERMINATED if is_term else EXIT_INTERRUPTED


class _Signals:
    """Turns SIGTERM into an exception as Ctrl-C is, and records either.

    Some libraries replace the exception by one of their own.
    """

    def __init__(self) -> None:
        self.received: int = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        for number, default in ours.items():
            if signal.getsignal(number) is default:
                self._before[number] = signal.signal(number, self._receive)

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        from consomme.storage.stores.retries import stop_waiting

        is_first = not self.received
        self.received = self.received or number
        # Whatever waits for storage in this process gives up now.
        stop_waiting()
        if number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        elif is_first:
            # A second one must not interrupt the cleaning up.
            raise TerminatedError


if __name__ == "__main__":
    entry()
