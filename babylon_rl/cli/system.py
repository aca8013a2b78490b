"""Commands about the installation: schema, settings, Dagster's processes, workers, cleanup, system checks."""

import argparse
import json
import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from babylon_rl.cli import FAILED_OUTSIDE
from babylon_rl.cli.children import run_child, stop_children
from babylon_rl.cli.output import Column, JsonOption, Table, emit, say
from babylon_rl.errors import ModelUnavailable, UsageError, require
from babylon_rl.files.location import shown_address
from babylon_rl.judge.client import judge_addresses
from babylon_rl.project_files import clone, project_file
from babylon_rl.serving.dagster_client import BATCHES, HOURS
from babylon_rl.setting_sources import DEMO_FILE, gone_settings, kept_demo_choices, secret_settings, setting_sources
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.batches import read_batch
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.embedded import running_url, stop_server
from babylon_rl.store.indexes import build_indexes
from babylon_rl.store.migrate import migrate as apply_migrations
from babylon_rl.store.observation import RECENT
from babylon_rl.store.trajectories import newest_window_with_rows
from babylon_rl.windows import newest_complete, utc_now, window_end

if TYPE_CHECKING:
    from dagster import DagsterInstance

app = typer.Typer()
UI_PORT = 3000
_PORTS_TRIED = 100
SETTINGS = (Column("setting", "name"), Column("value", "value"), Column("source", "source"))
INDEXES = (
    Column("index", "name"),
    Column("", "state"),
    Column("MB", lambda row: None if row["bytes"] is None else row["bytes"] / 1e6, 1),
    Column("what it does", "purpose"),
    Column("statement", "statement", wide=True),
)
CHECKS = (Column("", "status"), Column("", "name"), Column("", "detail"))
PARTS = (
    Column("what", "name"),
    Column("number", "count"),
    Column("of", "unit"),
    Column("MB", lambda row: None if row["bytes"] is None else round(row["bytes"] / 1e6, 1)),
)
# All that follows `babylon-rl dagster` is Dagster's own, --help included.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
# "Function `dev_command` is superseded": by `dg`, which wants a project laid out by itself.
_IGNORED_WARNING = "ignore:Function `"


