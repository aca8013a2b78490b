"""What an hour's scores and its quarantine rest on may change without an episode: a late answer, a setting. That is noticed."""

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest

from babylon_rl.cli.score import _lacking
from babylon_rl.episodes.reading import read_windows, sync_windows
from babylon_rl.judge import plan
from babylon_rl.judge.cost import estimate_hours
from babylon_rl.judge.plan import HOURS_PLANNED_AT_ONCE, input_versions
from babylon_rl.judge.prompt.render import render_groups
from babylon_rl.judge.prompt.request import plan_requests
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.scores import read_quarantined
from babylon_rl.store.windows import lock_windows
from babylon_rl_tests.assets.conftest import Bench, make_bench
from babylon_rl_tests.judge.model_judge import MODEL, NOW, add_hours, asking
from babylon_rl_tests.judge.scripted_server import Judge, judging
from babylon_rl_tests.judge.test_render import fill_market
from babylon_rl_tests.judge.test_scoring import consume
from babylon_rl_tests.rows import WINDOW, insert, make_group, make_log, make_trajectory
from babylon_rl_tests.scored import note_changes, read_hours, score_stale, score_windows
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge

__all__ = ["make_bench"]

LATER = NOW + timedelta(hours=1)
LATE_ANSWER = """UPDATE "Question" SET "resolvedOutcome" = true, status = 'resolved', "updatedAt" = now()::timestamp"""


@pytest.fixture
def judge() -> Iterator[Judge]:
    with judging() as running:
        yield running


def stale(connection: Connection) -> list[Any]:
    return [row[0] for row in connection.execute('SELECT "stale" FROM babylon_rl.group_scores ORDER BY "window"')]


def state(connection: Connection) -> list[str]:
    return [row[0] for row in connection.execute('SELECT "state" FROM babylon_rl.windows ORDER BY "window"')]


def test_a_late_official_answer_makes_scores_stale_and_they_are_judged_again(
    connection: Connection, settings: Settings, judge: Judge
) -> None:
    (window,) = add_hours(connection, 1)
    fill_market(connection)
    chosen = asking(settings, judge.url)
    score_windows(connection, [window], chosen, NOW)
    assert _lacking(connection, [window], chosen) == []
    connection.execute(LATE_ANSWER)
    read_hours(connection, [window], chosen, LATER)
    assert _lacking(connection, [window], chosen) == [window]
    assert [(hour.window, hour.requests) for hour in estimate_hours(connection, [window], chosen)] == [(window, 2)]
    assert stale(connection) == [False], "so far it was only asked"
    note_changes(connection, [window], chosen)
    assert stale(connection) == [True]
    sync_windows(connection, [window], chosen, LATER)
    assert stale(connection) == [True], "its episodes are what they were, what came of them is not"
    assert score_windows(connection, [window], chosen, LATER)[window].changed
    assert stale(connection) == [False] and _lacking(connection, [window], chosen) == []


def test_what_would_be_shown_as_it_was_is_stale_no_more_and_costs_nothing(connection: Connection, settings: Settings, judge: Judge) -> None:
    (window,) = add_hours(connection, 1)
    chosen = asking(settings, judge.url)
    score_windows(connection, [window], chosen, NOW)
    insert(connection, "llm_call_logs", [make_log("t0-0", reasoning="of a call that the steps hold themselves")])
    note_changes(connection, [window], chosen)
    assert stale(connection) == [True]
    assert not score_windows(connection, [window], chosen, LATER)[window].changed and judge.stats()["requests"] == 2
    assert stale(connection) == [False]


def test_the_form_of_what_is_shown_is_no_part_of_an_hours_version(connection: Connection, settings: Settings) -> None:
    (window,) = add_hours(connection, 1)
    connection.execute("""UPDATE "User" SET "displayName" = 'Zorblax', username = 'Zorblax' WHERE id = 'agent-1'""")
    readings = read_windows(connection, [window], settings)
    shown = {window: [episode.agent_id for episode in readings[window].usable_episodes]}
    chosen = settings.model_copy(update={"judge_model": "openai/gpt-4o-mini"})
    found = input_versions(connection, readings, shown, chosen, b"x")
    assert found == {window: "81f4c8869c357806"}, "every judged hour of every user would be paid for again"


