"""The ``babylon-rl`` command: one module per topic registers its subcommands here.

A BabylonError becomes a sentence on standard error and the exit code of its class; nothing the user can act on ends in a traceback.
"""

import importlib
import os
import sys

import typer

from babylon_rl.errors import BabylonError

MODULES = ("system", "demo", "market", "data", "training", "models", "evaluation", "evidence")
FAILED_OUTSIDE = 3
INTERRUPTED = 130

app = typer.Typer(
    name="babylon-rl",
    help="From recorded trading agents to a better one: outcomes, scores, training and evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _module in MODULES:
    importlib.import_module(f"babylon_rl.cli.{_module}").register(app)


def main() -> None:
    """Run the command line of this process and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code (0 done, 1 a check failed, 2 bad usage or settings, 3 something outside)."""
    import psycopg  # after the modules are registered; --help pays nothing for it that the import of typer did not

    try:
        app(arguments, prog_name="babylon-rl")
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            return _say("Interrupted.", INTERRUPTED)
        return _leave(ended.code)
    except BabylonError as failed:
        return _say(str(failed), failed.exit_code)
    except KeyboardInterrupt:
        return _say("Interrupted.", INTERRUPTED)
    except BrokenPipeError:
        return _leave(FAILED_OUTSIDE)
    except psycopg.OperationalError as lost:
        return _say(
            f"The database broke off: {_first_line(lost)}. What was not committed is undone; run the same command again.", FAILED_OUTSIDE
        )
    except psycopg.errors.InsufficientPrivilege as refused:
        return _say(
            f"The database's role may not do this: {_first_line(refused)}. See the least-privilege role in the documentation.",
            FAILED_OUTSIDE,
        )
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidSchemaName) as missing:
        return _say(f"The database is not up to date: {_first_line(missing)}. Run `babylon-rl migrate`.", FAILED_OUTSIDE)
    except OSError as failed:
        where = f": {failed.filename}" if failed.filename else ""
        return _say(f"{failed.strerror or failed}{where}.", FAILED_OUTSIDE)
    return 0


def _leave(code: str | int | None) -> int:
    """Flush while it can still be told that the reader has gone (``babylon-rl ... | head``)."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED_OUTSIDE
    if isinstance(code, str):
        return _say(code, 1)
    return code or 0


def _say(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code


def _first_line(failed: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(failed).splitlines() if line.strip()), type(failed).__name__)
