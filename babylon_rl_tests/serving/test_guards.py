"""A rollout advances, holds or goes back by what live agents did, and by nothing that could be chance."""

from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random
from typing import Any

import dagster as dg
import numpy as np
import psycopg
import pytest
from pydantic import SecretStr

from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.sensors import advance_rollouts
from babylon_rl.evaluation.gate import FAIL, INCONCLUSIVE, PASS
from babylon_rl.serving import promotion
from babylon_rl.serving.promotion import advance, judge_calls, judge_hours
from babylon_rl.serving.recorded_privacy import agent_hash
from babylon_rl.serving.releases import deploy, marked_versions, pause
from babylon_rl.store.live_usage import AgentHour, CallCounts, agents_by_version, count_usage
from babylon_rl.store.releases import RELEASES_LOCK, ReleaseAuthor, read_rollouts, read_routing
from babylon_rl_tests.rows import insert, make_log, make_trajectory
from babylon_rl_tests.serving.live_rows import hours_after, insert_calls, insert_hour

START = datetime(2025, 11, 20, 12)
TREATED, CONTROL = [f"treated-{n}" for n in range(20)], [f"control-{n}" for n in range(20)]


@pytest.fixture
def settings(settings, monkeypatch):
    monkeypatch.setattr(promotion, "STEP_LASTS", timedelta(hours=2))
    return settings.model_copy(update={"auto_promote": True})


@pytest.fixture
def rolling(connection, settings, make_version):
    """v1.0.0 is deployed, and v1.0.1 at 10 %."""
    for version in ("v1.0.0", "v1.0.1"):
        make_version(version)
    deploy(connection, "v1.0.0", settings, ReleaseAuthor("tester", "first", START - timedelta(days=1)), strategy="immediate")
    deploy(connection, "v1.0.1", settings, ReleaseAuthor("tester", "second", START), percentage=10)


def live(
    connection, *, hours: int = 6, gain: float = 0.0, seed: int = 1, calls: int = 20, recorded: Callable[[str], str] = str, **treated: Any
) -> None:
    """Some hours in which 20 agents of each version called and traded; ``gain`` is what the one on trial earns more.

    ``recorded`` makes the name of an agent in its calls.
    """
    rng = Random(seed)
    failed = treated.pop("failed", 0)
    latency = treated.pop("latency_ms", 100)
    for at in hours_after(START, hours):
        insert_calls(connection, "v1.0.1", at, map(recorded, TREATED), calls=calls, failed=failed, latency_ms=latency)
        insert_calls(connection, "v1.0.0", at, map(recorded, CONTROL), calls=calls)
        insert_hour(connection, at, {agent: gain + rng.gauss(0, 30) for agent in TREATED}, **treated)
        insert_hour(connection, at, {agent: rng.gauss(0, 30) for agent in CONTROL})


def state(connection) -> tuple[str, float]:
    newest = read_rollouts(connection)[0]
    connection.commit()
    return newest.state, newest.percentage


@pytest.mark.slow
def test_a_version_that_does_well_advances_step_by_step_to_all(connection, settings, rolling) -> None:
    live(connection)
    seen = []
    for tick in range(8):
        now = START + timedelta(hours=7 + 3 * tick)
        said = advance(connection, settings, now)
        if said.startswith("Held: inconclusive"):  # a new step begins with no calls of its own
            for at in (now - timedelta(minutes=30),):
                insert_calls(connection, "v1.0.1", at, TREATED, calls=30)
                insert_calls(connection, "v1.0.0", at, CONTROL, calls=30)
            said = advance(connection, settings, now)
        seen.append(state(connection))
    assert seen[-1] == ("released", 100.0) and {share for _, share in seen} == {25.0, 50.0, 100.0}
    assert read_routing(connection).deployed == "v1.0.1"