@pytest.mark.slow
def test_a_judge_that_is_down_leaves_what_changed_stale(connection: Connection, settings: Settings) -> None:
    (window,) = add_hours(connection, 1)
    fill_market(connection)
    with judging() as judge:
        chosen = asking(settings, judge.url)
        score_windows(connection, [window], chosen, NOW)
    connection.execute(LATE_ANSWER)
    impatient = chosen.model_copy(update={"judge_timeout_seconds": 0.2})
    assert list(score_windows(connection, [window], impatient, LATER).pending) == [window] and stale(connection) == [True]


def test_a_consumed_hour_stays_as_it_is(connection: Connection, settings: Settings, judge: Judge) -> None:
    insert(connection, "trajectories", make_group())
    fill_market(connection)
    chosen = asking(settings, judge.url)
    score_windows(connection, [WINDOW], chosen, NOW)
    consume(connection, "t0", "agent-0")
    connection.execute(LATE_ANSWER)
    note_changes(connection, [WINDOW], chosen)
    assert _lacking(connection, [WINDOW], chosen) == [] and stale(connection) == [False]


@pytest.mark.slow
def test_the_graph_notices_a_late_answer_where_it_reads_the_market(
    make_bench: Callable[..., Bench], database: Database, settings: Settings, judge: Judge
) -> None:
    with database.connect() as connection:
        (window,) = add_hours(connection, 1)
        fill_market(connection)
    chosen = asking(settings, judge.url)
    bench = make_bench(database, NOW, **{name: getattr(chosen, name) for name in ("judge_model", "judge_base_url", "judge_disagreement")})
    bench.run("hours", window)
    with database.connect() as connection:
        connection.execute(LATE_ANSWER)
    bench.run("hours", window, asset_selection=[dg.AssetKey("market_outcomes")])
    with database.connect() as connection:
        assert stale(connection) == [True]