@app.command("migrate")
def migrate(
    check: Annotated[bool, typer.Option("--check", help="Change nothing, only say what would be done.")] = False,
    indexes: Annotated[
        bool, typer.Option("--indexes", help="Build the optional indexes on the game's tables, beside its writers; may be repeated.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Update the database's schema, or build optional indexes."""
    if indexes:
        states = {"valid": "there", "invalid": "to rebuild" if check else "rebuilt", "absent": "to build" if check else "built"}
        with open_database(load_settings(), prepare=False) as database:
            built = [
                {"name": one.index.name, "state": states[one.found], "bytes": one.size_bytes, "purpose": one.index.purpose,
                 "statement": one.index.statement}
                for one in build_indexes(database, check_only=check)
            ]  # fmt: skip
        emit({"indexes": built}, [Table(INDEXES, built)], as_json)
        return
    # --check changes nothing, so it makes no schema for Dagster either.
    with open_database(load_settings(), prepare=not check) as database:
        report = apply_migrations(database, check_only=check)
        place = database.address

    applied, created, adopted = ("would apply", "would create", "would adopt") if check else ("applied", "created", "adopted")
    tables = [name for name in report.applied if name.startswith("public.")]
    parts = [f"{applied} {name}" for name in report.applied if name not in tables]
    if tables:
        parts.append(f"{created} {len(tables)} tables of the contract: {', '.join(tables)}")
    if report.adopted:
        parts.append(f"{adopted} {len(report.adopted)} tables as they are: {', '.join(report.adopted)}")
    parts += [f"differs: {line}" for line in report.differences]
    if not report.applied:
        parts.append(f"The schema at {place} is up to date.")
    emit({"applied": list(report.applied), "adopted": list(report.adopted), "differences": list(report.differences)}, parts, as_json)


@app.command("settings")
def settings(as_json: JsonOption = False) -> None:
    """List all settings with value and source, secrets masked."""
    loaded = load_settings()
    sources = setting_sources(Settings)
    rows = [{"name": name.upper(), "value": _shown(loaded, name), "source": sources[name]} for name in Settings.model_fields]
    gone = gone_settings(Settings)
    emit({"settings": rows, "gone": gone}, [Table(SETTINGS, rows), *gone], as_json)

    if asked := judge_addresses(loaded, loaded.judge_model, loaded.judge_audit_model):
        say(f"Judged by: {asked}.")


@app.command("env")
def env() -> None:
    """Print shell lines that point Dagster and psql here.

    Use it as eval "$(babylon-rl env)".

    The embedded database runs only while a command uses it (such as babylon-rl dev); this command starts and holds nothing.
    """
    loaded = load_settings()
    # Only an address is needed: this command must not start the embedded server.
    database = Database.of(loaded)
    if database is None:
        if (url := running_url(loaded.home)) is None:
            raise UsageError("The embedded database does not run now. Start `babylon-rl dev` in another terminal, or set DATABASE_URL.")
        database = Database(url, url)
    for name, value in _variables(database, loaded).items():
        print(f"export {name}={shlex.quote(value)}")


@app.command("dagster", context_settings=_PASSED_ON, add_help_option=False)
def dagster(context: typer.Context) -> None:
    """Run Dagster's command on this project's instance.

    Such as `babylon-rl dagster job list`. The database stays open meanwhile.
    """
    raise typer.Exit(_run_dagster(context.args))


@app.command("dev")
def dev(
    port: Annotated[int, typer.Option(help="Port of the UI; the next free one is taken when it is in use.")] = UI_PORT,
    host: Annotated[str, typer.Option(help="Where to listen. The UI has no login: anybody who reaches it can run jobs.")] = "127.0.0.1",
) -> None:
    """Run the Dagster UI and daemon until Ctrl-C."""
    free = _free_port(host, port)
    if free != port:
        say(f"Port {port} is in use: taking {free}.")
    if chosen := kept_demo_choices(Settings):
        say(f"Settings of the demo: {' '.join(f'{name}={value}' for name, value in chosen.items())} ({DEMO_FILE} in the state directory)")
    say(f"The UI will be at http://{host}:{free} in about ten seconds. Ctrl-C stops everything.")
    if Path("dagster.yaml").exists():
        say("Dagster's warning of dagster.yaml in this folder means nothing: it uses the copy with your settings.")
    try:
        address = {"DAGSTER_URL": f"http://{f'[{host}]' if ':' in host else host}:{free}"}
        code = _run_dagster(["dev", *_workspace(), "-h", host, "-p", str(free)], more=address, migrated=True)
    except KeyboardInterrupt:
        say("Stopped.")
        return
    raise typer.Exit(code)


@app.command("stop")
def stop() -> None:
    """Stop Dagster and the embedded database after a crash."""
    home = load_settings().home
    for sentence in [*stop_children(home, orphans_only=False), *stop_server(home)] or [f"Nothing that was started from {home} runs."]:
        print(sentence)


@app.command("verify-system")
def verify_system(
    production: Annotated[bool, typer.Option("--production", help="Go through the checklist for production, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every part of the installation.

    Settings, disk, storage, database, clock, data, automation, judge, weights. Exit code 1 when one fails.
    """
    from babylon_rl.cli.production_checks import check_production
    from babylon_rl.cli.system_checks import FAIL, check_system

    loaded = load_settings()
    found = [*check_system(loaded, production), *(check_production(loaded) if production else ())]
    checks = [asdict(check) for check in found]
    emit({"checks": checks}, [Table(CHECKS, checks)], as_json)
    if any(check["status"] == FAIL for check in checks):
        raise typer.Exit(1)


@app.command("worker")
def worker(
    queue: Annotated[
        list[str] | None,
        typer.Option(help="hours, trainer (with a GPU also trainer-gpu) or evidence; may be repeated. All of them by default."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs at once, a process each.")] = 1,
) -> None:
    """Execute the daemon's runs from Celery until Ctrl-C. Of all queues, or of some."""
    from babylon_rl.assets.workers import code_version, worker_queues
    from babylon_rl.training.backends.protocol import gpu_is_here

    queues = worker_queues(queue, gpu_is_here())
    settings = load_settings()
    if settings.celery_broker_url is None:
        raise UsageError("CELERY_BROKER_URL is not set: the address of Redis or RabbitMQ through which runs come, the daemon's own.")
    if settings.uses_embedded_database:
        raise UsageError("DATABASE_URL is not set: workers share a server of your own with the daemon, not an embedded one.")
    require("dagster_celery", "redis")
    from babylon_rl.automation.instance import prepare_instance

    with open_database(settings) as database:
        os.environ.update(prepare_instance(database, settings))
    # After that: Celery and Dagster read the environment.
    from babylon_rl.automation.celery_app import worker_app
    from babylon_rl.definitions import defs
    from babylon_rl.judge.group_judge import load_judge_libraries

    # Loaded once, for all the runs that are forked from this process.
    defs.get_repository_def()
    if HOURS in queues:
        load_judge_libraries(settings)
    app = worker_app()
    say(f"Waits for runs of {', '.join(queues)}, {runs} at once, with code version {code_version()}. Ctrl-C ends it after them.")
    options = [f"--queues={','.join(queues)}", f"--concurrency={runs}", f"--hostname={socket.gethostname()}-{os.getpid()}@%h"]
    app.worker_main(["worker", *options, "--loglevel=WARNING", "--without-mingle", "--without-gossip"])


@app.command("cleanup")
def cleanup(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, only say what would go.")] = False, as_json: JsonOption = False
) -> None:
    """Remove old checkpoints, caches, transcripts and logs.

    Also old gateway calls. Exit code 3 when something cannot be removed.
    """
    from babylon_rl.automation.cleanup import ADVICE, clean_up

    settings = load_settings()
    with open_database(settings, prepare=False) as database, database.connect(autocommit=True) as connection:
        parts = [asdict(part) for part in clean_up(connection, settings, utc_now(), dry_run=dry_run)]
    # Taken out of the parts: in the document they stand once, for all parts together.
    refused = [sentence for part in parts for sentence in part.pop("refused")]
    emit({"dryRun": dry_run, "parts": parts, "refused": refused}, [Table(PARTS, parts)], as_json)
    if dry_run:
        say("Nothing was removed: --dry-run.")
    if refused:
        say(*refused, ADVICE)
        raise typer.Exit(FAILED_OUTSIDE)


def run_daemon(variables: Mapping[str, str]) -> int:
    """Run Dagster's daemon alone, with ``variables`` on top of the environment; return its exit code."""
    program = [str(Path(sys.executable).with_name("dagster-daemon"))]
    return _run_dagster(["run", *_workspace()], program, more=variables, migrated=True)


def _workspace() -> list[str]:
    """Options that name the workspace; from a clone, go into it, where its ``.env`` is."""
    if (directory := clone()) is not None:
        os.chdir(directory)
    return ["-w", str(project_file("workspace.yaml"))]


def _run_dagster(
    arguments: list[str], program: Sequence[str] = ("-m", "dagster"), more: Mapping[str, str] | None = None, migrated: bool = False
) -> int:
    """Run a program of Dagster's on this project's instance. ``migrated`` brings the schema up to date first."""
    from babylon_rl.automation.instance import open_instance

    loaded = load_settings()
    # What a killed command left would hold ports and the embedded database.
    say(*stop_children(loaded.home, orphans_only=True))
    with open_database(loaded) as database:
        # A daemon on a database without our tables would fail at every tick.
        if migrated and (applied := apply_migrations(database).applied):
            say(f"Migrated {database.address}: {len(applied)} steps. `babylon-rl migrate --check` says what differs from the contract.")
        with open_instance(database, loaded) as instance:  # which ends the runs that died with their process
            if arguments[:2] == ["job", "execute"]:
                _refuse_without_part(arguments, instance, database, loaded)
            variables = _variables(database, loaded)
        if arguments[:1] == ["dev"]:
            variables |= last_window(database, loaded, utc_now())
        return run_child([sys.executable, "-W", _IGNORED_WARNING, *program, *arguments], {**variables, **(more or {})}, loaded.home)


def last_window(database: Database, settings: Settings, now: datetime) -> dict[str, str]:
    """LAST_WINDOW, where it is not set: the newest hour with rows, unless that is of the last week and the game may go on."""
    with database.connect(autocommit=True) as connection:
        newest = newest_window_with_rows(connection, newest_complete(now))
    if settings.last_window is not None or newest is None or newest < settings.first_window or window_end(newest) > now - RECENT:
        return {}
    # The sensor observe_changes loads the graph again when later rows come.
    later = "later hours appear when rows of them come" if settings.automation_status == "running" else "start `dev` again for later ones"
    say(f"The graph ends with {newest}, the newest hour with rows; {later}.")
    return {"LAST_WINDOW": newest}


def _refuse_without_part(arguments: Sequence[str], instance: "DagsterInstance", database: Database, settings: Settings) -> None:
    """Refuse a job of hours or of a batch whose tags name none, or a wrong one, before its run exists.

    Raises:
        UsageError: with what to write instead.
    """
    from babylon_rl.assets.run_parts import why_no_part

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-j", "--job", nargs="?")
    parser.add_argument("--tags", nargs="?", default="{}")
    given = parser.parse_known_args(arguments)[0]
    try:
        tags = dict(json.loads(given.tags))
    except (TypeError, ValueError):
        raise UsageError(f'--tags {given.tags} is no JSON object: write it as \'{{"dagster/partition": "2025-10-29T14:00"}}\'.') from None

    def has_batch(batch_id: str) -> bool:
        with database.connect() as connection:
            there = read_batch(connection, batch_id) is not None
        instance.add_dynamic_partitions(BATCHES, [batch_id] if there else [])
        return there

    if (why_not := why_no_part(given.job, tags, settings.first_window, utc_now(), has_batch)) is not None:
        raise UsageError(why_not)


def _variables(database: Database, settings: Settings) -> dict[str, str]:
    """Environment of a Dagster process.

    With DATABASE_URL given, its workers need no lease on the embedded server: this process holds one.
    """
    from babylon_rl.automation.instance import prepare_instance

    return {
        **kept_demo_choices(Settings),
        **prepare_instance(database, settings),
        "DATABASE_URL": database.url,
        "DIRECT_DATABASE_URL": database.direct_url,
        "DAGSTER_DISABLE_TELEMETRY": "yes",
    }


def _shown(loaded: Settings, name: str) -> str | int | float | bool | None:
    value = getattr(loaded, name)
    if value is None or isinstance(value, bool | int | float):
        return value
    if name in secret_settings(Settings):
        return "***"
    return str(value) if Settings.model_fields[name].repr else shown_address(str(value))  # an address that may hold a password


def _free_port(host: str, first: int) -> int:
    from babylon_rl.http_server import bind  # other commands of this file need no server

    for port in range(first, min(first + _PORTS_TRIED, 65536)):
        try:
            bind(host, port).close()
        except ModelUnavailable as taken:
            if isinstance(taken.__cause__, socket.gaierror):
                raise UsageError(f"--host {host} is no address of this machine: {taken.__cause__.strerror}.") from None
            continue
        return port
    raise UsageError(f"No port from {first} on is free. Choose another with --port.")
