"""docs/howto/least-privilege.sql, run as it is: its roles can do all that the pipeline does, and nothing else."""

import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psycopg
import pytest

from babylon_rl.automation.launch import run_hours
from babylon_rl.episodes.reading import read_windows
from babylon_rl.judge.prompt.render import render_groups
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.recorder import TrajectoryRecorder
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.cli.test_command_line import environment
from babylon_rl_tests.command_server import run_command
from babylon_rl_tests.judge.model_judge import asking
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.store.pipeline import content, run_every_hour, train_once
from babylon_rl_tests.store.servers import ROOT
from babylon_rl_tests.training.sample import NOW

SCRIPT = ROOT / "docs" / "howto" / "least-privilege.sql"
FORBIDDEN = [
    """UPDATE trajectories SET "stepsJson" = '[]'""",
    """UPDATE trajectories SET "finalPnL" = 0, "aiJudgeReward" = 1""",
    "DELETE FROM trajectories",
    "TRUNCATE trajectories CASCADE",
    """INSERT INTO llm_call_logs (id) VALUES ('x')""",
    """UPDATE "Question" SET "resolvedOutcome" = true""",
    """INSERT INTO "StockPrice" (id) VALUES ('x')""",
    """UPDATE "User" SET "virtualBalance" = 1000000""",
    """SELECT email FROM "User\"""",
    """SELECT "twitterAccessToken" FROM "User\"""",
    """SELECT * FROM "User\"""",
    """SELECT * FROM "SystemSettings\"""",
    """SELECT * FROM "BalanceTransaction\"""",
    "DELETE FROM trained_models",
    "DELETE FROM reward_judgments",
    "ALTER TABLE trajectories ADD COLUMN mine text",
    "CREATE INDEX mine ON trajectories (id)",
    "DROP TABLE market_outcomes",
    "CREATE TABLE public.mine (id text)",
    "CREATE SCHEMA mine",
    "CREATE ROLE mine",
]
COMMANDS = (
    *("migrate --check", "windows", "rejected", "episodes 2025-10-29T14:00", "outcomes 2025-10-29T14:00", "scores 2025-10-29T14:00"),
    *("sync-outcomes --hours 24", "batches", "models", "verify-data"),  # the last finds faults in this game, which is its exit code 1
)
_numbers = itertools.count(1)


@dataclass
class Roles:
    """Roles that the script has made, by the name of its variable, on one database."""

    database: Database
    names: dict[str, str] = field(default_factory=dict)

    def run(self, **variables: str) -> None:
        """Run the script as the owner, as the documentation says, and give the roles a password."""
        self.names |= variables
        given = [part for name, value in variables.items() for part in ("-v", f"{name}={value}")]
        psql = Cluster(Path()).programs / "psql"
        command = [psql, "-q", "-X", "-v", "ON_ERROR_STOP=1", *given, "-f", SCRIPT, self.database.url]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=os.environ | {"PGOPTIONS": "-c client_min_messages=warning"})
        with self.database.connect(autocommit=True) as connection:
            for role in variables.values():
                connection.execute(f"""ALTER ROLE "{role}" PASSWORD 'x'""")

    def as_(self, variable: str) -> Database:
        """The database as that role sees it."""
        url = re.sub("//[^@]*@", f"//{self.names[variable]}:x@", self.database.url)
        return Database(url, url)


@pytest.fixture
def roles(raw_sample_database: Database) -> Iterator[Roles]:
    """The script on the recorded game as the game left it; its roles are dropped after the test."""
    made = Roles(raw_sample_database)
    yield made
    with raw_sample_database.connect(autocommit=True) as connection:
        for role in reversed(made.names.values()):
            connection.execute(f'DROP OWNED BY "{role}" CASCADE')
            connection.execute(f'DROP ROLE "{role}"')


@pytest.fixture
def role() -> str:
    """A name that needs quotes and that no other test has: roles belong to the whole server."""
    return f"Pipeline-{os.getpid()}-{next(_numbers)}"


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_role_migrates_and_runs_all_that_the_owner_can(
    roles: Roles, role: str, settings: Settings, every_hour: Database, tmp_path: Path
) -> None:
    roles.run(role=role)
    database = roles.as_("role")
    report = migrate(database)
    assert report.differences == () and len(report.adopted) == 19
    hours = run_every_hour(database, settings)
    assert content(roles.database, hours) == content(every_hour, hours)
    train_once(database, settings)
    for command in COMMANDS:
        done = speak_json(database, tmp_path, *command.split())
        assert done.returncode == (1 if command == "verify-data" else 0), done.stderr


@pytest.mark.long
def test_a_database_that_its_owner_migrated_before_is_handed_over(roles: Roles, role: str, settings: Settings) -> None:
    migrate(roles.database)
    roles.database.prepare_dagster_schema()
    roles.run(role=role)
    roles.run(role=role)  # and again, after an upgrade
    database = roles.as_("role")
    assert migrate(database).applied == ()
    database.prepare_dagster_schema()
    run_hours(database, settings, ["2025-10-29T14:00"], now=lambda: NOW)


