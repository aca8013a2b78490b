"""The checks of an hour: silent on clean rows; each names a planted fault, in words, numbers and ids."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from babylon_rl.assets.resources import given
from babylon_rl.automation.checks_hours import CHANGED_WITHIN, JUDGED, LEAKS, MARKET, ROWS
from babylon_rl.automation.code_location import code_location
from babylon_rl.automation.launch import QUIET, hours_part, job_definition
from babylon_rl.automation.sensors import checks_follow_hours
from babylon_rl.episodes.reading import sync_windows
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.windows import window_range, window_start
from babylon_rl_tests.assets.conftest import Bench
from babylon_rl_tests.market_rows import fill, organization, price
from babylon_rl_tests.rows import AFTER, START, WINDOW, insert, make_call, make_step, make_trajectory

Row = dict[str, Any]
NEXT_DAYS = AFTER + timedelta(days=2)
NO_PROMPTS = "Nothing measured: no hour that was looked at has recorded prompts."
ROW_CHECKS = {rule.name for rule in ROWS.rules}
MARKET_CHECKS = {rule.name for rule in MARKET.rules}
LONG = {"systemPrompt": "You trade stocks. " * 4, "userPrompt": "The prices of the hour are these. " * 4}


def steps(agent: int, call: Row | None = None, pnls: tuple[float, ...] = (0, 1, 2, 3, 4)) -> list[Row]:
    """Five steps of an agent from the fifth minute on, each with a call that says enough."""
    calls = [make_call(**(LONG if call is None else call))]
    first = (START - datetime(1970, 1, 1)) // timedelta(milliseconds=1) + 300_000
    return [make_step(n, pnl=pnl, calls=calls, timestamp=first + 1000 * n, reward=agent) for n, pnl in enumerate(pnls)]


def row(agent: int, **changes: Any) -> Row:
    """A row that no check has anything against."""
    return make_trajectory(f"t{agent}", f"agent-{agent}", **({"steps": steps(agent), "finalPnL": 10.0 * agent} | changes))


def clean(agents: int = 5) -> list[Row]:
    return [row(agent) for agent in range(agents)]


def short(agent: int) -> Row:
    return row(agent, steps=steps(agent, call={}))


def silent(agent: int) -> Row:
    return row(agent, steps=[step | {"llmCalls": []} for step in steps(agent)])


# What is planted beside (or instead of) clean rows: the check that warns, its rows, words of its sentence, and the ids that it lists.
FAULTS: dict[str, tuple[list[Row], str, list[str]]] = {
    "few_rows_rejected": (
        [*clean(), *(row(agent, isEvaluation=True) for agent in range(5, 11))],
        "6 of 11 (55%) rows do not count (6 evaluation)",
        [],
    ),
    "few_rows_malformed": ([*clean(), row(5, steps="[{"), row(6, steps="{}")], "2 of 7 (29%) rows are malformed", []),
    "messages_recorded": ([silent(agent) for agent in range(5)], "none of its messages can train (5 synthetic)", []),
    "prompts_long_enough": ([*clean(9), short(9)], "1 of 10 (10%) rows have a short prompt", []),
    "rows_unique": (
        [*clean(), row(0, minute=6) | {"id": "copy", "trajectoryId": "copy"}],
        "1 of 6 (17%) rows repeat the steps of another row",
        ["copy"],
    ),
    "clocks_agree": ([*clean(), row(5, endTime=START)], "1 of 6 (17%) rows have times that contradict", ["t5"]),
    "pnl_plausible": ([*clean(), row(5, steps=steps(5, pnls=(0, 1e6, 1e6)), finalPnL=1e6)], "1 agent's P&L jumps", ["agent-5"]),
    "one_hour_each": ([*clean(), row(5, windowHours=4)], "1 of 6 (17%) rows say windowHours other than 1", []),
}


@pytest.fixture
def checked(make_bench: Callable[..., Bench], database: Database) -> Callable[..., dict[str, dg.AssetCheckEvaluation]]:
    """``checked(rows, **tables)``: the verdicts on WINDOW, once it holds these rows of trajectories and of the market."""
    bench = make_bench(database, now=AFTER)

    def check(rows: list[Row], **tables: list[Row]) -> dict[str, dg.AssetCheckEvaluation]:
        with database.connect(autocommit=True) as connection:
            insert(connection, "trajectories", rows)
            fill(connection, **tables)
        found = bench.verdicts("hours", WINDOW, asset_selection=[dg.AssetKey("window_groups"), dg.AssetKey("market_outcomes")])
        return {name: verdict for name, verdict in found.items() if name in ROW_CHECKS | MARKET_CHECKS}

    return check


def bad_hours(found: dg.AssetCheckEvaluation) -> list[Row]:
    """The table of a verdict's bad hours, newest first."""
    return [record.data for record in found.metadata["hours"].records]  # type: ignore[attr-defined]


