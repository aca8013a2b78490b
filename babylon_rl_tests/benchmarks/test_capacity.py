"""The capacity model agrees with queueing theory and with bounds that can be counted by hand."""

import json
import math
import random
from pathlib import Path
from statistics import mean

import pytest
import simpy

from babylon_rl_tests.scale.results import SPEED, Row
from babylon_rl_tests.scale.scenarios import SETTINGS
from benchmarks import scale_test
from benchmarks.capacity import (
    BOUND,
    CELERY_CONCURRENCY,
    DAYS_KEPT,
    KEPT,
    PAGE,
    PRICES,
    RATES,
    ROOT,
    SHOWN,
    TIER,
    TIERS,
    TRAIN_ROW_S,
    USD,
    VERSION_S,
    by_tier,
    compared,
    compared_with_celery,
    highest_rate,
    kept_measurement,
    limited,
    monthly_usd,
    prices,
    projected,
    provider,
    rate_table,
    tier_table,
)
from benchmarks.capacity_model import Costs, Hour, Judge, Limits, Seen, Site, backfill_s, scoring_span_s, steady
from benchmarks.capacity_runs import ORDERS

NOTHING = Costs()


def erlang_c_wait(arrivals: float, service: float, servers: int) -> float:
    """Mean wait of M/M/c, in the unit of ``1 / service`` (Erlang's second formula)."""
    load = arrivals / service
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    waits = last / (sum(load**k / math.factorial(k) for k in range(servers)) + last)
    return waits / (servers * service - arrivals)


@pytest.mark.slow
@pytest.mark.parametrize(("servers", "arrivals"), [(1, 0.7), (4, 3.0)])
def test_the_wait_for_the_judge_is_that_of_mmc(servers: int, arrivals: float) -> None:
    rng, env, seen = random.Random(1), simpy.Environment(), Seen()
    judge, places = Judge(env, Limits(lambda: rng.expovariate(1.0)), seen), simpy.Resource(env, servers)

    def arrive():
        for _ in range(40_000):
            yield env.timeout(rng.expovariate(arrivals))
            env.process(judge.ask(places))

    env.process(arrive())
    env.run()
    assert mean(seen.waited_s) == pytest.approx(erlang_c_wait(arrivals, 1.0, servers), rel=0.1)
    assert seen.busy_s["judge"] / env.now == pytest.approx(arrivals, rel=0.03)


@pytest.mark.parametrize("concurrency", [1, 4, 8, 16])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_waiting_alone_takes_as_many_rounds_as_requests_over_places(workers: int, concurrency: int) -> None:
    hours = [Hour(rows=10, requests=2)] * 96
    site, limits = Site(workers, 2, concurrency), Limits(lambda: 0.3)
    assert backfill_s(site, NOTHING, limits, hours) == pytest.approx(0.3 * (96 / workers * 2 / concurrency))
    first_hour_s = 0.6 if concurrency == 1 else 0.3
    assert scoring_span_s(site, NOTHING, limits, hours) == pytest.approx(backfill_s(site, NOTHING, limits, hours) - first_hour_s)


def test_a_request_keeps_its_place_until_the_answer_is_stored() -> None:
    costs, hours = Costs(stored_s=0.02), [Hour(rows=10, requests=2)] * 24
    for places in (1, 4):
        assert backfill_s(Site(1, 2, places), costs, Limits(lambda: 0.3), hours) == pytest.approx(48 / places * 0.32)


def test_cores_that_all_compute_take_longer() -> None:
    costs, hours = Costs(plan_hour_s=0.1, crowded=1.2), [Hour(0, 0)] * 96
    seconds = {workers: backfill_s(Site(workers, 2), costs, Limits(lambda: 0.0), hours) for workers in (1, 2)}
    assert seconds == {1: pytest.approx(9.6), 2: pytest.approx(9.6 / 2 * 1.2, rel=0.02)}


def test_computing_alone_is_bounded_by_the_cores() -> None:
    costs, hours = Costs(run_s=1.0, plan_hour_s=0.1, finish_hour_s=0.1), [Hour(0, 0)] * 96
    seconds = {workers: backfill_s(Site(workers, 2), costs, Limits(lambda: 0.0), hours) for workers in (1, 2, 4)}
    assert seconds[1] == pytest.approx(4 * 1.0 + 96 * 0.2)
    assert seconds[2] == pytest.approx(seconds[1] / 2)
    assert seconds[4] == pytest.approx(seconds[2], rel=0.01)  # two cores


