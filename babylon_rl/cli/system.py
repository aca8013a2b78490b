"""Commands about the installation: schema, settings, Dagster's processes, system checks."""

import os
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from babylon_rl.cli.output import JsonOption, emit, say, table
from babylon_rl.errors import UsageError
from babylon_rl.settings import Settings, load_settings, setting_sources

if TYPE_CHECKING:
    from rich.console import Console

    from babylon_rl.store.database import Database

PROJECT = Path(__file__).resolve().parents[2]
UI_PORT = 3000
_PORTS_TRIED = 100
# "Function `dev_command` is superseded": by `dg`, which wants a project laid out by itself.
QUIET = "ignore:Function `"


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command("migrate")(migrate)
    app.command("settings")(settings)
    app.command("env")(env)
    passthrough = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
    app.command("dagster", context_settings=passthrough, add_help_option=False)(dagster)
    app.command("dev")(dev)
    app.command("stop")(stop)
    app.command("verify-system")(verify_system)


def migrate(
    check: Annotated[bool, typer.Option("--check", help="Change nothing, only say what would be done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the database's schema up to date."""
    from babylon_rl.store.database import open_database
    from babylon_rl.store.migrate import migrate as bring_up_to_date

    with open_database(load_settings(), prepare=not check) as database:
        report = bring_up_to_date(database, check_only=check)
        place = database.address

    def render(out: "Console") -> None:
        verb = "would apply" if check else "applied"
        created = [name for name in report.applied if name.startswith("public.")]
        for name in report.applied:
            if name not in created:
                out.print(f"{verb} {name}")
        if created:
            out.print(f"{'would create' if check else 'created'} {len(created)} tables of the contract: {', '.join(created)}")
        if report.adopted:
            out.print(f"{'would adopt' if check else 'adopted'} {len(report.adopted)} tables as they are: {', '.join(report.adopted)}")
        for line in report.differences:
            out.print(f"differs: {line}", markup=False)
        if not report.applied:
            out.print(f"The schema at {place} is up to date.", markup=False)

    emit({"applied": list(report.applied), "adopted": list(report.adopted), "differences": list(report.differences)}, render, as_json)


def settings(as_json: JsonOption = False) -> None:
    """Every setting, its value (secrets masked) and where it came from."""
    loaded = load_settings()
    sources = setting_sources()
    rows = [{"name": name.upper(), "value": _shown(loaded, name), "source": sources[name]} for name in Settings.model_fields]
    lines = [[row["name"], row["value"], row["source"]] for row in rows]
    emit({"settings": rows}, lambda out: out.print(table(None, ["setting", "value", "source"], lines)), as_json)
    from babylon_rl.judge.client import judge_addresses

    if asked := judge_addresses(loaded, loaded.judge_model, loaded.judge_audit_model):
        say(f"Judged by: {asked}.")


def env() -> None:
    """Print lines for a shell that point Dagster and psql at this project: eval "$(babylon-rl env)".

    The embedded database runs only while a command uses it (such as babylon-rl dev); this command starts and holds nothing.
    """
    from babylon_rl.automation.instance import prepare_instance
    from babylon_rl.store.database import Database
    from babylon_rl.store.embedded import running_url

    loaded = load_settings()
    # Only an address is needed: this command must not start the embedded server.
    if loaded.database_url is not None:
        direct = loaded.direct_database_url or loaded.database_url
        database = Database(loaded.database_url.get_secret_value(), direct.get_secret_value())
    else:
        url = running_url(loaded.home)
        if url is None:
            raise UsageError("The embedded database does not run now. Start `babylon-rl dev` in another terminal, or set DATABASE_URL.")
        database = Database(url, url)
    for name, value in _variables(database, prepare_instance(database, loaded)).items():
        print(f"export {name}={shlex.quote(value)}")


def dagster(context: typer.Context) -> None:
    """Run the dagster command on this project's instance, with the database held open: babylon-rl dagster job list."""
    raise typer.Exit(_run_dagster(context.args))


def dev(port: Annotated[int, typer.Option(help="Port of the UI; the next free one is taken when it is in use.")] = UI_PORT) -> None:
    """The Dagster UI and daemon on this project, until Ctrl-C."""
    free = _free_port(port)
    if free != port:
        say(f"Port {port} is in use: taking {free}.")
    say(f"The UI will be at http://127.0.0.1:{free} in about ten seconds. Ctrl-C stops everything.")
    os.chdir(PROJECT)
    try:
        code = _run_dagster(["dev", "-w", str(PROJECT / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(free)])
    except KeyboardInterrupt:
        say("Stopped.")
        return
    raise typer.Exit(code)


def stop() -> None:
    """Stop what a crash left running: Dagster's processes and the embedded database."""
    from babylon_rl.cli.children import stop_children
    from babylon_rl.store.embedded import stop_everything

    home = load_settings().home
    stopped = stop_children(home, orphans_only=False) + stop_everything(home)
    for sentence in stopped or [f"Nothing that was started from {home} runs."]:
        print(sentence)


def verify_system(as_json: JsonOption = False) -> None:
    """Check the configuration, database, schema, Dagster, model weights and registry; exit 1 when one fails."""
    from babylon_rl.cli.checks import FAIL, check_system

    checks = [{"name": check.name, "status": check.status, "detail": check.detail} for check in check_system(load_settings())]
    lines = [[check["status"], check["name"], check["detail"]] for check in checks]
    emit({"checks": checks}, lambda out: out.print(table(None, ["", "", ""], lines)), as_json)
    if any(check["status"] == FAIL for check in checks):
        raise typer.Exit(1)


def _run_dagster(arguments: list[str]) -> int:
    from babylon_rl.automation.instance import open_instance, prepare_instance
    from babylon_rl.cli.children import run_child, stop_children
    from babylon_rl.store.database import open_database

    loaded = load_settings()
    for sentence in stop_children(loaded.home, orphans_only=True):
        say(sentence)
    with open_database(loaded) as database:
        with open_instance(database, loaded):  # which ends the runs that died with their process
            variables = _variables(database, prepare_instance(database, loaded))
        return run_child([sys.executable, "-W", QUIET, "-m", "dagster", *arguments], variables, loaded.home)


def _variables(database: "Database", instance: Mapping[str, str]) -> dict[str, str]:
    """Environment of a Dagster process.

    With DATABASE_URL given, its workers need no lease on the embedded server: this process holds one.
    """
    return {
        **instance,
        "DATABASE_URL": database.url,
        "DIRECT_DATABASE_URL": database.direct_url,
        "DAGSTER_DISABLE_TELEMETRY": "yes",
    }


def _shown(loaded: Settings, name: str) -> str | int | float | bool | None:
    value = getattr(loaded, name)
    if value is None or isinstance(value, bool | int | float):
        return value
    return "***" if "SecretStr" in str(Settings.model_fields[name].annotation) else str(value)


def _free_port(first: int) -> int:
    for port in range(first, min(first + _PORTS_TRIED, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UsageError(f"No port from {first} on is free. Choose another with --port.")
