"""The ``babylon-rl`` command: one module per topic registers its subcommands here.

A BabylonError becomes a sentence on standard error and the exit code of its class; nothing the user can act on ends in a traceback.
"""

import errno
import importlib
import os
import sys

import typer

from babylon_rl.cli.caches import keep_caches_at_home
from babylon_rl.errors import BabylonError

MODULES = (
    "system",
    "demo",
    "market",
    "data",
    "score",
    "judge",
    "training",
    "models",
    "releases",
    "evaluation",
    "benchmark",
    "harness",
    "export",
)
FAILED_OUTSIDE = 3
INTERRUPTED = 130
_OTHERS = "Run as the user whom it belongs to, or set BABYLON_RL_HOME to a directory of your own."
_IN_THE_WAY = "Something else is in the place of a file or directory: move it away, then run the same command again."
_ADVICE = {
    errno.ENOSPC: "Make room there, then run the same command again.",
    errno.EDQUOT: "Make room there, then run the same command again.",
    errno.EACCES: _OTHERS,
    errno.EPERM: _OTHERS,
    errno.EROFS: "Set BABYLON_RL_HOME to a directory that can be written.",
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
}

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
    """Run the command line of this process and exit.

    The process's libraries keep their caches in the state directory.
    """
    keep_caches_at_home()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code.

    The codes: 0 done, 1 a check failed, 2 bad usage or settings, 3 something outside failed.
    """
    import psycopg  # after the modules are registered; --help pays nothing for it that the import of typer did not

    try:
        app(arguments, prog_name="babylon-rl")
    # Typer exits by SystemExit; every other expected error becomes one sentence and an exit code.
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
    # Database errors that no layer below translated; disk full is the most specific and comes first.
    except psycopg.errors.DiskFull as full:
        return _say(
            f"The database's disk is full: {_first_line(full)}. What was not committed is undone. {_ADVICE[errno.ENOSPC]}", FAILED_OUTSIDE
        )
    except psycopg.OperationalError as lost:
        return _say(
            f"The database broke off: {_first_line(lost)}. What was not committed is undone; run the same command again.", FAILED_OUTSIDE
        )
    except psycopg.errors.InsufficientPrivilege as refused:
        return _say(
            f"The database's role may not do this: {_first_line(refused)}. docs/howto/database.md lists what it needs.",
            FAILED_OUTSIDE,
        )
    except OSError as failed:
        where = f": {failed.filename}" if failed.filename else ""
        advice = _ADVICE.get(failed.errno or 0)
        return _say(f"{failed.strerror or failed}{where}.{f' {advice}' if advice else ''}", FAILED_OUTSIDE)
    return 0


def _leave(code: str | int | None) -> int:
    """Flush standard output and return the exit code.

    A reader that is gone (``babylon-rl ... | head``) is no error message.
    """
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
