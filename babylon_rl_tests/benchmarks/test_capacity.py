"""The capacity model agrees with queueing theory and with bounds that can be counted by hand."""

import json
import math
import random
from statistics import mean

import pytest
import simpy

from benchmarks.capacity import KEPT, PAGE, PRICES, RATES, SHOWN, check_table, compared, cost_table, prices
from benchmarks.capacity_model import Costs, Hour, Judge, Limits, Seen, Site, backfill_s, steady

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


@pytest.mark.parametrize("concurrency", [4, 8, 16])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_waiting_alone_takes_as_many_rounds_as_requests_over_places(workers: int, concurrency: int) -> None:
    hours = [Hour(rows=10, requests=2)] * 96
    took = backfill_s(Site(workers, 2, concurrency), NOTHING, Limits(lambda: 0.3), hours)
    assert took == pytest.approx(0.3 * (96 / workers * 2 / concurrency))


def test_computing_alone_is_bounded_by_the_cores() -> None:
    costs, hours = Costs(run_s=1.0, plan_hour_s=0.1, finish_hour_s=0.1), [Hour(0, 0)] * 96
    seconds = {workers: backfill_s(Site(workers, 2), costs, Limits(lambda: 0.0), hours) for workers in (1, 2, 4)}
    assert seconds[1] == pytest.approx(4 * 1.0 + 96 * 0.2)
    assert seconds[2] == pytest.approx(seconds[1] / 2)
    assert seconds[4] == pytest.approx(seconds[2], rel=0.01)  # two cores


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
    assert 0.5 < fast.used["workers"] < 5000 / 3600 / 2
    assert 0.1 < fast.trained_share < 3600 / 1050 / 10  # 1,050 s for 1,000 of 10,000 trajectories


def test_the_page_holds_what_the_kept_measurement_gives() -> None:
    kept, page = json.loads(KEPT.read_text()), PAGE.read_text()
    assert check_table(compared(kept)) in page
    assert cost_table(kept) in page
    usd = prices(PRICES.read_text())[SHOWN[0]]["usd"]
    assert f"| dollars an hour, {SHOWN[0]} | " + " | ".join(f"{rate / 1000 * usd:,.2f}" for rate in RATES) in page