def test_a_backfill_that_the_database_bounds_takes_its_seconds_over_its_cores() -> None:
    costs, hours = Costs(run_s=0.5, plan_row_s=1e-4, database_hour_s=0.2, database_row_s=1e-3), [Hour(rows=1000, requests=0)] * 192
    seconds = {cores: backfill_s(Site(8, 8, database_cores=cores), costs, Limits(lambda: 0.0), hours) for cores in (1, 2, 4)}
    for cores, took in seconds.items():
        assert took == pytest.approx(192 * (0.2 + 1000 * 1e-3) / cores, rel=0.05)


def test_a_database_without_cores_of_its_own_computes_on_the_workers() -> None:
    parts, hours = Costs(run_s=0.5, plan_hour_s=0.1, database_run_s=0.5, database_hour_s=0.3), [Hour(0, 0)] * 96
    assert backfill_s(Site(4, 2), parts, Limits(lambda: 0.0), hours) == pytest.approx((4 * 1.0 + 96 * 0.4) / 2, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "used"), [(7_200, 0.15), (72_000, 1.5)])
def test_the_database_is_used_by_what_agents_write_and_by_hours(rows: int, used: float) -> None:
    costs = Costs(database_row_s=0.05, write_row_s=0.1)
    site, at_once = Site(4, 2, database_cores=2), Limits(lambda: 0.0)
    state = steady(site, costs, at_once, Hour(rows, 0), hours=1, batch_rows=1000, train_row_s=1.0, version_s=50)
    assert state.used["database"] == pytest.approx(used)  # rows x 0.15 s / 3,600 s / 2 cores
    assert state.used["cores"] == 0
    assert state.growing is (used > 1)


@pytest.mark.parametrize(
    ("limits", "minutes"), [({"requests_per_minute": 60}, 3), ({"tokens_per_minute": 1000, "tokens_per_request": 20}, 3)]
)
def test_a_limit_a_minute_holds_for_all_workers_together(limits: dict[str, float], minutes: int) -> None:
    hours = [Hour(0, 2)] * 96  # 192 requests: the first minute's at once, the last in the fourth
    took = backfill_s(Site(4, 2, 16), NOTHING, Limits(lambda: 0.3, **limits), hours)
    assert 60 * minutes < took < 60 * minutes + 10


@pytest.mark.long
def test_a_game_that_is_too_fast_is_said_to_grow() -> None:
    def play(workers: int):
        costs = Costs(plan_row_s=0.5)
        return steady(
            Site(workers, 8), costs, Limits(lambda: 0.0), Hour(10_000, 1), hours=3, batch_rows=1000, train_row_s=1.0, version_s=50
        )

    slow, fast = play(1), play(2)
    assert slow.growing and not fast.growing  # an hour takes 5,000 s
    assert slow.scored_after_s == pytest.approx(5000 + 2 * 1400)
    assert fast.scored_after_s == pytest.approx(5000)
    assert fast.used["workers"] == pytest.approx(5000 / 3600 / 2)
    assert slow.used["workers"] == pytest.approx(5000 / 3600)  # more than there is
    assert fast.used["cores"] == pytest.approx(5000 / 3600 / 8)
    assert fast.trained_share == pytest.approx(3600 / 1050 / 10)  # 1,050 s for 1,000 of 10,000 trajectories


@pytest.mark.parametrize(("limits", "trajectories"), [((500, None), 30_000), ((None, 200_000), 12_000), ((500, 200_000), 12_000)])
def test_the_lower_limit_bounds_the_trajectories_of_an_hour(limits: tuple[float | None, float | None], trajectories: float) -> None:
    judge = {"requests": 1000.0, "tokens_in": 900_000.0, "tokens_out": 100_000.0}  # of 1,000 trajectories
    assert highest_rate(judge, provider(judge, 5.0, *limits)) == pytest.approx(trajectories)
    assert math.isinf(highest_rate(judge, provider(judge, 5.0)))