def prices(slug: str, number: int = 0, *, initial: float | None = 100.0, last: float = 101.0) -> dict[str, list[Row]]:
    return {"Organization": [organization(slug, initial=initial)], "StockPrice": [price(number, slug, last, 10)]}


@pytest.mark.slow
def test_clean_rows_and_a_plain_market_pass_every_check(checked):
    verdicts = checked(clean(), **prices("openlie"))
    assert {name for name, verdict in verdicts.items() if verdict.passed} == ROW_CHECKS | MARKET_CHECKS
    assert {verdict.description for verdict in verdicts.values()} == {"Nothing found in 1 hour."}


@pytest.mark.long
@pytest.mark.parametrize("check", FAULTS)
def test_a_planted_fault_is_named_by_its_check_alone(checked, check: str):
    rows, words, ids = FAULTS[check]
    verdicts = checked(rows, **prices("openlie"))
    # Rows without prompts have none that could be long enough.
    unmeasured = {name for name, verdict in verdicts.items() if verdict.description == NO_PROMPTS}
    assert {name for name, verdict in verdicts.items() if not verdict.passed} - unmeasured == {check}
    assert unmeasured == ({"prompts_long_enough"} if check == "messages_recorded" else set())
    found = verdicts[check]
    assert found.severity == dg.AssetCheckSeverity.WARN
    assert found.description.startswith(f"1 of 1 hour: {WINDOW}, ") and words in found.description
    assert len(found.description.rpartition(". ")[2]) > 20, "and it says what to do"
    (bad,) = bad_hours(found)
    assert (bad["hour"], bad["first"]) == (WINDOW, ", ".join(ids)) and words in bad["what"]
    assert found.metadata["bad_hours"].value == 1


def test_a_check_of_nothing_is_a_warning_and_no_pass(checked):
    verdicts = checked(clean())
    assert {name for name, verdict in verdicts.items() if not verdict.passed} == MARKET_CHECKS
    for name in MARKET_CHECKS:
        assert verdicts[name].severity == dg.AssetCheckSeverity.WARN
        assert verdicts[name].description.startswith("Nothing measured: no hour that was looked at has data.")


def test_every_row_check_has_a_planted_fault():
    assert set(FAULTS) == ROW_CHECKS


@pytest.mark.slow
def test_ids_are_capped_and_the_count_is_not(checked):
    copies = [row(0, minute=6) | {"id": f"copy-{n}", "trajectoryId": f"copy-{n:02}"} for n in range(25)]
    found = checked([*clean(), *copies])["rows_unique"]
    assert "25 of 30" in found.description
    assert len(bad_hours(found)[0]["first"].split(", ")) == 20


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (prices("openlie", initial=None), "1 (OPENLIE): no price before the hour and no initialPrice"),
        (prices("openlie", initial=0.01, last=100.0), "1 (OPENLIE): its change is beyond the column's 999.99 %"),
        (
            prices("openlie") | {"StockPrice": [price(0, "openlie", 0.0, -10), price(1, "openlie", 101.0, 10)]},
            "1 (OPENLIE): its last price before the hour is not above 0",
        ),
    ],
    ids=["first price taken", "clamped", "zero before the hour"],
)
def test_a_flagged_outcome_is_named(checked, tables: dict[str, list[Row]], words: str):
    verdicts = checked(clean(), **tables)
    assert {name for name, verdict in verdicts.items() if not verdict.passed} == {"outcomes_unflagged"}
    assert words in verdicts["outcomes_unflagged"].description
    assert bad_hours(verdicts["outcomes_unflagged"])[0]["first"] == "OPENLIE"


def test_prices_beyond_all_bounds_are_flagged_and_lose_nothing(checked):
    tables = prices("openlie", initial=1e-300, last=1e299)
    found = checked(clean(), **tables)["outcomes_unflagged"]
    assert "its change is beyond" in found.description and "its price is beyond" in found.description


@pytest.mark.slow
def test_two_organizations_with_one_ticker_are_named(checked):
    both = [prices("antisocialcapital"), prices("antisocialcamp", 1)]
    verdicts = checked(clean(), **{table: [entry for tables in both for entry in tables[table]] for table in both[0]})
    assert {name for name, verdict in verdicts.items() if not verdict.passed} == {"tickers_distinct"}
    assert bad_hours(verdicts["tickers_distinct"])[0]["first"] == "ANTISOCIALCA~2"


def hours_with(database: Database, odd: dict[str, bool]) -> None:
    """Fill hours (window -> whether one row of it is about four hours) with five agents each, as they were read."""
    with database.connect(autocommit=True) as connection:
        for window, is_odd in odd.items():
            rows = [row(agent, windowHours=4 if is_odd and not agent else 1) for agent in range(5)]
            moved = {"windowId": window, "startTime": window_start(window), "endTime": window_start(window) + timedelta(minutes=50)}
            insert(
                connection,
                "trajectories",
                [one | moved | {"id": f"{window} {n}", "trajectoryId": f"{window} {n}"} for n, one in enumerate(rows)],
            )
        sync_windows(connection, list(odd), Settings(_env_file=None), NEXT_DAYS)  # type: ignore[call-arg]


