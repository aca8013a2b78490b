"""The checks of an hour: silent on clean rows; each names a planted fault, in words, numbers and ids."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from babylon_rl.assets.resources import given
from babylon_rl.automation.check_results import MEASURED
from babylon_rl.automation.checks_hours import MARKET, ROWS
from babylon_rl.automation.code_location import code_location
from babylon_rl.store.database import Database
from babylon_rl_tests.assets.conftest import Bench
from babylon_rl_tests.market_rows import fill, organization, price
from babylon_rl_tests.rows import AFTER, START, WINDOW, insert, make_call, make_step, make_trajectory

Row = dict[str, Any]
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
        result = bench.run("hours", WINDOW, asset_selection=[dg.AssetKey("window_groups"), dg.AssetKey("market_outcomes")])
        return {verdict.check_name: verdict for verdict in result.get_asset_check_evaluations() if verdict.partition == WINDOW}

    return check


def prices(slug: str, number: int = 0, *, initial: float | None = 100.0, last: float = 101.0) -> dict[str, list[Row]]:
    return {"Organization": [organization(slug, initial=initial)], "StockPrice": [price(number, slug, last, 10)]}


@pytest.mark.slow
def test_clean_rows_and_a_plain_market_pass_every_check(checked):
    verdicts = checked(clean(), **prices("openlie"))
    assert {name for name, verdict in verdicts.items() if verdict.passed} == ROW_CHECKS | MARKET_CHECKS
    assert {verdict.description for verdict in verdicts.values()} == {"Nothing found."}


@pytest.mark.long
@pytest.mark.parametrize("check", FAULTS)
def test_a_planted_fault_is_named_by_its_check_alone(checked, check: str):
    rows, words, ids = FAULTS[check]
    verdicts = checked(rows, **prices("openlie"))
    assert {name for name, verdict in verdicts.items() if not verdict.passed} == {check}
    found = verdicts[check]
    assert found.severity == dg.AssetCheckSeverity.WARN
    assert found.description.startswith(f"{WINDOW}: ") and words in found.description
    assert len(found.description.rpartition(". ")[2]) > 20, "and it says what to do"
    assert found.metadata["found"].value == {WINDOW: found.description.removeprefix(f"{WINDOW}: ").split(". ")[0]}
    assert (found.metadata["ids"].value[WINDOW] if ids else []) == ids


def test_a_check_of_nothing_is_a_warning_and_no_pass(checked):
    verdicts = checked(clean())
    assert {name for name, verdict in verdicts.items() if not verdict.passed} == MARKET_CHECKS
    for name in MARKET_CHECKS:
        assert verdicts[name].severity == dg.AssetCheckSeverity.WARN
        assert verdicts[name].description.startswith("Not measured: ")


def test_every_row_check_has_a_planted_fault():
    assert set(FAULTS) == ROW_CHECKS


def test_checks_show_their_numbers_when_they_pass_too(checked):
    verdicts = checked([*clean(6), row(6, isEvaluation=True)])
    assert verdicts["few_rows_rejected"].metadata["rejected"].value == {"evaluation": 1}
    assert verdicts["few_rows_rejected"].metadata["rejected_share"].value == pytest.approx(1 / 7, abs=1e-4)
    assert verdicts["messages_recorded"].metadata["message_sources"].value == {"embedded": 6, "llm_call_logs": 0, "synthetic": 0}
    assert verdicts["prompts_long_enough"].metadata["rows_with_prompts"].value == 6


@pytest.mark.slow
def test_ids_are_capped_and_the_count_is_not(checked):
    copies = [row(0, minute=6) | {"id": f"copy-{n}", "trajectoryId": f"copy-{n:02}"} for n in range(25)]
    found = checked([*clean(), *copies])["rows_unique"]
    assert "25 of 30" in found.description
    assert len(found.metadata["ids"].value[WINDOW]) == 20


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
    assert verdicts["outcomes_unflagged"].metadata["ids"].value == {WINDOW: ["OPENLIE"]}


def test_prices_beyond_all_bounds_are_flagged_and_lose_nothing(checked):
    tables = prices("openlie", initial=1e-300, last=1e299)
    found = checked(clean(), **tables)["outcomes_unflagged"]
    assert "its change is beyond" in found.description and "its price is beyond" in found.description


@pytest.mark.slow
def test_two_organizations_with_one_ticker_are_named(checked):
    both = [prices("antisocialcapital"), prices("antisocialcamp", 1)]
    verdicts = checked(clean(), **{table: [entry for tables in both for entry in tables[table]] for table in both[0]})
    assert {name for name, verdict in verdicts.items() if not verdict.passed} == {"tickers_distinct"}
    assert verdicts["tickers_distinct"].metadata["ids"].value == {WINDOW: ["ANTISOCIALCA~2"]}


@pytest.mark.slow
def test_in_a_range_the_bad_hours_have_a_verdict_each(make_bench: Callable[..., Bench], database: Database):
    with database.connect(autocommit=True) as connection:
        insert(connection, "trajectories", [*clean(), row(5, windowHours=4)])
    bench = make_bench(database, now=AFTER + timedelta(days=2))
    result = bench.run("hours", WINDOW, "2025-11-17T09:00", asset_selection=[dg.AssetKey("window_groups")])
    verdicts = [verdict for verdict in result.get_asset_check_evaluations() if verdict.check_name == "one_hour_each"]
    own = {verdict.partition: verdict.passed for verdict in verdicts if verdict.partition}
    assert own == {WINDOW: False}
    whole = next(verdict for verdict in verdicts if verdict.partition is None)
    assert whole.metadata[MEASURED].value == [[WINDOW, WINDOW]]  # the others hold nothing
    assert not whole.passed and whole.description.startswith(f"1 of 48 hours. {WINDOW}: 1 of 6 (17%) rows say")


@pytest.mark.long
def test_one_check_can_be_run_by_itself(bench: Bench):
    bench.run("hours", "2025-10-29T14:00")
    key = dg.AssetCheckKey(dg.AssetKey("window_groups"), "clocks_agree")
    alone = dg.define_asset_job("clocks", selection=dg.AssetSelection.checks(key))
    everything = code_location(given(bench.babylon))
    job = dg.Definitions.merge(everything, dg.Definitions(jobs=[alone])).resolve_job_def("clocks")
    result = job.execute_in_process(instance=bench.instance, tags={"dagster/partition": "2025-10-29T14:00"})
    assert [verdict.check_name for verdict in result.get_asset_check_evaluations()] == ["clocks_agree"]
