"""The views for people with psql say what the commands say, and stay true after a training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.cli.test_command_line import environment
from babylon_rl_tests.command_server import run_command
from babylon_rl_tests.store.pipeline import train_once

pytestmark = pytest.mark.slow

VIEWS = "SELECT viewname FROM pg_views WHERE schemaname = 'babylon_rl' ORDER BY 1"
Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """``ask(database, "windows")``: what the command says as JSON."""

    def run(database: Database, *arguments: str) -> dict[str, Any]:
        given = environment(tmp_path / "home", DATABASE_URL=database.url)
        done = run_command(*arguments, "--json", environment=given, directory=tmp_path)
        done.check_returncode()
        return json.loads(done.stdout)

    return run


def read(database: Database, query: str) -> list[dict[str, Any]]:
    with database.connect() as connection, connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query).fetchall()


@pytest.mark.long
def test_window_summary_says_what_the_command_says_also_after_a_training(every_hour: Database, settings: Settings, ask: Ask) -> None:
    before = compare_windows(every_hour, ask)
    train_once(every_hour, settings)
    assert 0 < compare_windows(every_hour, ask) < before


def compare_windows(database: Database, ask: Ask) -> int:
    """Compare every number; gives the new trainable rows of all hours."""
    told = ask(database, "windows")["windows"]
    seen = {row["window_id"]: row for row in read(database, "SELECT * FROM babylon_rl.window_summary")}
    assert list(seen) == [entry["window"] for entry in told]
    for entry in told:
        row = seen[entry["window"]]
        names = {
            "rows": "rows", "eligible": "eligible", "newTrainable": "new_trainable", "agents": "agents", "episodes": "episodes",
            "usableEpisodes": "usable_episodes", "trainableSequences": "trainable_sequences",
        }  # fmt: skip
        assert {name: row[column] for name, column in names.items()} == {name: entry[name] for name in names}
        assert row["rejected"] == sum(entry["rejected"].values())
        assert {source: row[source] for source in entry["messageSources"]} == entry["messageSources"]
        assert row["avg_pnl"] == pytest.approx(entry["avgPnl"])
        assert row["state"] == entry["state"]
    return sum(row["new_trainable"] for row in seen.values())


def test_an_hour_in_the_views_is_the_hour_of_the_commands(every_hour: Database, ask: Ask) -> None:
    hour = "2025-10-29T14:00"
    market = ask(every_hour, "outcomes", hour)
    (window,) = read(every_hour, f"SELECT * FROM babylon_rl.window_summary WHERE window_id = '{hour}'")
    assert (window["stocks"], window["predictions"]) == (len(market["stocks"]), len(market["predictions"]))
    assert window["mean_change"] == pytest.approx(market["market"]["meanChange"])
    assert window["volatility"] == pytest.approx(market["market"]["volatility"])
    group = ask(every_hour, "scores", hour)
    assert (window["judge"], window["mean_score"], window["score_spread"]) == (group["judge"], group["mean"], group["spread"])
    assert window["score_stale"] is False

    lines = read(every_hour, f"SELECT * FROM babylon_rl.episode_summary WHERE window_id = '{hour}'")
    told = {entry["agentId"]: entry for entry in ask(every_hour, "episodes", hour)["episodes"]}
    scores = {entry["agentId"]: entry for entry in group["scores"]}
    assert {line["agent_id"] for line in lines} == set(told)
    assert [line["rank"] for line in lines] == sorted(line["rank"] for line in lines)
    assert sum(line["actions_judged"] for line in lines) == window["actions_judged"] > 0
    assert sum(line["actions_right"] for line in lines) == window["actions_right"] > 0
    assert (window["leaked_sequences"], window["duplicate_rows"], window["skewed_rows"], window["jumping_agents"]) == (0, 0, 0, 0)
    for line in lines:
        entry, score = told[line["agent_id"]], scores[line["agent_id"]]
        assert line["trajectories"] == len(entry["trajectoryIds"])
        assert [line["steps"], line["wins"], line["losses"], line["trades"], line["posts"], line["usable"]] == [
            entry[name] for name in ("steps", "wins", "losses", "trades", "posts", "usable")
        ]
        assert line["window_pnl"] == pytest.approx(entry["windowPnl"])
        assert (line["win_rate"], line["score"], line["rank"], line["advantage"]) == (
            entry["winRate"], score["score"], score["rank"], score["advantage"]
        )  # fmt: skip


def test_rejection_summary_counts_what_the_command_lists(every_hour: Database, ask: Ask) -> None:
    listed = ask(every_hour, "rejected")["rejected"]
    details = {(entry["window"], entry["reason"], entry["trajectoryId"]): entry["detail"] for entry in listed}
    lines = read(every_hour, "SELECT * FROM babylon_rl.rejection_summary")
    assert sum(line["rows"] for line in lines) == len(listed)
    for line in lines:
        key = (line["window_id"], line["reason"])
        assert line["rows"] == sum(entry["window"] == key[0] and entry["reason"] == key[1] for entry in listed)
        assert details[(*key, line["example_id"])] == line["example_detail"]


@pytest.mark.long
def test_batches_and_versions_are_those_of_the_commands(every_hour: Database, settings: Settings, ask: Ask) -> None:
    batch = train_once(every_hour, settings)
    (line,) = read(every_hour, "SELECT * FROM babylon_rl.batch_summary")
    told = ask(every_hour, "batches", "show", batch.batch_id)
    assert (line["batch_id"], line["state"], line["iterations"]) == (batch.batch_id, "completed", 1)
    assert line["loss"] == told["iterations"][0]["loss"]
    assert line["episodes"] + line["dropped_episodes"] == len(told["episodes"])
    (version,) = read(every_hour, "SELECT * FROM babylon_rl.version_summary")
    assert (version["version"], version["batch_id"]) == (line["version"], batch.batch_id)
    assert [version["version"]] == [entry["version"] for entry in ask(every_hour, "models")["models"] if not entry["foreign"]]


def test_no_view_keeps_the_game_from_changing_its_tables(database: Database) -> None:
    with database.connect() as connection:
        for table in ("trajectories", "training_batches", "trained_models", "market_outcomes", "llm_call_logs", "reward_judgments"):
            connection.execute(f"ALTER TABLE {table} ALTER COLUMN id TYPE varchar(100)")
        dependent = """
            SELECT d.refobjid::regclass::text FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class c ON c.oid = d.refobjid
            JOIN pg_class v ON v.oid = r.ev_class WHERE v.relnamespace = 'babylon_rl'::regnamespace
              AND c.relnamespace = 'public'::regnamespace
        """
        assert connection.execute(dependent).fetchall() == []


def test_every_view_says_what_it_is_and_can_be_typed_without_quotes(database: Database) -> None:
    with database.connect() as connection:
        views = [name for (name,) in connection.execute(VIEWS)]
        assert {"window_summary", "episode_summary", "rejection_summary", "batch_summary", "version_summary"} <= set(views)
        for view in views:
            assert connection.execute("SELECT obj_description(%s::regclass)", (f"babylon_rl.{view}",)).fetchone() != (None,)
            columns = [column.name for column in connection.execute(f"SELECT * FROM babylon_rl.{view}").description or ()]
            connection.execute(f"SELECT {', '.join(columns)} FROM babylon_rl.{view}")  # unquoted: neither capitals nor reserved words


def test_views_keep_nobody_from_writing_the_tables(every_hour: Database) -> None:
    with every_hour.connect() as connection, pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        connection.execute("DELETE FROM babylon_rl.window_summary")
