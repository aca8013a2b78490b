"""Answers that nobody played: an hour is replayed to the byte or not at all, and what was recorded brings what it brought.

In the market's own future, that is; what is kept are means over several.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from statistics import pstdev

import pytest

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge.answer_groups import NO_CALLS, NO_SOURCE, NOT_SIMULATED, OTHERS, answer_rules, sync_answer_groups, tick_score
from babylon_rl.llm.client import ChatClient
from babylon_rl.market import replay
from babylon_rl.market.simulation.games import POSITIONS
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.settings import Settings
from babylon_rl.store.answer_groups import ReplayedHour, read_replayed
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl_tests.market.stand_in import by_seed, stand_in

pytestmark = pytest.mark.slow  # databases of their own
NOW = datetime(2025, 11, 16, 9, 30)
HOURS = ["2025-11-15T10:00", "2025-11-15T11:00"]
HOLD = '{"action": "hold"}'
LATER = NOW + timedelta(hours=1)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"credit": "answers"})


@pytest.fixture
def played(database: Database) -> Iterator[Connection]:
    """Two hours of five scripts and two agents of a version, whose answers are drawn by seed."""
    with stand_in(by_seed) as served, ChatClient(served.url, None, "v1.0.0") as client, database.connect(autocommit=True) as connection:
        spawn(connection, SpawnRequest(7, 2, len(HOURS), 3, start=HOURS[0]), NOW, model_agent(client))
        yield connection


def synced(connection: Connection, settings: Settings, windows: list[str] = HOURS) -> dict[str, ReplayedHour]:
    sync_windows(connection, windows, settings, NOW)
    return sync_answer_groups(connection, windows, settings, NOW)


@pytest.fixture
def own_future(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "futures", lambda *_: [{}])


@pytest.mark.usefixtures("own_future")
def test_every_call_of_a_model_has_all_its_answers_and_the_recorded_one_brings_what_it_brought(
    played: Connection, settings: Settings
) -> None:
    hours = synced(played, settings)
    assert {window: (len(hour.groups), hour.answers, hour.reason) for window, hour in hours.items()} == dict.fromkeys(HOURS, (24, 216, ""))
    recorded = played.execute(
        """
        SELECT t."trajectoryId", t."stepsJson"::jsonb->0->'llmCalls'->0->>'response',
               coalesce((t."stepsJson"::jsonb->0->'action'->'parameters'->>'pnlChange')::float8, 0)
        FROM public.trajectories t WHERE t."stepsJson"::jsonb->0->'llmCalls'->0->>'model' = 'v1.0.0'
        """
    ).fetchall()
    replayed = {group.trajectory_id: {text: usd for text, usd, _ in group.answers} for hour in hours.values() for group in hour.groups}
    assert len(recorded) == 48 and {usd != 0 for _, _, usd in recorded} == {True, False}
    assert all(replayed[trajectory][response] == usd for trajectory, response, usd in recorded)


@pytest.mark.usefixtures("own_future")
def test_a_score_is_the_judges_rule_on_the_dollars_of_the_tick(played: Connection, settings: Settings) -> None:
    answers = [answer for hour in synced(played, settings).values() for group in hour.groups for answer in group.answers]
    assert all(score == tick_score(usd) for _, usd, score in answers)
    assert {(text, usd) for text, usd, _ in answers if "hold" in text} == {(HOLD, 0.0)}
    assert tick_score(20.0) > tick_score(5.0) > tick_score(0.0) > tick_score(-5.0) > tick_score(-20.0)


def test_the_luck_of_one_future_hardly_counts(played: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    usd: dict[int, list[float]] = {}
    for futures in (1, 2, 8, 64):
        monkeypatch.setattr(replay, "FUTURES", futures)
        played.execute("DELETE FROM babylon_rl.replayed_hours")
        usd[futures] = [one for hour in synced(played, settings).values() for group in hour.groups for _, one, _ in group.answers]
    off = {futures: pstdev(a - b for a, b in zip(usd[futures], usd[64], strict=True)) for futures in (1, 2, 8)}
    assert off[2] < off[1] / 2 and off[8] < off[2] / 2


def test_answers_of_positions_that_last_have_their_dollars_over_holding(database: Database, settings: Settings) -> None:
    with stand_in(by_seed) as served, ChatClient(served.url, None, "v1.0.0") as client, database.connect(autocommit=True) as connection:
        asks = model_agent(client, game=POSITIONS)
        spawn(connection, SpawnRequest(7, 2, len(HOURS), 3, start=HOURS[0], game=POSITIONS), NOW, asks)
        hours = synced(connection, settings)
    assert {hour.reason for hour in hours.values()} == {""} and [len(hour.groups) for hour in hours.values()] == [24, 24]
    brought = {usd for hour in hours.values() for group in hour.groups for text, usd, _ in group.answers if "close" in text}
    assert {usd > 0 for usd in brought} == {True, False}
    assert all((HOLD, 0.0, tick_score(0.0)) in group.answers for hour in hours.values() for group in hour.groups)


def test_an_hour_that_has_not_changed_is_not_replayed_again(played: Connection, settings: Settings) -> None:
    first = synced(played, settings)
    again = sync_answer_groups(played, HOURS, settings, LATER)
    assert [hour.changed for hour in first.values()] == [True, True] and [hour.changed for hour in again.values()] == [False, False]
    assert {w: hour.data_version for w, hour in again.items()} == {w: hour.data_version for w, hour in first.items()}
    assert {w: hour.groups for w, hour in read_replayed(played, HOURS).items()} == {w: hour.groups for w, hour in again.items()}


def test_no_answer_counts_as_played(played: Connection, settings: Settings) -> None:
    counted = 'SELECT (SELECT count(*) FROM public.trajectories), (SELECT count(*) FROM public.llm_call_logs), sum("rows") FROM {}'
    sync_windows(played, HOURS, settings, NOW)
    before = played.execute(counted.format("babylon_rl.windows")).fetchall()
    synced(played, settings)
    assert played.execute(counted.format("babylon_rl.windows")).fetchall() == before


def test_a_change_between_settings_that_make_no_answers_makes_no_hour_again(settings: Settings) -> None:
    def rules(**changes: str) -> str:
        return answer_rules(settings.model_copy(update=changes))

    assert rules(credit="hour") == rules(credit="part") == rules(judge_model="openai/x") == rules(credit="part", judge_model="openai/y")
    assert rules() != rules(credit="hour")


GUEST = """
    INSERT INTO public."User" SELECT (jsonb_populate_record(u, '{"id": "guest", "username": "guest"}')).* FROM public."User" u
    WHERE id = 'test-agent-2';
    UPDATE public.trajectories SET "agentId" = 'guest' WHERE "agentId" = 'test-agent-2'
