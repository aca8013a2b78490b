"""Checks of ``verify-system``: a trial of each part, and a line with its state.

A line also says what would fail soon. Nothing is changed: the file that tries the storage is removed again, and the judge is asked one
question of a few tokens.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import psycopg

from babylon_rl.errors import BabylonError, CheckFailed, JudgeRefused, NoTrainer, first_line
from babylon_rl.files.location import Location, describing_failures, local_path
from babylon_rl.judge.client import JudgeClient
from babylon_rl.judge.prompt.privacy import what_leaves
from babylon_rl.llm.retries import Retries
from babylon_rl.models.base_model import DRY, damage, is_of_the_hub, kept_base, stored_base
from babylon_rl.reporting.numbers import about
from babylon_rl.setting_sources import gone_settings
from babylon_rl.settings import HEURISTIC, Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.migrate import migrate
from babylon_rl.store.registry import count_models
from babylon_rl.store.training_status import AutomationState, arrivals, automation_state, clock_of
from babylon_rl.training.backends.protocol import CPU, TRAINING_GB, trainer_choice
from babylon_rl.types import Check
from babylon_rl.windows import utc_now

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
JUDGE_TRIAL_S = 20.0
DAEMON_SEEN_WITHIN, DATA_WITHIN = timedelta(minutes=5), timedelta(hours=24)
CLOCK_WARN_S, CLOCK_FAIL_S = 5.0, 60.0
PACKAGED_WEIGHTS_GB = 1.0  # on top of what a training writes, where they are not there yet
_TRIAL = [{"role": "user", "content": 'Answer with this JSON object and nothing else: {"ok": true}'}]
_TRIAL_SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}


def check_system(settings: Settings, production: bool = False) -> Iterator[Check]:
    """Run all checks, in the order in which to repair failures.

    A daemon that does not run and data that do not come fail where automation is meant to run: in production, and where it has run and
    AUTOMATION_STATUS does not say that it is stopped.
    """
    yield from _configuration(settings)
    yield attempt("disk", lambda: _disk(settings))
    yield attempt("storage", lambda: _storage(settings))
    try:
        with open_database(settings, prepare=False) as database, database.connect(autocommit=True) as connection:
            kind = "embedded" if settings.uses_embedded_database else "DATABASE_URL"
            server = f"Postgres {connection.info.server_version // 10000}"
            yield Check("database", PASS, f"{server} at {database.address} ({kind})")
            yield attempt("clock", lambda: _clock(connection))
            yield attempt("schema", lambda: _schema(database))
            try:
                has_run = automation_state(connection).seen_at is not None
            except psycopg.Error:  # of a role without the right: the line automation says so
                has_run = False
            expected = production or (settings.automation_status == "running" and has_run)
            # An embedded database holds what was simulated, which is of any time.
            yield attempt("data", lambda: _data(connection, expected and not settings.uses_embedded_database))
            yield attempt("automation", lambda: _automation(automation_state(connection), expected))
            yield attempt("registry", lambda: _registry(connection))
    except BabylonError as failed:
        yield Check("database", FAIL, str(failed))
    yield attempt("judge", lambda: _judge(settings))
    yield attempt("weights", lambda: _weights(settings))


def attempt(name: str, look: Callable[[], tuple[str, str]]) -> Check:
    """Make a check of a function's (status, detail). An error of a known kind fails it."""
    try:
        return Check(name, *look())
    except (BabylonError, OSError) as failed:
        return Check(name, FAIL, str(failed))
    except psycopg.Error as failed:
        return Check(name, FAIL, f"the database refused: {first_line(failed)}. Run `babylon-rl migrate`, and see the line above.")


def _configuration(settings: Settings) -> Iterator[Check]:
    warnings = settings.warnings() + gone_settings(Settings)
    yield from (Check("settings", WARN, warning) for warning in warnings)
    if not warnings:
        yield Check("settings", PASS, f"{len(Settings.model_fields)} settings, all allowed")


def _existing(directory: Path) -> Path:
    return next(parent for parent in (directory, *directory.parents) if parent.exists())


def _disk(settings: Settings) -> tuple[str, str]:
    free_gb = shutil.disk_usage(_existing(settings.home)).free / 1e9
    try:
        backend = trainer_choice(settings).backend
    except NoTrainer:
        backend = CPU
    needed_gb = TRAINING_GB[backend]
    packaged = backend == CPU and settings.local_base_model is None
    if packaged and damage(kept_base(settings)) is not None:
        needed_gb += PACKAGED_WEIGHTS_GB
    detail = f"{free_gb:.1f} GB free at {settings.home}; a training ({backend}) needs about {needed_gb:g} GB"
    if free_gb < needed_gb:
        return FAIL, f"{detail}. Make room, or move BABYLON_RL_HOME."
    # Below twice as much the training after this one will lack room.
    return (WARN if free_gb < 2 * needed_gb else PASS), detail


def _storage(settings: Settings) -> tuple[str, str]:
    """Write, read and remove a file where checkpoints go, and at MODEL_STORAGE_URL."""
    places = [str(_existing(settings.home / "checkpoints"))]
    if settings.model_storage_url is not None:
        local = local_path(settings.model_storage_url)
        places.append(settings.model_storage_url if local is None else str(_existing(local)))
    for place in places:
        _try_storage(place)
    return PASS, f"written, read and removed a file at {' and '.join(Location(place).shown for place in places)}"


def _try_storage(place: str) -> None:
    location = Location(place)
    with describing_failures(place, lambda reason, _: CheckFailed(f"{location.shown}: {reason}. Mend it, or choose another place.")):
        name, content = f".verify-system-{uuid4().hex}", os.urandom(1024)
        with tempfile.NamedTemporaryFile() as source:
            source.write(content)
            source.flush()
            location.put(Path(source.name), name)
        try:
            if location.read(name) != content:
                raise CheckFailed(f"{location.shown} gave back other bytes than were written.")
        finally:
            location.remove(name)


