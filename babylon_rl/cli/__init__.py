"""Command ``babylon-rl``: the table of its commands, and the program itself.

Each command stands in the module of its group, which is imported when it runs.

A BabylonError becomes a sentence on standard error and the exit code of its class; nothing the user can act on ends in a traceback.
"""

import errno
import importlib
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from babylon_rl.errors import BabylonError, SettingsError, missing_package
from babylon_rl.heap import kept_whole

# Command -> module of its group, and the first sentence of its help: it stands here too, so that `--help` imports no group.
COMMANDS = {
    "migrate": ("system", "Update the database's schema, or build optional indexes."),
    "settings": ("system", "List all settings with value and source, secrets masked."),
    "env": ("system", "Print shell lines that point Dagster and psql here."),
    "dagster": ("system", "Run Dagster's command on this project's instance."),
    "dev": ("system", "Run the Dagster UI and daemon until Ctrl-C."),
    "worker": ("system", "Execute the daemon's runs from Celery until Ctrl-C."),
    "backup": ("keeping", "Write database, checkpoints and state into one file."),
    "restore": ("keeping", "Bring a backup back into an empty database."),
    "move-to": ("keeping", "Copy the embedded database to a server of your own."),
    "stop": ("system", "Stop Dagster and the embedded database after a crash."),
    "cleanup": ("system", "Remove old checkpoints, caches, transcripts and logs."),
    "verify-system": ("system", "Check every part of the installation."),
    "status": ("status", "Show readiness, training, judge, versions and health."),
    "alerts": ("status", "Show alerts: since when, whether sent, and what to do."),
    "demo": ("demo", "Run the whole loop: simulate, score, train, compare."),
    "spawn-agents": ("agents", "Play market hours with simulated agents."),
    "windows": ("data", "List hours with their rows and readiness for training."),
    "episodes": ("data", "Show the stitched episodes of an hour."),
    "rejected": ("data", "List the rejected trajectories with their reasons."),
    "outcomes": ("data", "Show the market outcomes of an hour."),
    "scores": ("data", "Show the scores of an hour's group, as they were judged."),
    "verify-data": ("verify_data", "Check the rows of the newest 24 hours with data."),
    "score": ("score", "Judge groups without scores, or with changed data."),
    "ready": ("training", "Check whether the data suffice for a training."),
    "train": ("training", "Freeze, judge and train a batch; register the version."),
    "sync-outcomes": ("training", "Write the outcomes of hours into market_outcomes."),
    "harness": ("agents", "Benchmark agents, train on their records, report."),
    "export": ("export", "Write training data for other tools."),
    "judge": ("judge", "The judge: quarantined groups, reliability, privacy."),
    "batches": ("batches", "List training jobs; show, cancel or give up one."),
    "models": ("models", "The registry of versions."),
    "ab": ("ab", "A/B tests of versions on live agents."),
    "serve": ("serve", "Run a server until it is interrupted."),
    "keys": ("keys", "Bearer keys for the gateway and the admin API."),
    "benchmark": ("benchmark", "Evidence: models and strategies in unseen markets."),
}
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


Starting = Callable[[], AbstractContextManager[None]]


class LazyGroup(TyperGroup):
    """The commands of COMMANDS by name; the one that runs is imported then."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, stub, rest = super().resolve_command(ctx, args)
        starting: Starting = ctx.obj
        with starting():
            return name, load(name) if name and stub else None, rest


def load(name: str) -> Any:
    """The command or group of commands of this name, with its options and its code."""
    module = importlib.import_module(f"babylon_rl.cli.{COMMANDS[name][0]}")
    group = typer.Typer(rich_markup_mode=None)
    group.add_typer(module.app)
    return typer.main.get_group(group).commands[name]


app = LazyGroup(
    name="babylon-rl",
    help="From recorded trading agents to a better one: outcomes, scores, training and evidence.",
    commands={name: TyperCommand(name, help=sentence, rich_markup_mode=None) for name, (_, sentence) in COMMANDS.items()},
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line of this process and exit. The process's libraries keep their caches in the state directory."""
    sys.exit(run(sys.argv[1:], _process_start))


@contextmanager
def _process_start() -> Iterator[None]:
    # A core dump would hold every secret; children, the embedded server among them, inherit the limit.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # Looking for plugins, pydantic reads the metadata of every installed package; no plugin of it is used here.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    with kept_whole():
        from babylon_rl.cli.caches import keep_caches_at_home  # reads the settings, for which `--help` need not wait
        from babylon_rl.setting_sources import gone_settings
        from babylon_rl.settings import Settings

        keep_caches_at_home()
        with suppress(SettingsError):  # the command says so itself, if it needs the settings
            for sentence in gone_settings(Settings):
                print(sentence, file=sys.stderr)
        yield


def run(arguments: list[str], starting: Starting = nullcontext) -> int:
    """Run one command line and return its exit code.

    The codes: 0 done, 1 a check failed, 2 bad usage or settings, 3 something outside failed. The command's module is imported within
    ``starting()``.
    """
    try:
        app.main(arguments, prog_name="babylon-rl", obj=starting)
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
    except OSError as failed:
        where = f": {failed.filename}" if failed.filename else ""
        advice = _ADVICE.get(failed.errno or 0)
        return _say(f"{failed.strerror or failed}{where}.{f' {advice}' if advice else ''}", FAILED_OUTSIDE)
    except ModuleNotFoundError as missing:
        advice = missing_package(missing.name)
        if advice is None:
            raise
        return _say(advice, FAILED_OUTSIDE)
    # psycopg takes 0.1 s to import, so its errors cannot be named above; any other error is raised on.
    except Exception as failed:
        from babylon_rl.store.connection import database_sentence

        sentence = database_sentence(failed)
        if sentence is None:
            raise
        return _say(sentence, FAILED_OUTSIDE)
    return 0


def _leave(code: str | int | None) -> int:
    """Flush standard output and return the exit code. A reader that is gone (``babylon-rl ... | head``) is no error message."""
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