def test_changes_are_noted_under_the_lock_of_their_hour(database: Database, settings: Settings, judge: Judge) -> None:
    with database.connect() as connection:
        (window,) = add_hours(connection, 1)
        fill_market(connection)
        chosen = asking(settings, judge.url)
        score_windows(connection, [window], chosen, NOW)
        connection.execute(LATE_ANSWER)
    with database.connect() as reading, database.connect(autocommit=True) as noting:
        lock_windows(reading, [window])
        noting.execute("SET lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            plan.note_changes(noting, [window], chosen)
        reading.rollback()
        note_changes(noting, [window], chosen)
        assert stale(noting) == [True]


@pytest.mark.slow
@pytest.mark.parametrize("cause", ["settings", "content", "form"])
def test_a_quarantine_ends_with_its_cause(connection: Connection, settings: Settings, cause: str) -> None:
    (window,) = add_hours(connection, 1, agents=9)
    sync_windows(connection, [window], settings, NOW)
    with judging(ScriptedJudge(faults={"bad-request": 1.0})) as judge:
        chosen = asking(settings, judge.url)
        assert list(score_windows(connection, [window], chosen, NOW).quarantined) == [window]
        asked = judge.stats()["requests"]
        note_changes(connection, [window], chosen)
        assert list(score_windows(connection, [window], chosen, LATER).quarantined) == [window]
        assert judge.stats()["requests"] == asked and list(read_quarantined(connection)) == [window]
        judge.reset(faults={"bad-request": 0.0})
        if cause == "settings":
            chosen = chosen.model_copy(update={"judge_group_size": 6})
        elif cause == "form":
            connection.execute(
                """UPDATE babylon_rl.judge_quarantine SET "sourcesVersion" = regexp_replace("sourcesVersion", '^[0-9]+:', '1:')"""
            )
        else:
            insert(connection, "trajectories", [make_trajectory("late", "agent-0", minute=50, finalPnL=1.0, windowId=window)])
        assert list(score_windows(connection, [window], chosen, LATER)) == [window]
    assert read_quarantined(connection) == {}


@pytest.mark.slow
@pytest.mark.parametrize("noticed", ["when it is scored", "when it is read"])
def test_a_quarantine_ends_where_the_scores_from_before_it_stand_again(connection: Connection, settings: Settings, noticed: str) -> None:
    (window,) = add_hours(connection, 1, agents=9)
    sync_windows(connection, [window], settings, NOW)
    with judging() as judge:
        chosen = asking(settings, judge.url)
        before = score_windows(connection, [window], chosen, NOW)
        judge.reset(faults={"bad-request": 1.0})
        other = chosen.model_copy(update={"judge_group_size": 6})
        assert list(score_stale(connection, [window], other, LATER).quarantined) == [window]
        assert state(connection) == ["quarantined"]
        asked = judge.stats()["requests"]
        if noticed == "when it is read":
            note_changes(connection, [window], chosen)
        else:
            assert score_windows(connection, [window], chosen, LATER)[window].scores == before[window].scores
        assert judge.stats()["requests"] == asked
    assert read_quarantined(connection) == {} and state(connection) == ["scored"]


def test_a_quarantine_that_stands_outlasts_scores_that_a_training_has_used(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", make_group())
    sync_windows(connection, [WINDOW], settings, NOW)
    with judging() as judge:
        chosen = asking(settings, judge.url)
        score_windows(connection, [WINDOW], chosen, NOW)
        consume(connection, "t0", "agent-0")
        judge.reset(faults={"bad-request": 1.0})
        forced = chosen.model_copy(update={"judge_orders": 3})
        assert list(score_windows(connection, [WINDOW], forced, LATER, force=True).quarantined) == [WINDOW]
        note_changes(connection, [WINDOW], forced)
        assert list(score_windows(connection, [WINDOW], forced, LATER)) == [WINDOW]
    assert list(read_quarantined(connection)) == [WINDOW]


@pytest.mark.slow
def test_many_quarantines_end_together(connection: Connection, settings: Settings) -> None:
    windows = add_hours(connection, HOURS_PLANNED_AT_ONCE + 1)
    sync_windows(connection, windows, settings, NOW)
    with judging(ScriptedJudge(faults={"bad-request": 1.0})) as judge:
        chosen = asking(settings, judge.url)
        for window in windows:
            score_windows(connection, [window], chosen, NOW)
    assert list(read_quarantined(connection)) == windows
    insert(connection, "trajectories", [make_trajectory(f"late-{w}", "agent-0", minute=50, finalPnL=1.0, windowId=w) for w in windows[1:]])
    note_changes(connection, windows, chosen)
    assert list(read_quarantined(connection)) == windows[:1]


@pytest.mark.slow
def test_an_hour_whose_quarantine_has_lost_its_cause_may_be_batched_again(connection: Connection, settings: Settings) -> None:
    (window,) = add_hours(connection, 1)
    sync_windows(connection, [window], settings, NOW)
    with judging(ScriptedJudge(faults={"empty": 1.0})) as judge:
        chosen = asking(settings, judge.url)
        score_windows(connection, [window], chosen, NOW)
        insert(connection, "trajectories", [make_trajectory("late", "agent-0", minute=50, finalPnL=1.0, windowId=window)])
        note_changes(connection, [window], chosen)
    assert read_quarantined(connection) == {} and state(connection) == ["ready"]


def test_by_the_hour_requests_and_keys_are_those_from_before_parts(connection: Connection, settings: Settings) -> None:
    (window,) = add_hours(connection, 1, wordy=True)
    fill_market(connection)
    chosen = settings.model_copy(update={"judge_model": MODEL, "credit": "hour"})
    group = render_groups(connection, read_windows(connection, [window], chosen), chosen)[window]
    requests = [request for order in range(2) for request in plan_requests(group, MODEL, order, bytes(32), chosen)]
    content = json.dumps([[request.messages, request.schema, request.key] for request in requests])
    assert hashlib.sha256(content.encode()).hexdigest() == "7266298217795c975803185186597a7ffa4d6adfd89feda44a9b302f44f43470"
    by_part = render_groups(connection, read_windows(connection, [window], settings), chosen.model_copy(update={"credit": "part"}))[window]
    assert by_part.parts and by_part.input_version != group.input_version
