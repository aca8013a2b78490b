"""spawn-agents on real databases: whole hours, the same for the same seed, and nothing of a real game is touched."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.episodes.reading import read_window
from babylon_rl.errors import MarketError, ModelUnavailable, UsageError
from babylon_rl.llm.client import ChatClient
from babylon_rl.market.headlines import TRAINING
from babylon_rl.market.outcomes import read_outcomes
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.market.spawn import SEED_PREFIX, TICKS, SpawnedHour, SpawnRequest, players_of, spawn, training_seed, windows_to_play
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.migrate import migrate, read_migrations
from babylon_rl_tests.market.stand_in import by_seed, stand_in

NOW = datetime(2025, 11, 16, 9, 30)
START = "2025-11-15T10:00"
NEXT = "2025-11-15T11:00"
TABLES = (
    "User", "Organization", "StockPrice", "Question", "Market", "PredictionPriceHistory", "WorldEvent", "trajectories", "llm_call_logs",
)  # fmt: skip


def request(**changes: Any) -> SpawnRequest:
    return SpawnRequest(**({"agents": 5, "model_agents": 0, "windows": 1, "seed": 0, "start": START} | changes))


def play(database: Database, asked: SpawnRequest, **changes: Any) -> list[SpawnedHour]:
    with database.connect() as connection:
        return spawn(connection, asked, NOW, **({"model": None} | changes))


def rows(database: Database, table: str) -> list[tuple[Any, ...]]:
    with database.connect() as connection:
        return connection.execute(f'SELECT * FROM public."{table}" ORDER BY id').fetchall()


def everything(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    with database.connect() as connection:
        hours = connection.execute("SELECT * FROM babylon_rl.simulated_hours ORDER BY 1").fetchall()
    return {table: rows(database, table) for table in TABLES} | {"simulated_hours": hours}


def rows_of(database: Database, query: str) -> list[tuple[Any, ...]]:
    with database.connect() as connection:
        return connection.execute(query).fetchall()


def one(database: Database, query: str, *parameters: Any) -> Any:
    with database.connect() as connection:
        row = connection.execute(query, parameters).fetchone()
    return row[0] if row else None


def test_an_hour_is_written_as_the_contract_says(database: Database) -> None:
    (hour,) = play(database, request())
    assert hour.document["window"] == START and hour.trajectories == 60 and len(hour.agents) == 5
    assert {table: len(found) for table, found in everything(database).items()} == {
        "User": 5, "Organization": 3, "StockPrice": 3 * 60 * 2, "Question": 1, "Market": 1, "PredictionPriceHistory": 14, "WorldEvent": 12,
        "trajectories": 60, "llm_call_logs": 60, "simulated_hours": 1,
    }  # fmt: skip
    assert one(database, 'SELECT count(*) FROM public.trajectories AS t JOIN public.llm_call_logs AS l USING ("trajectoryId")') == 60
    assert one(database, 'SELECT bool_and(q.id = m.id) FROM public."Question" q, public."Market" m')
    assert one(database, 'SELECT count(*) FROM public."User" WHERE "isAgent" AND "isTest"') == 5


def test_the_hour_reads_back_as_a_ready_group_with_its_outcomes(database: Database, settings: Settings) -> None:
    (hour,) = play(database, request())
    with database.connect() as connection:
        read, outcomes = read_window(connection, START, settings), read_outcomes(connection, START, settings)
    assert read.ready and not read.rejections
    assert {episode.agent_id: round(episode.window_pnl, 2) for episode in read.episodes} == {
        agent: round(pnl, 2) for agent, _, pnl in hour.agents
    }
    sequences = [sequence for episode in read.episodes for sequence in episode.sequences]
    assert len(sequences) == 60 and all(sequence.scripted and sequence.response_format for sequence in sequences)
    assert len(outcomes.stocks) == 3 and len(outcomes.predictions) == 1
    first, last = (
        one(database, f'SELECT "yesPrice" FROM public."PredictionPriceHistory" ORDER BY "createdAt" {way}') for way in ("", "DESC")
    )
    assert (outcomes.predictions[0].start_probability, outcomes.predictions[0].end_probability) == pytest.approx((first, last), abs=1e-4)


@pytest.mark.slow
def test_the_same_seed_and_start_give_the_same_rows_on_two_databases(copy_of: Callable[[str], Database]) -> None:
    made = []
    for _ in range(2):
        database = copy_of("migrated")
        with stand_in(by_seed) as served, ChatClient(served.url, None, "m") as client:
            play(database, request(agents=4, model_agents=2, windows=2), model=model_agent(client))
        made.append(everything(database))
    assert made[0] == made[1]
    assert len(made[0]["trajectories"]) == 4 * 12 * 2


@pytest.mark.slow
def test_hours_played_one_by_one_equal_hours_played_in_one_go(copy_of: Callable[[str], Database]) -> None:
    at_once, stepwise = copy_of("migrated"), copy_of("migrated")
    play(at_once, request(windows=3))
    for start in (START, None, None):
        play(stepwise, request(start=start))
    assert everything(at_once) == everything(stepwise)


def test_another_seed_gives_another_hour(copy_of: Callable[[str], Database]) -> None:
    first, second = copy_of("migrated"), copy_of("migrated")
    play(first, request())
    play(second, request(seed=1))
    assert rows(first, "WorldEvent") != rows(second, "WorldEvent")


def test_a_second_run_appends_the_next_hours_and_accounts_go_on(database: Database) -> None:
    (first,) = play(database, request())
    (second,) = play(database, request(start=None))
    assert second.window == NEXT
    for agent, _, pnl in first.agents:
        began = one(database, """
            SELECT (("stepsJson"::jsonb)->0->'environmentState'->>'agentPnL')::float FROM public.trajectories
            WHERE "agentId" = %s AND "windowId" = %s ORDER BY "startTime" LIMIT 1""", agent, NEXT)  # fmt: skip
        assert began == pytest.approx(pnl, abs=0.006)
    earlier = {row[0]: row for row in rows(database, "Question")}
    assert len(earlier) == 2


def test_an_hours_prices_begin_where_the_last_known_ones_ended(database: Database) -> None:
    play(database, request(windows=6))
    with database.connect() as connection:
        found = connection.execute(
            """
            SELECT trajectory."windowId", quote->>'market', (quote->>'price')::float, coalesce((
                SELECT price FROM public."StockPrice" AS s JOIN public."Organization" AS o ON o.id = s."organizationId"
                WHERE o.name = quote->>'market' AND s."timestamp" <= date_trunc('hour', trajectory."startTime")
                ORDER BY s."timestamp" DESC, s.id DESC LIMIT 1), (SELECT "initialPrice" FROM public."Organization" AS o
                WHERE o.name = quote->>'market'))
            FROM public.trajectories AS trajectory,
                 jsonb_array_elements(("stepsJson"::jsonb)->0->'providerAccesses'->0->'data'->'markets') AS quote
            WHERE "agentId" = 'test-agent-1' AND extract(minute FROM "startTime") < 5 AND quote->>'question' IS NULL
            """
        ).fetchall()
    assert len(found) == 6 * 3 and len({name for _, name, _, _ in found}) > 3
    assert all(shown == pytest.approx(last, abs=1e-6) for _, _, shown, last in found)


def headlines(database: Database) -> list[str]:
    return [text for (text,) in rows_of(database, 'SELECT description FROM public."WorldEvent" ORDER BY "timestamp"')]


def generated_headlines(window: str, edition: str, seed: int = 0) -> list[str]:
    return [event.text for event in generate(preset("hour", seed=training_seed(seed, window), edition=edition)).events]


def test_a_new_game_is_written_in_the_newest_training_edition(database: Database) -> None:
    play(database, request(windows=2))
    assert headlines(database) == generated_headlines(START, TRAINING) + generated_headlines(NEXT, TRAINING)


def test_a_game_that_began_before_editions_were_recorded_keeps_its_words(empty_database: Database, tmp_path: Path) -> None:
    for file in read_migrations():
        if file.name < "0047":
            (tmp_path / f"{file.name}.sql").write_text(file.sql)
    migrate(empty_database, directory=tmp_path)
    with empty_database.connect() as connection:
        connection.execute("INSERT INTO babylon_rl.simulated_hours VALUES (%s, 0, true, %s)", (START, NOW))
    migrate(empty_database)
    play(empty_database, request(start=None))
    assert headlines(empty_database) == generated_headlines(NEXT, "training")
    play(empty_database, request(start="2025-11-15T12:00", seed=1))
    assert headlines(empty_database)[12:] == generated_headlines("2025-11-15T12:00", TRAINING, seed=1)


def test_what_is_shown_at_a_tick_is_what_the_database_says(database: Database) -> None:
    play(database, request(agents=6))
    with database.connect() as connection:
        found = connection.execute(
            """
            SELECT (quote->>'price')::float, (
                SELECT price FROM public."StockPrice" AS s JOIN public."Organization" AS o ON o.id = s."organizationId"
                WHERE o.name = quote->>'market' AND s."timestamp" <= trajectory."startTime" ORDER BY s."timestamp" DESC, s.id DESC LIMIT 1)
            FROM public.trajectories AS trajectory,
                 jsonb_array_elements(("stepsJson"::jsonb)->0->'providerAccesses'->0->'data'->'markets') AS quote
            WHERE extract(minute FROM "startTime") >= 5 AND quote->>'question' IS NULL
            """
        ).fetchall()
    assert len(found) == 6 * 11 * 3
    assert all(shown == pytest.approx(recorded, abs=1e-6) for shown, recorded in found)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_the_seed_of_a_training_hour_is_no_seed_of_a_held_out_market(seed: int) -> None:
    assert training_seed(seed, START) == f"{SEED_PREFIX}{seed}/{START}" and not SEED_PREFIX.startswith("benchmark")
    assert len({training_seed(seed, window) for window in (START, NEXT)} | {training_seed(seed + 1, START)}) == 3


def test_a_model_that_goes_down_is_named_with_its_hour(database: Database) -> None:
    with ChatClient("http://127.0.0.1:9", None, "m", attempts=1) as client, pytest.raises(ModelUnavailable, match=START):
        play(database, request(agents=2, model_agents=2), model=model_agent(client))
    assert not rows(database, "trajectories") and not rows(database, "StockPrice")


def test_an_hour_is_never_played_twice(database: Database) -> None:
    play(database, request())
    before = everything(database)
    with pytest.raises(MarketError, match="already played 2025-11-15T10:00"):
        play(database, request(seed=5))
    assert everything(database) == before


def test_two_who_play_the_same_hour_at_once_write_it_once(database: Database) -> None:
    def attempt(_: int) -> str:
        try:
            play(database, request(agents=2))
        except MarketError as refused:
            return str(refused)
        return "played"

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(attempt, range(2)))
    assert said[0].startswith("Simulated agents have already played") and said[1] == "played"
    assert len(rows(database, "trajectories")) == 24


def test_without_a_start_the_hours_end_at_the_newest_complete_one(database: Database) -> None:
    hours = play(database, request(start=None, windows=2))
    assert [hour.window for hour in hours] == ["2025-11-16T07:00", "2025-11-16T08:00"]
    # The newest free hours, where none is left after them.
    assert [hour.window for _ in range(2) for hour in play(database, request(start=None))] == ["2025-11-16T06:00", "2025-11-16T05:00"]


def test_hours_are_free_after_the_newest_simulated_one_or_before(database: Database) -> None:
    play(database, request(start="2025-11-16T06:00"))
    with database.connect() as connection:
        first = [windows_to_play(connection, request(start=None, windows=windows), NOW)[0] for windows in (1, 2, 3, 4)]
    assert first == [f"2025-11-16T{hour}:00" for hour in ("07", "07", "03", "02")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"agents": 0}, "at least 1 agent"),
        ({"windows": 0}, "1 window"),
        ({"model_agents": 6}, "no more model agents"),
        ({"minutes": 0}, "give 1 to 60"),
        ({"minutes": 61}, "give 1 to 60"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        request(**changes)


def test_an_hour_that_is_not_over_is_refused(connection: Connection) -> None:
    with pytest.raises(UsageError, match="not over yet"):
        windows_to_play(connection, request(start="2025-11-16T09:00"), NOW)
    with pytest.raises(UsageError, match="is not a window"):
        windows_to_play(connection, request(start="2025-11-16 09:00"), NOW)


def test_model_agents_without_a_model_are_refused(database: Database) -> None:
    with pytest.raises(UsageError, match="--model"):
        play(database, request(model_agents=1))


@pytest.mark.parametrize("minutes", [1, 5, 14])
def test_a_shorter_duration_has_shorter_ticks_not_fewer(database: Database, settings: Settings, minutes: int) -> None:
    (hour,) = play(database, request(minutes=minutes))
    assert hour.trajectories == TICKS * 5 and len({pnl for _, _, pnl in hour.agents}) > 3
    with database.connect() as connection:
        read = read_window(connection, START, settings)
    assert read.ready and not read.rejections and {episode.steps for episode in read.episodes} == {TICKS}
    times = rows_of(database, 'SELECT "startTime", "endTime" FROM public.trajectories ORDER BY "agentId", "startTime"')
    assert all(began < ended for began, ended in times)
    assert all(before[1] <= after[0] for before, after in pairwise(times) if before[0] < after[0])
    last = datetime(2025, 11, 15, 10, minutes)
    assert max(ended for _, ended in times) < last
    for table, column in (("StockPrice", "timestamp"), ("PredictionPriceHistory", "createdAt"), ("WorldEvent", "timestamp")):
        assert one(database, f'SELECT max("{column}") < %s FROM public."{table}"', last)
    # An agent is shown the newest price that the database has by then.
    assert one(
        database,
        """
        SELECT bool_and(abs((quote->>'price')::float - (
            SELECT price FROM public."StockPrice" AS s JOIN public."Organization" AS o ON o.id = s."organizationId"
            WHERE o.name = quote->>'market' AND s."timestamp" <= trajectory."startTime" ORDER BY s."timestamp" DESC, s.id DESC LIMIT 1
        )) < 1e-6)
        FROM public.trajectories AS trajectory,
             jsonb_array_elements(("stepsJson"::jsonb)->0->'providerAccesses'->0->'data'->'markets') AS quote
        WHERE quote->>'question' IS NULL AND trajectory."startTime" > (
            SELECT min("timestamp") + interval '1 second' FROM public."StockPrice")
        """,
    )


@pytest.mark.slow
def test_a_short_duration_in_a_real_game_plays_the_first_minutes_of_its_hour(sample_database: Database) -> None:
    (hour,) = play(sample_database, request(start="2025-10-29T14:00", minutes=12))
    assert hour.trajectories == TICKS * 5
    shown = rows_of(
        sample_database,
        """
        SELECT quote->>'market', extract(minute FROM "startTime")::int, (quote->>'price')::float
        FROM public.trajectories, jsonb_array_elements(("stepsJson"::jsonb)->0->'providerAccesses'->0->'data'->'markets') AS quote
        WHERE "agentId" = 'test-agent-6' AND "windowId" = '2025-10-29T14:00' AND quote->>'question' IS NULL
        """,
    )
    assert {minute for _, minute, _ in shown} == set(range(TICKS))
    for name, minute, price in shown:
        recorded = one(sample_database, """
            SELECT price FROM public."StockPrice" AS s JOIN public."Organization" AS o ON o.id = s."organizationId"
            WHERE o.name = %s AND s."timestamp" <= timestamp '2025-10-29 14:00' + %s * interval '1 minute'
            ORDER BY s."timestamp" DESC, s.id DESC LIMIT 1""", name, minute)  # fmt: skip
        assert price == pytest.approx(recorded, rel=1e-6)


def test_strategies_come_in_turn_and_model_agents_last() -> None:
    players = players_of(request(agents=8, model_agents=1))
    assert [player.agent_id for player in players] == [f"test-agent-{number}" for number in range(1, 9)]
    assert [player.strategy for player in players][-3:] == ["conservative", "balanced", "llm"]


@pytest.mark.slow
def test_an_hour_that_breaks_off_leaves_nothing_and_the_ones_before_stay(copy_of: Callable[[str], Database]) -> None:
    database, whole = copy_of("migrated"), copy_of("migrated")
    asked = request(agents=3, model_agents=1, windows=2)

    def until_the_second_hour(seen: dict[str, Any]) -> str | None:
        return by_seed(seen) if len(served.seen) <= 17 else None

    with (
        stand_in(until_the_second_hour) as served,
        ChatClient(served.url, None, "m", attempts=1) as client,
        pytest.raises(ModelUnavailable),
    ):
        play(database, asked, model=model_agent(client))
    assert {row[0] for row in everything(database)["simulated_hours"]} == {START}
    assert len(rows(database, "trajectories")) == 3 * 12 and len(rows(database, "Question")) == 1
    with stand_in() as again, ChatClient(again.url, None, "m") as client:
        play(database, request(agents=3, model_agents=1, start=None), model=model_agent(client))
        play(whole, asked, model=model_agent(client))
    assert everything(database) == everything(whole)


@pytest.mark.slow
def test_a_real_game_gets_only_our_agents_and_their_trajectories_at_its_recorded_prices(sample_database: Database) -> None:
    before = everything(sample_database)
    (hour,) = play(sample_database, request(start="2025-10-29T14:00"))
    after = everything(sample_database)
    for table in ("Organization", "StockPrice", "Question", "Market", "PredictionPriceHistory", "WorldEvent"):
        assert after[table] == before[table]
    assert set(before["User"]) <= set(after["User"]) and len(after["User"]) == len(before["User"]) + 5
    assert set(before["trajectories"]) <= set(after["trajectories"]) and len(after["trajectories"]) == len(before["trajectories"]) + 60
    names = {agent for agent, _, _ in hour.agents}
    assert all(agent.startswith("test-agent-") for agent in names) and not names & {row[0] for row in before["User"]}
    assert any(pnl for _, _, pnl in hour.agents)
    assert shown_prices(sample_database) == pytest.approx(recorded_prices(sample_database), rel=1e-6)
    question = shown_probabilities(sample_database)
    assert question and all(shown == pytest.approx(recorded, abs=0.01) for shown, recorded in question)


def shown_prices(database: Database) -> dict[tuple[str, int], float]:
    """(company, tick) -> the stock price that our agents were shown."""
    with database.connect() as connection:
        found = connection.execute(
            """
            SELECT quote->>'market', extract(minute FROM "startTime")::int / 5, (quote->>'price')::float
            FROM public.trajectories, jsonb_array_elements(("stepsJson"::jsonb)->0->'providerAccesses'->0->'data'->'markets') AS quote
            WHERE "agentId" = 'test-agent-6' AND "windowId" = '2025-10-29T14:00' AND quote->>'question' IS NULL
            """
        ).fetchall()
    return {(name, tick): price for name, tick, price in found}


def shown_probabilities(database: Database) -> list[tuple[float, float]]:
    """(shown, recorded) YES prices by tick; our own open orders bend the shown one a little."""
    with database.connect() as connection:
        return connection.execute(
            """
            SELECT (quote->>'price')::float, coalesce((
                SELECT "yesPrice" FROM public."PredictionPriceHistory" AS history JOIN public."Question" AS question
                    ON question.id = history."marketId"
                WHERE question."questionNumber" = substring(quote->>'market' from 2)::int
                  AND history."createdAt" <= date_trunc('minute', trajectory."startTime")
                ORDER BY history."createdAt" DESC, history.id DESC LIMIT 1), 0.5)
            FROM public.trajectories AS trajectory,
                 jsonb_array_elements(("stepsJson"::jsonb)->0->'providerAccesses'->0->'data'->'markets') AS quote
            WHERE "agentId" = 'test-agent-6' AND "windowId" = '2025-10-29T14:00' AND quote->>'question' IS NOT NULL
            """
        ).fetchall()


def recorded_prices(database: Database) -> dict[tuple[str, int], float]:
    """The same from the game's own price rows."""
    companies = sorted({name for name, _ in shown_prices(database)})
    assert len(companies) == 3
    return {
        (name, tick): one(database, """
            SELECT price FROM public."StockPrice" AS s JOIN public."Organization" AS o ON o.id = s."organizationId"
            WHERE o.name = %s AND s."timestamp" <= timestamp '2025-10-29 14:00' + %s * interval '5 minutes'
            ORDER BY s."timestamp" DESC, s.id DESC LIMIT 1""", name, tick)
        for name in companies for tick in range(12)
    }  # fmt: skip


def test_a_second_run_on_a_real_game_goes_on_with_the_same_agents(sample_database: Database) -> None:
    first = play(sample_database, request(start="2025-10-29T14:00"))
    second = play(sample_database, request(start="2025-10-29T15:00"))
    assert [agent for agent, _, _ in first[0].agents] == [agent for agent, _, _ in second[0].agents]


def test_an_hour_without_recorded_prices_is_refused_on_a_real_game(sample_database: Database) -> None:
    with pytest.raises(MarketError, match="no recorded prices"):
        play(sample_database, request(start="2025-01-15T10:00"))
    with pytest.raises(MarketError, match="2025-11-16T08:00 has no recorded prices"):
        play(sample_database, request(start=None))