@pytest.mark.slow
def test_without_automatic_promotion_a_person_is_told_and_a_failure_still_rolls_back(connection, settings, rolling) -> None:
    by_hand = settings.model_copy(update={"auto_promote": False})
    live(connection)
    said = advance(connection, by_hand, START + timedelta(hours=7))
    assert said.startswith("Held: `babylon-rl models deploy v1.0.1 --percentage 25` advances it, or AUTO_PROMOTE.")
    for at in hours_after(START + timedelta(hours=7), 1):
        insert_calls(connection, "v1.0.1", at, TREATED, calls=60, failed=30)
    assert advance(connection, by_hand, START + timedelta(hours=9)).startswith("Rolled back. v1.0.1 at 10 %: errors fail (600 of ")
    assert state(connection) == ("rolled_back", 10.0) and marked_versions(connection) == {"v1.0.1"}
    assert read_routing(connection).deployed == "v1.0.0"


@pytest.mark.long
@pytest.mark.parametrize(
    ("trouble", "guard"),
    [
        ({"failed": 2}, "errors fail"),
        ({"latency_ms": 20_000}, "latency fail"),
        ({"refused": 5}, "refused orders fail"),
        ({"holds": 60, "buys": 1, "sells": 0}, "action collapse fail"),
        ({"gain": -60.0}, "P&L fail"),
    ],
)
def test_each_guard_alone_takes_a_version_back(connection, settings, rolling, trouble, guard) -> None:
    live(connection, **trouble)
    said = advance(connection, settings, START + timedelta(hours=7))
    assert said.startswith("Rolled back.") and guard in said and said.count(" fail ") == 1
    assert state(connection) == ("rolled_back", 10.0)


@pytest.mark.slow
def test_a_version_whose_refused_trades_name_no_side_is_taken_back(connection, settings, rolling) -> None:
    live(connection, buys=20, sells=0, refused=20, sides=False)
    said = advance(connection, settings, START + timedelta(hours=7))
    assert said.startswith("Rolled back.") and "refused orders fail (2400 of 2400, control 0 of 2400: " in said


def test_it_holds_without_data_at_first_and_while_it_is_paused(connection, settings, rolling) -> None:
    assert "too early to say" in advance(connection, settings, START + timedelta(hours=7))
    live(connection, hours=1)
    assert advance(connection, settings, START + timedelta(hours=1)).startswith("Held: its step lasts 2 hours at least.")
    pause(connection, ReleaseAuthor("tester", "wait", START + timedelta(hours=1)))
    assert advance(connection, settings, START + timedelta(hours=7)).startswith("Held: it is paused.")
    assert state(connection) == ("paused", 10.0)


def test_the_last_step_waits_for_what_the_others_do_not(connection, settings, rolling, monkeypatch) -> None:
    monkeypatch.setattr(promotion, "LOSS_USD", 0.01)
    settings = settings.model_copy(update={"rollout_steps": (10.0, 100.0)})
    live(connection, gain=0.0)
    assert advance(connection, settings, START + timedelta(hours=7)).startswith("Held: inconclusive: P&L.")
    assert state(connection) == ("rolling", 10.0)


def test_hours_with_several_versions_count_for_none(connection, settings, rolling) -> None:
    (at,) = hours_after(START, 1)
    insert_calls(connection, "v1.0.1", at, ["mixed", "treated"])
    insert_calls(connection, "v1.0.0", at, ["mixed"])
    insert_hour(connection, at, {"mixed": -1000.0, "treated": 1.0})
    assert "1 agents against 0" in advance(connection, settings, START + timedelta(hours=7))


