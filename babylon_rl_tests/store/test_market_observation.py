"""Which hours a late change of the market touches: by a table of cases, and by chance against the outcomes themselves."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as chances
from hypothesis import strategies as st

from babylon_rl.market.outcomes import read_many_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.observation import market_versions
from babylon_rl.windows import HOUR, window_end, window_of, window_range
from babylon_rl_tests.market_rows import event, fill, history, market, organization, price, question
from babylon_rl_tests.rows import START, insert
from babylon_rl_tests.scratch import connection, scratch_url

__all__ = ["connection", "scratch_url"]

FIRST, END = window_of(START - 2 * HOUR), window_of(START + 6 * HOUR)
WINDOWS = list(window_range(FIRST, END))


def hour(number: int) -> str:
    return window_of(START + number * HOUR)


def look(connection: Connection, settings: Settings) -> tuple[dict[str, str], dict[str, str]]:
    """Versions and outcomes by window; of the moment of a resolution, an hour knows whether it has passed when the hour is over."""
    found = read_many_outcomes(connection, WINDOWS, settings)
    closed = {w: [p.resolved_at is not None and p.resolved_at < window_end(w) for p in found[w].predictions] for w in WINDOWS}
    predictions = {w: tuple(replace(p, resolved_at=None) for p in found[w].predictions) for w in WINDOWS}
    outcomes = {w: repr((replace(found[w], predictions=predictions[w]), closed[w])) for w in WINDOWS}
    return market_versions(connection, FIRST, END), outcomes


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {window for window in before | after if before.get(window) != after.get(window)}


@pytest.fixture
def game(connection: Connection) -> Connection:
    """Prices in the hours -2, 0, 2 and 3, events in 1 and 4; q1 is open from hour -1 on, q2 from hour -1 until hour 2."""
    fill(
        connection,
        Organization=[organization("a", "Alpha"), organization("b", initial=None), organization("m") | {"type": "media"}],
        StockPrice=[
            price(1, "a", 90, -90), price(2, "a", 100, 10), price(3, "a", 101, 20), price(4, "a", 110, 50), price(5, "a", 120, 190),
            price(6, "b", 50, 140), price(7, "b", 55, 185),
        ],
        Question=[question(1), question(2, answer=True, updated=START + timedelta(hours=2, minutes=30))],
        Market=[market("q1")],
        PredictionPriceHistory=[history(1, "q1", 0.6, 20), history(2, "q1", 0.7, 210)],
        WorldEvent=[event(1, 75, "Alpha rises", about=1), event(2, 270)],
    )  # fmt: skip
    return connection


def new_price(minute: float, value: float, slug: str = "a") -> Any:
    return lambda connection: insert(connection, "StockPrice", [price(99, slug, value, minute)])


def new_history(minute: float, value: float, kind: str = "trade") -> Any:
    return lambda connection: insert(connection, "PredictionPriceHistory", [history(99, "q1", value, minute, kind)])


def run(statement: str) -> Any:
    return lambda connection: connection.execute(statement)


OPEN = {0, 1, 2, 3, 4}
SWAP = "UPDATE \"StockPrice\" SET price = CASE id WHEN 'p2' THEN 101 ELSE 100 END WHERE id IN ('p2', 'p3')"
CASES = {
    "a price in the middle of an hour": (new_price(30, 105), {0}),
    "a price that later hours start from": (new_price(55, 115), {0, 1, 2, 3}),
    "a price far back, that an hour two hours later starts from": (new_price(-70, 95), {-2, 0}),
    "a price that leaves the next start as it was": (new_price(-70, 90), {-2}),
    "a price on the hour opens it and closes none": (new_price(60, 115), {1, 2, 3}),
    "a first price in an hour that held only an event": (new_price(90, 40, "b"), {1, 2}),
    "a price in an hour that held nothing": (new_price(-30, 95), {-1, 0}),
    "a price that is no number": (new_price(55, float("nan")), {0}),
    "a price gone": (run("""DELETE FROM "StockPrice" WHERE id = 'p4'"""), {0, 1, 2, 3}),
    "an hour's only price gone": (run("""DELETE FROM "StockPrice" WHERE id = 'p1'"""), {-2, 0}),
    "a price edited": (run("""UPDATE "StockPrice" SET price = 104 WHERE id = 'p2'"""), {0}),
    "two prices swapped": (run(SWAP), {0}),
    "a volume written": (run("""UPDATE "StockPrice" SET volume = 5 WHERE id = 'p5'"""), {3}),
    "a price moved to another hour": (run("""UPDATE "StockPrice" SET "timestamp" = '2025-11-15 13:05' WHERE id = 'p4'"""), {0, 1, 2, 3}),
    "an event": (lambda connection: insert(connection, "WorldEvent", [event(99, 130)]), {2}),
    "an hour's only event gone": (run("""DELETE FROM "WorldEvent" WHERE id = 'e2'"""), {4}),
    "an event moved to another hour": (run("""UPDATE "WorldEvent" SET "timestamp" = '2025-11-15 12:15' WHERE id = 'e1'"""), {1, 2}),
    "an event about another question": (run("""UPDATE "WorldEvent" SET "relatedQuestion" = 2 WHERE id = 'e1'"""), {1}),
    "an actor of an event": (run("""UPDATE "WorldEvent" SET actors = ARRAY['b'] WHERE id = 'e1'"""), {1}),
    "a probability in the middle of an hour": (new_history(10, 0.55), {0}),
    "a probability that later hours start from": (new_history(40, 0.65), {0, 1, 2, 3}),
    "a probability before any": (new_history(-90, 0.3), {-2, 0}),
    "an answer, days later": (run("""UPDATE "Question" SET "resolvedOutcome" = FALSE, "updatedAt" = '2025-11-18' WHERE id = 'q1'"""), OPEN),
    "an answer taken back": (run("""UPDATE "Question" SET "resolvedOutcome" = NULL WHERE id = 'q2'"""), OPEN),
    "a resolution row": (new_history(150, 1, "resolution"), {2, 3, 4}),
    "a market resolved": (run("""UPDATE "Market" SET resolved = TRUE, resolution = TRUE WHERE id = 'q1'"""), OPEN),
    "a question reworded": (run("""UPDATE "Question" SET text = 'Or?' WHERE id = 'q2'"""), {0, 1, 2}),
    "a question renumbered": (run("""UPDATE "Question" SET "questionNumber" = 3 WHERE id = 'q2'"""), {0, 1, 2}),
    "a question asked later": (run("""UPDATE "Question" SET "createdDate" = '2025-11-15 11:10' WHERE id = 'q1'"""), {0}),
    "a question gone": (run("""DELETE FROM "Question" WHERE id = 'q2'"""), {0, 1, 2}),
    "an organization renamed": (run("""UPDATE "Organization" SET name = 'Alfa' WHERE id = 'a'"""), {-2, *OPEN}),
    "an initial price that starts an hour": (run("""UPDATE "Organization" SET "initialPrice" = 80 WHERE id = 'a'"""), {-2}),
    "an initial price where there was none": (run("""UPDATE "Organization" SET "initialPrice" = 45 WHERE id = 'b'"""), {2}),
    "an organization without prices": (run("""UPDATE "Organization" SET name = 'M', "initialPrice" = 5 WHERE id = 'm'"""), set()),
    "what outcomes are not made of": (
        run(
            """
            UPDATE "Organization" SET "currentPrice" = 1; UPDATE "StockPrice" SET change = 1, "changePercent" = 1;
            UPDATE "Question" SET outcome = NOT outcome; UPDATE "Market" SET "updatedAt" = '2026-01-01', "yesShares" = 7;
            UPDATE "WorldEvent" SET "eventType" = 'annonce'
            """
        ),
        set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_late_change_touches_exactly_its_hours(game: Connection, settings: Settings, name: str):
    change, expected = CASES[name]
    versions, outcomes = look(game, settings)
    change(game)
    after, outcomes_after = look(game, settings)
    assert changed(versions, after) == {hour(number) for number in expected}
    assert changed(outcomes, outcomes_after) <= changed(versions, after)


def test_a_look_at_the_last_hours_sees_what_a_look_at_all_sees(game: Connection):
    everything = market_versions(game, FIRST, END)
    for window in WINDOWS:
        assert market_versions(game, window, END) == {key: version for key, version in everything.items() if key >= window}


# Minutes are few, so that rows fall on the hour and upon each other.
MINUTES = st.sampled_from([*range(-120, 300, 60), *range(-90, 300, 60), *range(-119, 300, 60)])
SLUGS, KEYS = st.sampled_from(["a", "b", "b-"]), st.sampled_from(["q1", "q2", "x1"])
VALUES = st.sampled_from([-1.0, 0.0, 1.0, 2.0, 3.0, float("nan"), float("inf")])
MOMENTS = MINUTES.map(lambda minute: START + timedelta(minutes=minute))
ANSWERS = st.sampled_from([None, True, False])

prices = st.builds(
    lambda n, s, v, m, volume: price(n, s, v, m, volume=volume), st.integers(0, 50), SLUGS, VALUES, MINUTES, st.none() | VALUES
)
histories = st.builds(history, st.integers(0, 50), KEYS, VALUES, MINUTES, st.sampled_from(["trade", "trade", "resolution"]))
events = st.builds(
    event, st.integers(0, 50), MINUTES, st.sampled_from(["A", "B-", "other"]), st.none() | st.just(["a"]), st.none() | st.integers(1, 2)
)
organizations = st.builds(lambda name, initial: {"name": name, "initialPrice": initial}, st.sampled_from("AZ"), st.none() | VALUES)
questions = st.builds(
    lambda created, answer, updated, text: {"createdDate": created, "resolvedOutcome": answer, "updatedAt": updated, "text": text},
    MOMENTS, ANSWERS, MOMENTS, st.sampled_from(["One?", "Two?"]),
)  # fmt: skip
markets = st.builds(
    lambda created, resolved, answer, end: {"createdAt": created, "resolved": resolved, "resolution": answer, "endDate": end},
    MOMENTS, st.booleans(), ANSWERS, MOMENTS,
)  # fmt: skip
ROWS = {"StockPrice": prices, "PredictionPriceHistory": histories, "WorldEvent": events}
FIXED = {"Organization": (SLUGS, organizations), "Question": (st.sampled_from(["q1", "q2"]), questions), "Market": (KEYS, markets)}

row_edits = st.sampled_from(sorted(ROWS)).flatmap(lambda table: st.tuples(st.just(table), ROWS[table]))
deletions = st.tuples(st.sampled_from(sorted(ROWS)), st.integers(0, 50))
edits = st.sampled_from(sorted(FIXED)).flatmap(lambda table: st.tuples(st.just(table), *FIXED[table]))
gone = st.sampled_from([("Question", "q1"), ("Question", "q2")])


def apply(connection: Connection, edit: tuple[Any, ...]) -> None:
    """Write a row over the one of its id, delete one, or change the columns of one."""
    table, *rest = edit
    if len(rest) == 2:
        columns = ", ".join(f'"{name}" = %s' for name in rest[1])
        connection.execute(f'UPDATE "{table}" SET {columns} WHERE id = %s', [*rest[1].values(), rest[0]])
        return
    identity = rest[0]["id"] if isinstance(rest[0], dict) else rest[0]
    letter = {"StockPrice": "p", "PredictionPriceHistory": "h", "WorldEvent": "e"}.get(table, "")
    connection.execute(f'DELETE FROM "{table}" WHERE id = %s', [identity if isinstance(identity, str) else f"{letter}{identity}"])
    if isinstance(rest[0], dict):
        insert(connection, table, [rest[0]])


@pytest.mark.long
@chances(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.lists(row_edits, min_size=3, max_size=25),
    shape=st.lists(edits, max_size=4),
    change=st.lists(row_edits | deletions | edits | gone, min_size=1, max_size=2),
)
def test_whatever_changes_an_outcome_changes_the_version_of_its_hour(
    connection: Connection, settings: Settings, start: list[Any], shape: list[Any], change: list[Any]
):
    with connection.transaction(force_rollback=True):
        fill(
            connection,
            Organization=[organization("a"), organization("b", initial=None), organization("b-", initial=2)],
            Question=[question(1), question(2)],
            Market=[market("q1"), market("q2"), market("x1")],
        )
        for edit in (*shape, *start):
            apply(connection, edit)
        versions, outcomes = look(connection, settings)
        for edit in change:
            apply(connection, edit)
        versions_after, outcomes_after = look(connection, settings)
        assert changed(outcomes, outcomes_after) <= changed(versions, versions_after)