def _clock(connection: Connection) -> tuple[str, str]:
    before = utc_now()
    server = clock_of(connection)
    apart_s = (server - before).total_seconds()
    detail = f"this machine and the database are {abs(apart_s):.1f} s apart"
    if abs(apart_s) > CLOCK_FAIL_S:
        return FAIL, f"{detail}: hours would be read too early or too late. Set both clocks by NTP."
    return (WARN if abs(apart_s) > CLOCK_WARN_S else PASS), detail


def _schema(database: Database) -> tuple[str, str]:
    report = migrate(database, check_only=True)
    if report.applied:
        return FAIL, f"{len(report.applied)} steps are missing ({report.applied[0]} ...). Run `babylon-rl migrate`."
    if report.differences:
        return WARN, f"{len(report.differences)} differences from the contract, the first: {report.differences[0]}"
    return PASS, "up to date"


def _data(connection: Connection, expected: bool) -> tuple[str, str]:
    now = clock_of(connection)
    came = arrivals(connection, now)
    if came.newest_at is None:
        return (FAIL if expected else WARN), "no trajectory yet"
    age = now - came.newest_at
    detail = f"the newest trajectory ended {about(age.total_seconds())} ago; {came.last24h} came in 24 hours, {came.last7d} in 7 days"
    if age > DATA_WITHIN:
        return (FAIL if expected else WARN), f"{detail}. See that agents run and record; `babylon-rl verify-data` fails."
    return PASS, detail


def _automation(state: AutomationState, expected: bool) -> tuple[str, str]:
    silent = FAIL if expected else WARN
    now = utc_now()
    if state.seen_at is None:
        return silent, "Dagster's daemon has never run on this database; `babylon-rl dev` starts it"
    detail = f"the daemon was seen {about((now - state.seen_at).total_seconds())} ago, {state.runs} runs recorded"
    if now - state.seen_at > DAEMON_SEEN_WITHIN:
        advice = "Start `babylon-rl dev`, or the service that runs it; where nothing shall happen by itself, set AUTOMATION_STATUS=stopped."
        return silent, f"{detail}: nothing happens by itself. {advice}"
    if state.stopped:
        return WARN, f"{detail}; switched off: {', '.join(state.stopped)}. The UI's page Automation switches them on."
    return PASS, f"{detail}; no sensor or schedule is switched off by hand"


def _registry(connection: Connection) -> tuple[str, str]:
    counts = count_models(connection)
    if counts is None:
        return FAIL, "public.trained_models is not there. Run `babylon-rl migrate`."
    listed = ", ".join(f"{count} {status}" for status, count in counts.items())
    return PASS, listed or "no model yet"


def _judge(settings: Settings) -> tuple[str, str]:
    """Ask the judge one short question, without the game's texts."""
    leaves = what_leaves(settings)
    if settings.judge_model == HEURISTIC:
        return PASS, leaves

    async def ask() -> float:
        # One short try: a check says how things are now.
        quick = settings.model_copy(update={"judge_timeout_seconds": min(JUDGE_TRIAL_S, settings.judge_timeout_seconds)})
        async with JudgeClient(quick, retries=Retries(attempts=1, total_s=JUDGE_TRIAL_S)) as client:
            return (await client.ask(_TRIAL, _TRIAL_SCHEMA)).latency_s

    try:
        latency_s = asyncio.run(ask())
    except JudgeRefused as refused:
        if refused.for_all:
            raise
        return WARN, f"it is there, and refused a trial question ({refused}); {leaves}"
    return PASS, f"answered a trial question in {latency_s:.1f} s; {leaves}"


def _weights(settings: Settings) -> tuple[str, str]:
    given = settings.local_base_model
    if given == DRY:
        return WARN, "LOCAL_BASE_MODEL: dry, which trains nothing"
    if given is None:
        directory = kept_base(settings)
        reason = damage(directory)
        later = f"{directory}: {reason}. It is made at its first use, in about half a minute, or fetched from MODEL_STORAGE_URL."
        return (PASS, str(directory)) if reason is None else (WARN, later)
    directory = Path(given).expanduser()
    if directory.is_dir():
        reason = damage(directory)
        return (PASS, f"LOCAL_BASE_MODEL: {directory}") if reason is None else (FAIL, f"LOCAL_BASE_MODEL {directory}: {reason}.")
    if is_of_the_hub(given):
        return _hub_weights(given)
    fetched = kept_base(settings)
    if fetched.exists():
        reason = damage(fetched)
        return (PASS, f"LOCAL_BASE_MODEL: fetched to {fetched}") if reason is None else (FAIL, f"{fetched}: {reason}. Remove it.")
    if stored_base(settings) is not None:
        return PASS, f"LOCAL_BASE_MODEL: {directory.name}, at MODEL_STORAGE_URL, from where it is fetched at its first use"
    return FAIL, f"LOCAL_BASE_MODEL is {given!r}, and there is no such directory. Correct or unset it."


def _hub_weights(name: str) -> tuple[str, str]:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        # The cache first: weights that are here need no hub.
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return PASS, f"LOCAL_BASE_MODEL: {name}, here in the hub's cache"
        HfApi().model_info(name, timeout=10)
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as missing:
        return FAIL, f"LOCAL_BASE_MODEL is {name!r}: no such directory, and the hub does not have it ({first_line(missing)})."
    return WARN, f"LOCAL_BASE_MODEL: {name} is at the hub and not here yet; its first use downloads it"