@pytest.mark.slow
def test_equal_versions_are_seldom_taken_back_however_often_one_looks() -> None:
    rng, wrong, runs = np.random.default_rng(5), 0, 200
    for _ in range(runs):
        means = rng.normal(0, 20, 40)  # agents differ for good
        hours: list[AgentHour] = []
        for hour in range(24):
            hours += [
                AgentHour(f"h{hour}", f"a{n}", "new" if n < 20 else "old", float(rng.normal(means[n], 50)), 10, 10, 10, 20, 0)
                for n in range(40)
            ]
            if hour % 3 == 2 and any(guard.verdict == FAIL for guard in judge_hours(hours, "new", "old")):
                wrong += 1
                break
    assert wrong / runs < 0.05


@pytest.mark.parametrize(
    ("fields", "why"), [("agent", "keeps agents out of"), ("agent=hash", "hashes agents with a key that is not known")]
)
def test_a_rollout_is_held_while_recorded_calls_are_not_found_with_their_agents(connection, settings, rolling, fields, why) -> None:
    live(connection)
    hidden = settings.model_copy(update={"record_private_fields": fields})
    assert advance(connection, hidden, START + timedelta(hours=7)).startswith(f"Held: RECORD_PRIVATE_FIELDS {why}")


@pytest.mark.parametrize(("gain", "verdict"), [(0.0, "Advanced to 25 %."), (-60.0, "Rolled back.")])
def test_guards_find_the_hours_of_agents_whose_recorded_calls_are_hashed(connection, settings, rolling, gain, verdict) -> None:
    hidden = settings.model_copy(update={"record_private_fields": "agent=hash", "record_hash_key": SecretStr("a key")})
    recorded = agent_hash(hidden)
    assert recorded is not None
    live(connection, gain=gain, recorded=recorded)
    said = advance(connection, hidden, START + timedelta(hours=7))
    assert said.startswith(verdict) and "20 agents against 20" in said


def test_guards_of_calls_need_enough_of_them() -> None:
    def verdicts(*ours: int, control: tuple[int, ...] = (5000, 50, 0)) -> list[str]:
        return [guard.verdict for guard in judge_calls(CallCounts(*ours), CallCounts(*control))]

    assert verdicts(0, 0, 0) == [INCONCLUSIVE, INCONCLUSIVE]
    assert verdicts(20, 0, 0) == [INCONCLUSIVE, INCONCLUSIVE]
    assert verdicts(5000, 50, 0) == [PASS, PASS]
    assert verdicts(2000, 200, 1000) == [FAIL, FAIL]
    assert verdicts(50, 50, 50, control=(0, 0, 0)) == [FAIL, FAIL]  # nobody else was asked


def usage(connection) -> dict[str, tuple[int, int]]:
    """Agents and inferences by version."""
    rows = connection.execute('SELECT version, "agentsUsing", "totalInferences" FROM trained_models').fetchall()
    connection.commit()
    return {version: (agents, calls) for version, agents, calls in rows}


def count(connection, now: datetime) -> None:
    with connection.transaction():
        connection.take_lock(RELEASES_LOCK)
        count_usage(connection, now)


def record_calls(connection, *numbers: int, at: datetime | str, version: str = "v1.0.1") -> None:
    """Calls that agent-1 recorded itself, outside the gateway."""
    if not connection.execute("SELECT FROM trajectories LIMIT 1").fetchall():
        insert(connection, "trajectories", [make_trajectory("t1", "agent-1")])
    made = [make_log("t1", n, timestamp=at, metadata=f'{{"modelVersion": "{version}"}}') for n in numbers]
    insert(connection, "llm_call_logs", made)
    connection.commit()


@pytest.mark.long
def test_usage_counts_recorded_calls_outside_the_gateway_once(connection, rolling) -> None:
    now = START + timedelta(hours=3)
    record_calls(connection, 0, 1, 2, at=now)
    insert_calls(connection, "v1.0.1", now, ["agent-2", "agent-3"])  # which the gateway has counted itself
    for _ in range(2):
        count(connection, now)
        assert usage(connection)["v1.0.1"] == (3, 3)
    record_calls(connection, 3, at=now + timedelta(hours=1))
    record_calls(connection, 4, at=now)  # late
    record_calls(connection, 5, at=now, version="of-others")
    count(connection, now + timedelta(hours=1))
    assert usage(connection) == {"v1.0.0": (0, 0), "v1.0.1": (3, 5)}
    assert agents_by_version(connection, now - timedelta(hours=1), now) == {"v1.0.1": ["agent-1", "agent-2", "agent-3"]}
    count(connection, now + timedelta(days=3))
    assert usage(connection)["v1.0.1"] == (0, 5)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["57842-11-20 08:00", "2099-11-20 08:00", "0001-01-01 00:00"])