@pytest.mark.long
def test_the_role_scores_with_a_language_model(roles: Roles, role: str, settings: Settings) -> None:
    roles.run(role=role)
    database = roles.as_("role")
    migrate(database)
    hour = "2025-10-29T14:00"
    with judging() as judge, database.connect(autocommit=True) as connection:
        chosen = asking(settings, judge.url)
        scored = score_windows(connection, [hour], chosen, NOW)
        assert list(scored) == [hour] and scored.notes == []
        assert any("Hidden from the agents" in sentence for sentence in context_of(connection, hour, chosen))
        with roles.database.connect(autocommit=True) as owner:
            for columns in ('(outcome) ON public."Question"', '(username, "displayName") ON public."User"'):
                owner.execute(f'REVOKE SELECT {columns} FROM "{role}"')
        less = score_windows(connection, [hour], chosen, NOW)
        assert less[hour].changed and [note[:10] for note in less.notes] == ["The hidden", "The names "]
        assert not any("the engine decided" in sentence for sentence in context_of(connection, hour, chosen))


def context_of(connection: Connection, hour: str, settings: Settings) -> tuple[str, ...]:
    return render_groups(connection, read_windows(connection, [hour], settings), settings)[hour].context


def test_the_role_may_do_nothing_else(roles: Roles, role: str) -> None:
    roles.run(role=role)
    migrate(roles.as_("role"))
    with roles.as_("role").connect() as connection:
        assert [statement for statement in FORBIDDEN if not refused(connection, statement)] == []


def refused(connection: Connection, statement: str) -> bool:
    try:
        connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return True
    finally:
        connection.rollback()
    return False


def test_the_recorders_role_writes_rows_and_reads_their_ids_alone(roles: Roles, role: str, settings: Settings) -> None:
    roles.run(role=role, recorder=f"{role}-recorder")
    database = roles.as_("recorder")
    with roles.database.connect() as owner:
        (agent,) = owner.execute('SELECT min("agentId") FROM trajectories').fetchone() or ("",)
    with TrajectoryRecorder.connect(database.url, settings=settings) as recorder:
        record(recorder, agent)
        recorder.flush()
        assert recorder.report().recorded == 1, recorder.report().sentence
    with database.connect() as connection:
        connection.execute("SELECT id FROM trajectories")
        others = [
            "UPDATE trajectories SET id = id",
            'SELECT id FROM "User"',
            'SELECT "stepsJson" FROM trajectories',
            "DELETE FROM llm_call_logs",
        ]
        assert [statement for statement in others if not refused(connection, statement)] == []


def test_the_spawners_role_plays_on_a_real_game(roles: Roles, role: str) -> None:
    roles.run(role=role, spawner=f"{role}-spawner")
    database = roles.as_("spawner")
    migrate(roles.as_("role"))
    migrate(database)
    database.prepare_dagster_schema()
    with database.connect() as connection:
        (hour,) = spawn(connection, SpawnRequest(3, 0, 1, 0, 60, "2025-10-29T14:00"), datetime(2025, 10, 31), None)
        assert hour.trajectories > 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute('UPDATE "StockPrice" SET price = 1')


def test_the_readers_role_sees_the_views_alone(roles: Roles, role: str) -> None:
    roles.run(role=role)
    migrate(roles.as_("role"))
    roles.run(role=role, reader=f"{role}-reader")
    with roles.as_("reader").connect() as connection:
        for view in ("window_summary", "episode_summary", "rejection_summary", "batch_summary", "version_summary"):
            connection.execute(f"SELECT * FROM babylon_rl.{view}")
        assert refused(connection, "SELECT * FROM babylon_rl.windows")
        assert refused(connection, "SELECT * FROM public.trajectories")


def test_without_a_role_the_script_changes_nothing(raw_sample_database: Database) -> None:
    psql = Cluster(Path()).programs / "psql"
    done = subprocess.run([psql, "-X", "-f", SCRIPT, raw_sample_database.url], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "Name the role: psql -v role=babylon_rl" in done.stderr


def record(recorder: TrajectoryRecorder, agent: str) -> None:
    """One trajectory of one step with a call."""
    with recorder.trajectory(agent) as trajectory:
        call = {"model": "m", "messages": [{"role": "user", "content": "Buy?"}], "response": "No.", "temperature": 0.7, "max_tokens": 9}
        recorder.record_step(
            trajectory,
            environment_state={"balance": 1000, "pnl": 50},
            action={"type": "HOLD", "params": {}},
            reward=0.0,
            llm_calls=[call],
        )
        recorder.end_trajectory(trajectory, balance=1000, pnl=50)


def speak_json(database: Database, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = environment(home / "home", DATABASE_URL=database.url)
    return run_command(*arguments, "--json", environment=variables, directory=home)