def test_hours_beyond_the_limit_are_never_scored_and_others_are_late() -> None:
    kept, judge = kept_measurement(), {"requests": 100.0, "tokens_in": 9_000.0, "tokens_out": 1_000.0}
    limits = provider(judge, 0.0, 10)  # 600 requests an hour, 6,000 trajectories
    below, above = (limited(kept, rate, Site(4), limits, judge) for rate in (3_000, 12_000))
    assert 29 < below < 31  # 300 requests, ten in any minute
    assert math.isinf(above)  # two hours of requests each hour


@pytest.mark.slow
def test_the_model_is_within_its_bound_of_every_measured_run() -> None:
    kept = kept_measurement()
    rows = [*compared(kept), *compared_with_celery(kept)]
    assert len(rows) == 9
    assert max(abs(row["off"]) for row in rows) <= BOUND


def test_a_measurement_that_lacks_something_asks_for_another(tmp_path: Path) -> None:
    older = tmp_path / "capacity.json"
    older.write_text(json.dumps({name: value for name, value in json.loads(KEPT.read_text()).items() if name != "write_row_s"}))
    with pytest.raises(SystemExit, match="capacity.json lacks write_row_s. Run .*--check"):
        kept_measurement(older)


def test_values_measured_elsewhere_are_those_of_their_pages() -> None:
    assert (str(CELERY_CONCURRENCY), str(ORDERS)) == (SETTINGS["JUDGE_CONCURRENCY"], SETTINGS["JUDGE_ORDERS"])
    assert f"| {1000 * TRAIN_ROW_S:.0f} s of processor time" in PRICES.read_text()
    assert f"benchmark and confirmation {VERSION_S / 2:.0f}," in (ROOT / "docs/evidence/performance.md").read_text()


def test_the_scale_test_keeps_its_speed_as_the_model_reads_it() -> None:
    rows = [Row("one process", 720, 463.04), *(Row(scale_test.on_workers(workers), 720, 480.0 / workers) for workers in (1, 2, 4))]
    made, kept = scale_test.kept_speed(rows, 720, "load 1 on 2 cores"), json.loads(SPEED.read_text())
    assert made["seconds_by_workers"] == {1: 480.0, 2: 240.0, 4: 120.0}
    assert json.loads(json.dumps(made)).keys() == kept.keys()
    assert list(kept["seconds_by_workers"]) == ["1", "2", "4"]


def test_dollars_are_those_of_the_prices_given() -> None:
    row = {SHOWN[0]: 0.8, SHOWN[1]: 11.2, "rented": [2, 1, 1], "gb": 100.0, "archive_gb": 1000.0}
    judge, cores, disk, archive, together, other = monthly_usd(row, {"core_hour": 0.1, "gb_month": 0.5, "archive_gb_month": 0.01}).values()
    assert (judge, cores, disk, archive, other) == pytest.approx((584, 4 * 73, 50, 10, 8176))
    assert together == pytest.approx(584 + 4 * 73 + 50 + 10)


def test_the_page_holds_prices_and_days_of_the_model() -> None:
    page = PAGE.read_text()
    usd = prices(PRICES.read_text())[SHOWN[0]]["usd"]
    assert f"| dollars a month: {SHOWN[0]} | " + " | ".join(f"{730 * rate / 1000 * usd:,.0f}" for rate in RATES) in page
    days = [f"after {days} days" if days > 1 else "after a day" for days in DAYS_KEPT.values()]
    assert f"| archive to object storage | {' | '.join(days)} |" in page
    assert all(f"`--usd-{name.replace('_', '-')}`" in page and f"{price:g}" in page for name, price in USD.items())


@pytest.mark.slow
def test_the_page_holds_the_projection_of_the_lowest_rate() -> None:
    kept, page, lowest = kept_measurement(), PAGE.read_text(), RATES[:1]
    rows = projected(kept, 5.0, *TIERS[TIER], lowest)
    for table in (rate_table(rows, *TIERS[TIER]), tier_table(by_tier(kept, 5.0, rows), lowest)):
        for line in table.splitlines():
            if "---" not in line:
                assert line.removesuffix(" |") in page
