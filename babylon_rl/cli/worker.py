"""Command ``worker``: a Celery worker on this machine that executes runs of the daemon's."""

import os
import socket
from typing import Annotated

import typer

from babylon_rl.cli.output import say
from babylon_rl.errors import UsageError, require
from babylon_rl.settings import load_settings
from babylon_rl.store.database import open_database

app = typer.Typer()


@app.command("worker")
def worker(
    queue: Annotated[
        list[str] | None, typer.Option(help="hours, judge, trainer or evidence; may be repeated. All of them by default.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs at once, a process each.")] = 1,
) -> None:
    """Execute runs that the daemon sends by Celery, of some queues, until Ctrl-C."""
    from babylon_rl.automation.run_handover import HOURS, JUDGE, QUEUES, code_version

    queues = tuple(dict.fromkeys(queue or QUEUES))
    if unknown := [name for name in queues if name not in QUEUES]:
        raise UsageError(f"{unknown[0]} is not a queue. Choose from {', '.join(QUEUES)}.")
    settings = load_settings()
    if settings.celery_broker_url is None:
        raise UsageError("CELERY_BROKER_URL is not set: the address of Redis or RabbitMQ through which runs come, the daemon's own.")
    if settings.uses_embedded_database:
        raise UsageError("DATABASE_URL is not set: workers share a server of your own with the daemon, not an embedded one.")
    require("dagster_celery", "redis")
    from babylon_rl.automation.celery_runs import run_worker
    from babylon_rl.automation.instance import prepare_instance
    from babylon_rl.definitions import defs
    from babylon_rl.judge.client import load_judge_libraries

    with open_database(settings) as database:
        os.environ.update(prepare_instance(database, settings))
        # Loaded once, for all the runs that are forked from this process.
        defs.get_repository_def()
        if {HOURS, JUDGE} & set(queues):
            load_judge_libraries(settings)
        say(f"Waits for runs of {', '.join(queues)}, {runs} at once, with code version {code_version()}. Ctrl-C ends it after them.")
        raise typer.Exit(run_worker(settings, queues, runs, f"{socket.gethostname()}-{os.getpid()}"))
