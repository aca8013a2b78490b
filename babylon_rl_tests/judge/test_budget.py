"""JUDGE_BUDGET_USD: what a day may cost, and what waits."""

import threading
from datetime import timedelta

import pytest

from babylon_rl.judge.cost import estimate_hours, total_of
from babylon_rl.processes import own_name
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.judge_requests import RESERVED_FOR, reserve, spent_on
from babylon_rl.store.scores import read_pending
from babylon_rl_tests.judge.model_judge import NOW, PRICED, add_hours, asking, filled
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.scored import read_hours, score_windows
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge


@pytest.mark.long
def test_nothing_is_asked_without_a_budget_and_every_hour_says_why(connection: Connection, settings: Settings) -> None:
    windows = add_hours(connection, 2)
    with judging() as judge:
        found = score_windows(connection, windows, asking(settings, judge.url, judge_model=PRICED, judge_budget_usd=0.0), NOW)
        assert judge.stats()["requests"] == 0
    assert not found and list(found.pending) == windows
    assert all("JUDGE_BUDGET_USD is 0" in hour.reason for hour in read_pending(connection, windows).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("judge_is", "disagreement"),
    [(ScriptedJudge(noise=0.02), 1.0), (ScriptedJudge(noise=0.4), 0.0), (ScriptedJudge(noise=0.4, faults={"missing-id": 0.1}), 0.0)],
    ids=["agrees", "disagrees", "disagrees and errs"],
)
def test_the_bill_lies_between_the_two_ends_of_the_estimate(
    connection: Connection, settings: Settings, judge_is: ScriptedJudge, disagreement: float
) -> None:
    windows = add_hours(connection, 24)
    with judging(judge_is) as judge:
        chosen = asking(settings, judge.url, judge_model=PRICED, judge_disagreement=disagreement)
        read_hours(connection, windows, chosen, NOW)
        assert len(score_windows(connection, windows[:6], chosen, NOW)) == 6
        told = total_of(estimate_hours(connection, windows[6:], chosen))
        before = judge.stats()["requests"]
        assert len(score_windows(connection, windows[6:], chosen, NOW)) == 18
        asked = judge.stats()["requests"] - before
    assert told.usd is not None and told.usd_most is not None
    assert told.requests <= asked <= told.requests_most
    assert disagreement or asked > 1.5 * told.requests
    assert told.usd < told.usd_most < 2.5 * told.usd
    nothing = total_of(estimate_hours(connection, windows[6:], chosen))
    assert (nothing.requests, nothing.requests_most, nothing.usd, nothing.usd_most) == (0, 0, 0, 0)


@pytest.mark.slow
def test_hours_beyond_the_days_budget_wait_for_the_next(connection: Connection, settings: Settings) -> None:
    windows = add_hours(connection, 6)
    with judging() as judge:
        free = asking(settings, judge.url, judge_model=PRICED, judge_concurrency=1)
        read_hours(connection, windows, free, NOW)
        cost = estimate_hours(connection, windows[:1], free)[0].usd
        assert cost is not None
        tight = free.model_copy(update={"judge_budget_usd": 2.5 * cost})
        first = score_windows(connection, windows, tight, NOW)
        spent, unpriced = spent_on(connection, NOW)
        assert 0 < spent <= 2.5 * cost and unpriced == 0
        assert 1 <= len(first) < 6 and len(first) + len(first.pending) == 6
        assert not score_windows(connection, list(first.pending), tight, NOW + timedelta(minutes=5)) or spent < 1.5 * cost
        rest = windows
        for day in range(1, 7):
            found = score_windows(connection, rest, tight, NOW + timedelta(days=day))
        assert len(found) == 6 and judge.stats()["requests"] == 12
    assert read_pending(connection, windows) == {}


def test_an_unknown_price_cannot_be_held_to_a_budget_and_it_is_said(connection: Connection, settings: Settings) -> None:
    windows = add_hours(connection, 1)
    with judging() as judge:
        found = score_windows(connection, windows, asking(settings, judge.url, judge_budget_usd=1.0), NOW)
    assert list(found) == windows
    assert [note for note in found.notes if "JUDGE_BUDGET_USD" in note and "openai/scripted" in note]


@pytest.mark.parametrize("moment", [timedelta(0), timedelta(hours=23, minutes=59)])
def test_the_day_is_that_of_utc(connection: Connection, settings: Settings, moment: timedelta) -> None:
    windows = add_hours(connection, 1)
    midnight = NOW.replace(hour=0, minute=0)
    with judging() as judge:
        score_windows(connection, windows, asking(settings, judge.url, judge_model=PRICED), midnight + moment)
    assert spent_on(connection, NOW)[0] > 0
    assert spent_on(connection, midnight - timedelta(seconds=1)) == spent_on(connection, midnight + timedelta(days=1)) == (0.0, 0)


def test_runs_at_once_share_one_budget(database: Database, settings: Settings) -> None:
    windows = filled(database, 6)
    with database.connect(autocommit=True) as connection, judging(ScriptedJudge(latency_s=0.3)) as judge:
        free = asking(settings, judge.url, judge_model=PRICED)
        cost = estimate_hours(connection, windows[:1], free)[0].usd
        assert cost is not None
        tight = free.model_copy(update={"judge_budget_usd": 2.5 * cost})
        results = []

        def run(some: list[str]) -> None:
            with database.connect(autocommit=True) as own:
                results.append(score_windows(own, some, tight, NOW))

        threads = [threading.Thread(target=run, args=(windows[start::3],)) for start in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # A run that comes late may have what the others' answers cost less than was reserved for them.
        assert spent_on(connection, NOW)[0] <= 2.5 * cost and 1 <= sum(map(len, results)) < 6
        assert sum(len(result.pending) for result in results) == 6 - sum(map(len, results))
        assert connection.execute("SELECT count(*) FROM babylon_rl.judge_reservations").fetchone() == (0,)


def test_what_a_killed_run_had_reserved_holds_nobody_up(database: Database, settings: Settings) -> None:
    (window,) = filled(database, 1)
    place, _, rest = own_name().partition("/")
    with database.connect(autocommit=True) as connection, judging() as judge:
        chosen = asking(settings, judge.url, judge_model=PRICED, judge_budget_usd=1.0)
        reserve(connection, f"{place}/999999999/1.0/ab", 1.0, 1.0, 0.0, NOW)
        assert list(score_windows(connection, [window], chosen, NOW)) == [window], "its process is no more"
        connection.execute("DELETE FROM babylon_rl.group_scores")
        connection.execute('UPDATE babylon_rl.judge_requests SET "retired" = TRUE')
        spent = spent_on(connection, NOW)[0]
        reserve(connection, f"elsewhere-{place}/{rest}/ab", 1.0 - spent, 1.0, 0.0, NOW)
        assert "under way" in score_windows(connection, [window], chosen, NOW).pending[window]
        assert list(score_windows(connection, [window], chosen, NOW + RESERVED_FOR + timedelta(minutes=1))) == [window]