@pytest.mark.slow
def test_a_later_good_hour_hides_no_bad_one_and_an_old_hour_counts_in_its_own_run(make_bench: Callable[..., Bench], database: Database):
    windows = list(window_range(WINDOW, "2025-11-17T12:00"))
    old, newest = windows[0], windows[-24:]
    bad = {old, newest[3], newest[7]}
    hours_with(database, {window: window in bad for window in (old, *newest)})
    bench = make_bench(database, now=NEXT_DAYS + CHANGED_WITHIN + timedelta(minutes=1))

    def one_hour_each(*hours: str) -> dg.AssetCheckEvaluation:
        return bench.verdicts("hours", *hours, asset_selection=[dg.AssetKey("window_groups")])["one_hour_each"]

    said = one_hour_each(newest[-1])
    assert not said.passed and said.partition is None
    assert (said.description or "").startswith(f"2 of 24 hours: {newest[7]}, 1 of 5 (20%) rows say windowHours other than 1; {newest[3]}, ")
    assert said.metadata["looked_at"].value == f"24 hours, {newest[0]} to {newest[-1]}"
    with_the_old = one_hour_each(old)
    assert [found["hour"] for found in bad_hours(with_the_old)] == sorted(bad, reverse=True)
    # A range is one verdict, about all of its hours.
    whole = one_hour_each(windows[0], windows[-1])
    assert (whole.description or "").startswith("3 of 25 hours: ")
    # So does an hour that changed within a day, in a check by itself.
    bench.execute("""UPDATE babylon_rl.windows SET "computedAt" = %s WHERE "window" = %s""", bench.babylon.now(), old)
    assert (one_hour_each(newest[-1]).description or "").startswith("3 of 25 hours: ")


@pytest.mark.slow
def test_runs_of_hours_have_no_checks_and_their_checks_follow(make_bench: Callable[..., Bench], database: Database):
    hours_with(database, {WINDOW: True})
    bench = make_bench(database, now=NEXT_DAYS)
    location = code_location(given(bench.babylon))
    cursor = None

    def asked() -> int:
        nonlocal cursor
        result = dg.evaluate_automation_conditions(location, bench.instance, checks_follow_hours.asset_selection, cursor=cursor)
        cursor = result.cursor
        return result.total_requested

    assert asked() == 0
    assert not bench.run("hours", WINDOW).get_asset_check_evaluations()
    part = hours_part(job_definition("hours", bench.babylon), ["window_groups"])
    assert not part.execute_in_process(instance=bench.instance, partition_key=WINDOW, run_config=QUIET).get_asset_check_evaluations()
    assert asked() == sum(len(checks.rules) for checks in (ROWS, MARKET, LEAKS, JUDGED))
    assert asked() == 0


@pytest.mark.slow
def test_all_checks_of_the_graph_run_alone_without_an_hour(make_bench: Callable[..., Bench], database: Database):
    hours_with(database, {WINDOW: True})
    bench = make_bench(database, now=NEXT_DAYS)
    everything = code_location(given(bench.babylon))
    graph = everything.resolve_asset_graph()
    # As *Execute all* of a Checks tab does: checks of the implicit job, and no assets.
    job = everything.resolve_implicit_global_asset_job_def().get_subset(asset_selection=set(), asset_check_selection=graph.asset_check_keys)
    result = job.execute_in_process(instance=bench.instance, run_config=QUIET)
    verdicts = {verdict.asset_check_key: verdict for verdict in result.get_asset_check_evaluations()}
    assert verdicts.keys() == graph.asset_check_keys and not result.get_asset_materialization_events()
    rows = {key.name for key, verdict in verdicts.items() if verdict.passed}
    assert rows == ROW_CHECKS - {"one_hour_each"}
    said = {verdict.description for key, verdict in verdicts.items() if key.asset_key != dg.AssetKey("window_groups")}
    assert all(words.startswith("Nothing measured: ") for words in said if words)
    assert {verdict.severity for verdict in verdicts.values()} == {dg.AssetCheckSeverity.WARN}


@pytest.mark.long
def test_one_check_can_be_run_by_itself(bench: Bench):
    bench.run("hours", "2025-10-29T14:00")
    key = dg.AssetCheckKey(dg.AssetKey("window_groups"), "clocks_agree")
    alone = dg.define_asset_job("clocks", selection=dg.AssetSelection.checks(key))
    everything = code_location(given(bench.babylon))
    job = dg.Definitions.merge(everything, dg.Definitions(jobs=[alone])).resolve_job_def("clocks")
    result = job.execute_in_process(instance=bench.instance, run_config=QUIET)
    assert [verdict.check_name for verdict in result.get_asset_check_evaluations()] == ["clocks_agree"]
    assert result.get_asset_check_evaluations()[0].description == "Nothing found in 1 hour."