def test_a_recorded_call_with_a_wrong_time_keeps_no_other_from_being_counted(connection, rolling, wrong) -> None:
    now = START + timedelta(hours=3)
    record_calls(connection, 0, at=wrong)
    # An earlier release has counted it.
    given = [f"{wrong.replace(' ', 'T')}", ["agent-1"]]
    connection.execute("INSERT INTO babylon_rl.version_hours VALUES ('v1.0.1', %s, 1, %s)", given)
    count(connection, now)
    assert usage(connection)["v1.0.1"] == (0, 0)
    record_calls(connection, 1, 2, at=now)
    for _ in range(2):
        count(connection, now)
    assert usage(connection)["v1.0.1"] == (1, 2)


def test_a_recorded_call_of_a_clock_ahead_counts_when_its_time_has_come(connection, rolling) -> None:
    now = START + timedelta(hours=3)
    record_calls(connection, 0, at=now + timedelta(days=1))
    record_calls(connection, 1, at=now)
    for at, calls in ((now, 1), (now + timedelta(hours=1), 1), (now + timedelta(days=1), 2)):
        count(connection, at)
        assert usage(connection)["v1.0.1"] == (1, calls)


def test_a_count_reads_no_calls_of_long_before_though_it_found_none_then(connection, rolling) -> None:
    now = START + timedelta(hours=3)
    count(connection, now)
    record_calls(connection, 0, at=now)
    count(connection, now + timedelta(days=20))  # nothing was there for so long: what comes later than hours is not looked for
    record_calls(connection, 1, at=now + timedelta(days=20))
    count(connection, now + timedelta(days=20))
    assert usage(connection)["v1.0.1"] == (1, 2)
    record_calls(connection, 2, at=now + timedelta(days=20))
    record_calls(connection, 3, at=now + timedelta(days=19))
    count(connection, now + timedelta(days=20, minutes=1))
    assert usage(connection)["v1.0.1"] == (1, 3)


@pytest.mark.slow
def test_the_sensor_counts_and_moves_at_each_tick(connection, database, settings, rolling) -> None:
    def tick(hours: float) -> str:
        babylon = Babylon(settings, database, lambda: START + timedelta(hours=hours))
        return str(advance_rollouts(dg.build_sensor_context(resources={"babylon": babylon})).skip_message)

    live(connection)
    assert tick(7).startswith("Advanced to 25 %. v1.0.1 at 10 %: errors pass")
    assert connection.execute("SELECT \"agentsUsing\" FROM trained_models WHERE version = 'v1.0.1'").fetchone() == (20,)
    connection.commit()
    assert tick(7.1).startswith("Held: its step lasts 2 hours at least.")


def test_a_count_of_use_that_fails_keeps_no_version_from_being_rolled_back(connection, database, settings, rolling) -> None:
    live(connection, failed=2)
    record_calls(connection, 0, at=START)
    connection.execute('ALTER TABLE babylon_rl.version_hours ADD CONSTRAINT none CHECK ("calls" < 0)')
    connection.commit()
    babylon = Babylon(settings, database, lambda: START + timedelta(hours=7))
    with pytest.raises(psycopg.errors.CheckViolation):
        advance_rollouts(dg.build_sensor_context(resources={"babylon": babylon}))
    assert state(connection) == ("rolled_back", 10.0)
