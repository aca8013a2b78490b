"""Checks of ``babylon-rl verify-system``, one line each; a failed check does not stop the others."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from babylon_rl.errors import BabylonError
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database, open_database

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
_WANTED_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Check:
    """One line of the report: name, status and detail."""

    name: str
    status: str
    detail: str


def check_system(settings: Settings) -> Iterator[Check]:
    """Run all checks, in the order in which to repair failures."""
    # Each check is an attempt of its own; only an unreachable database skips those that need it.
    yield from _configuration(settings)
    yield _disk(settings.home)
    try:
        with open_database(settings, prepare=False) as database:
            kind = "embedded" if settings.uses_embedded_database else "DATABASE_URL"
            yield _attempt("database", lambda: (PASS, f"{_server(database)} at {database.address} ({kind})"))
            yield _attempt("schema", lambda: _schema(database))
            yield _attempt("dagster", lambda: _dagster(database, settings))
            yield _attempt("registry", lambda: _registry(database))
    except BabylonError as failed:
        yield Check("database", FAIL, str(failed))
    yield _attempt("judge", lambda: _judge(settings))
    yield _attempt("weights", lambda: _weights(settings))


def _attempt(name: str, look: Callable[[], tuple[str, str]]) -> Check:
    try:
        return Check(name, *look())
    except (BabylonError, OSError) as failed:
        return Check(name, FAIL, str(failed))


def _configuration(settings: Settings) -> Iterator[Check]:
    warnings = settings.warnings()
    for warning in warnings:
        yield Check("settings", WARN, warning)
    if not warnings:
        yield Check("settings", PASS, f"{len(Settings.model_fields)} settings, all allowed")


def _disk(home: Path) -> Check:
    existing = next(parent for parent in (home, *home.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1e9:.1f} GB free at {home}"
    return Check("disk", PASS, detail) if free >= _WANTED_BYTES else Check("disk", WARN, f"{detail}; a demo needs about 2 GB")


def _server(database: Database) -> str:
    with database.connect() as connection:
        return f"Postgres {connection.info.server_version // 10000}"


def _schema(database: Database) -> tuple[str, str]:
    from babylon_rl.store.migrate import migrate

    report = migrate(database, check_only=True)
    if report.applied:
        return FAIL, f"{len(report.applied)} steps are missing ({report.applied[0]} ...). Run `babylon-rl migrate`."
    if report.differences:
        return WARN, f"{len(report.differences)} differences from the contract, the first: {report.differences[0]}"
    return PASS, "up to date"


def _dagster(database: Database, settings: Settings) -> tuple[str, str]:
    from babylon_rl.automation.instance import open_instance

    database.prepare_dagster_schema()
    with open_instance(database, settings) as instance:
        runs = instance.get_runs_count()
    return PASS, f"{runs} runs recorded in schema babylon_dagster"


def _weights(settings: Settings) -> tuple[str, str]:
    from babylon_rl.models.base_model import DIRECTORY, DRY, damage

    if settings.local_base_model == DRY:
        return WARN, "LOCAL_BASE_MODEL: dry, which trains nothing"
    if settings.local_base_model is not None:
        is_directory = Path(settings.local_base_model).is_dir()
        return PASS, f"LOCAL_BASE_MODEL: {settings.local_base_model}" + ("" if is_directory else " (not a directory: taken for a hub id)")
    directory = settings.home / "models" / DIRECTORY
    reason = damage(directory)
    return (
        (PASS, str(directory)) if reason is None else (WARN, f"{directory}: {reason}. It is made at its first use, in about half a minute.")
    )


def _judge(settings: Settings) -> tuple[str, str]:
    from babylon_rl.judge.prompt.privacy import what_leaves

    return PASS, what_leaves(settings)


def _registry(database: Database) -> tuple[str, str]:
    from babylon_rl.store.registry import count_models

    with database.connect() as connection:
        counts = count_models(connection)
    if counts is None:
        return FAIL, "public.trained_models is not there. Run `babylon-rl migrate`."
    listed = ", ".join(f"{count} {status}" for status, count in counts.items())
    return PASS, listed or "no model yet"