"""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE babylon_rl.simulated_hours SET \"source\" = NULL", NO_SOURCE),
        ("DELETE FROM babylon_rl.simulated_hours", NOT_SIMULATED),
        ("UPDATE babylon_rl.simulated_hours SET seed = seed + 1", "cannot be replayed: The replay of tick 0 shows test-agent-1"),
        ("UPDATE babylon_rl.simulated_hours SET \"source\" = jsonb_set(\"source\", '{edition}', '\"lost\"')", "cannot be replayed: "),
        ("UPDATE babylon_rl.simulated_hours SET \"source\" = jsonb_set(\"source\", '{seats,0,1}', '9999.5')", "cannot be replayed: The"),
        ("UPDATE public.trajectories SET \"finalPnL\" = \"finalPnL\" + 1 WHERE \"agentId\" = 'test-agent-6'", "cannot be replayed: The"),
        ("DELETE FROM public.trajectories WHERE \"agentId\" = 'test-agent-2' AND \"startTime\" < '2025-11-15 11:09'", "cannot be"),
        (GUEST, OTHERS),
        ("UPDATE public.trajectories SET \"stepsJson\" = replace(\"stepsJson\", 'v1.0.0', 'scripted/momentum')", NO_CALLS),
    ],
)  # fmt: skip
def test_an_hour_that_is_not_the_recorded_one_has_no_answers_and_says_why(
    played: Connection, settings: Settings, change: str, reason: str
) -> None:
    played.execute(change)
    for hour in synced(played, settings).values():
        assert hour.groups == () and hour.reason.startswith(reason)


def test_calls_with_too_many_answers_have_none_replayed(played: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_ANSWERS", 3)
    assert {(hour.groups, hour.reason) for hour in synced(played, settings).values()} == {((), NO_CALLS)}
