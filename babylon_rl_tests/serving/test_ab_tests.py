"""An A/B test says which version earns more in the same hours, and says so seldom when none does."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random

import dagster as dg
import numpy as np
import pytest
from pydantic import SecretStr

from babylon_rl.assets.ab_test_report import ab_test_report
from babylon_rl.assets.resources import Babylon, given
from babylon_rl.errors import ReleaseRefused, UsageError
from babylon_rl.serving.ab_tests import course, report, start, stop
from babylon_rl.serving.recorded_privacy import agent_hash
from babylon_rl.serving.routing import arm_of
from babylon_rl.store.releases import ReleaseAuthor, read_routing
from babylon_rl_tests.serving.live_rows import hours_after, insert_hour
from babylon_rl_tests.serving.live_rows import insert_calls as _insert_calls

START = datetime(2025, 11, 20, 12)
AUTHOR = ReleaseAuthor("tester", "a test", START)
AGENTS = [f"agent-{number}" for number in range(60)]


def insert_calls(connection, version: str | None, at: datetime, agents: Sequence[str]) -> None:
    _insert_calls(connection, version, at, agents)
    connection.execute("UPDATE babylon_rl.gateway_calls SET \"arm\" = 'ab'")
    connection.commit()


def traded(connection, name: str, gains: dict[str, float], *, hours: int = 8, broken: int = 0) -> None:
    """Hours in which agents play the arm of their id, or ``broken`` of them the base; each hour gives the same large sum to all."""
    test, rng = read_routing(connection).test, Random(3)
    assert test is not None and test.name == name
    arms = {f"agent-{n}": "base" for n in range(broken)} or {agent: test.arms[arm_of(test, agent)] for agent in AGENTS}
    lasting = {agent: rng.gauss(0, 10) for agent in arms}
    for at in hours_after(START, hours):
        tide = rng.gauss(0, 500)
        for arm in set(arms.values()):
            insert_calls(connection, None if arm == "base" else arm, at, [agent for agent in arms if arms[agent] == arm])
        insert_hour(connection, at, {agent: tide + lasting[agent] + gains.get(arm, 0.0) + rng.gauss(0, 20) for agent, arm in arms.items()})


@pytest.mark.slow
def test_the_better_version_is_found_in_hours_that_differ_more_than_versions(connection, settings, versions) -> None:
    start(connection, "first", ["v1.0.0", "v1.0.1"], [50, 50], 50.0, AUTHOR)
    traded(connection, "first", {"v1.0.1": 40.0})
    found = report(connection, "first", settings)
    difference = found.differences["v1.0.1"]
    assert difference.low > 0 and difference.low < 40 < difference.high
    assert found.verdict.startswith("v1.0.1 is shown to earn more than v1.0.0: ") and not found.sample_ratio.mismatch
    document = found.document
    assert [arm["version"] for arm in document["arms"]] == ["v1.0.0", "v1.0.1"] and document["arms"][0]["windows"] == 8
    assert sum(arm["agents"] for arm in document["arms"]) == 60 == sum(document["sampleRatio"]["counts"])
    assert document["difference"]["mean"] == pytest.approx(40, abs=15) and "same markets" in document["spillover"]
    assert {name: len(values) for name, values in course(found).items()} == {"v1.0.0": 8, "v1.0.1": 8}


@pytest.mark.slow
def test_hashed_agents_are_compared_like_named_ones(connection, settings, versions) -> None:
    start(connection, "first", ["v1.0.0", "v1.0.1"], [50, 50], 50.0, AUTHOR)
    traded(connection, "first", {"v1.0.1": 40.0})
    named = report(connection, "first", settings)
    hidden = settings.model_copy(update={"record_private_fields": "agent=hash", "record_hash_key": SecretStr("a key")})
    recorded = agent_hash(hidden)
    assert recorded is not None
    statement = (
        'UPDATE babylon_rl.gateway_calls g SET "agentId" = n.hash '
        'FROM unnest(%s::text[], %s::text[]) AS n(agent, hash) WHERE g."agentId" = n.agent'
    )
    connection.execute(statement, [AGENTS, [recorded(agent) for agent in AGENTS]])
    assert report(connection, "first", hidden).document == named.document
    unknown = hidden.model_copy(update={"record_hash_key": None})
    assert "hashes agents with a key that is not known here" in report(connection, "first", unknown).verdict


@pytest.mark.slow
def test_several_versions_and_the_base_are_compared_with_the_first(connection, settings, versions) -> None:
    start(connection, "three", ["base", "v1.0.0", "v1.0.1"], [40, 30, 30], 50.0, AUTHOR)
    traded(connection, "three", {"v1.0.0": 60.0, "v1.0.1": 0.0})
    found = report(connection, "three", settings)
    assert set(found.differences) == {"v1.0.0", "v1.0.1"}
    assert "v1.0.0 is shown to earn more than base" in found.verdict and "v1.0.1 is not told apart from base" in found.verdict


def test_a_broken_assignment_is_told_instead_of_a_result(connection, settings, versions) -> None:
    start(connection, "broken", ["base", "v1.0.1"], [50, 50], 50.0, AUTHOR)
    traded(connection, "broken", {}, hours=1, broken=200)
    assert report(connection, "broken", settings).verdict.startswith(
        "Invalid: agents did not come as they were assigned (200 : 0 where 100 : 100"
    )


def test_the_hour_in_which_a_test_begins_counts_for_agents_that_had_one_version_all_along(connection, settings, versions) -> None:
    insert_calls(connection, "v1.0.0", START + timedelta(minutes=5), ["moved", "stayed"])
    start(connection, "first", ["v1.0.0", "v1.0.1"], [50, 50], 50.0, ReleaseAuthor("tester", "a test", START + timedelta(minutes=30)))
    insert_calls(connection, "v1.0.1", START + timedelta(minutes=40), ["moved", "came"])
    insert_calls(connection, "v1.0.0", START + timedelta(minutes=40), ["stayed"])
    insert_hour(connection, START, {"moved": 100.0, "stayed": 1.0, "came": 2.0})
    arms = report(connection, "first", settings).arms
    assert [dict(arm.hours) for arm in arms] == [{"stayed": [1.0]}, {"came": [2.0]}]


def test_a_test_without_hours_says_so(connection, settings, versions) -> None:
    start(connection, "empty", ["v1.0.0", "v1.0.1"], [50, 50], 50.0, AUTHOR)
    found = report(connection, "empty", settings)
    assert found.verdict.startswith("No hour yet in which every arm traded.") and found.document["difference"] is None


@pytest.mark.slow
def test_one_test_runs_at_a_time_and_a_stopped_one_keeps_its_result(connection, settings, versions) -> None:
    start(connection, "first", ["v1.0.0", "v1.0.1"], [50, 50], 50.0, AUTHOR)
    with pytest.raises(ReleaseRefused, match="The A/B test first runs"):
        start(connection, "second", ["v1.0.0", "v1.0.2"], [50, 50], 50.0, AUTHOR)
    traded(connection, "first", {"v1.0.1": 40.0}, hours=6)
    before = report(connection, "first", settings).document["difference"]
    stop(connection, "first", ReleaseAuthor("tester", "enough", START + timedelta(hours=7)))
    insert_hour(connection, START + timedelta(hours=9), {agent: -1000.0 for agent in AGENTS})
    insert_calls(connection, "v1.0.1", START + timedelta(hours=9), AGENTS)
    assert report(connection, "first", settings).document["difference"] == before and read_routing(connection).test is None
    for refused in (lambda: stop(connection, "first", AUTHOR), lambda: start(connection, "first", ["base", "v1.0.0"], [1, 1], 1.0, AUTHOR)):
        with pytest.raises(ReleaseRefused):
            refused()


@pytest.mark.parametrize(
    ("arms", "shares", "effect"),
    [
        (["v1.0.0"], [50], 50.0), (["v1.0.0", "v1.0.0"], [50, 50], 50.0), (["v1.0.0", "v1.0.1"], [60, 50], 50.0),
        (["base", "v1.0.0"], [0, 1], 50.0), (["base", "v1.0.0"], [math.nan, 1], 50.0), (["base", "v1.0.0"], [50, 50], math.nan),
    ],
)  # fmt: skip
def test_arms_shares_and_effects_that_make_no_sense_are_refused(connection, versions, arms, shares, effect) -> None:
    with pytest.raises(UsageError):
        start(connection, "odd", arms, shares, effect, AUTHOR)


@pytest.mark.slow
def test_the_asset_shows_the_newest_test(connection, database, settings, versions) -> None:
    resources = {"babylon": given(Babylon(settings, database, lambda: START))}
    empty = dg.materialize([ab_test_report], resources=resources)
    assert empty.asset_materializations_for_node("ab_test_report")[0].metadata["verdict"].value == "There has been no A/B test."
    start(connection, "first", ["v1.0.0", "v1.0.1"], [50, 50], 50.0, AUTHOR)
    traded(connection, "first", {"v1.0.1": 40.0}, hours=4)
    made = dg.materialize([ab_test_report], resources=resources).asset_materializations_for_node("ab_test_report")[0].metadata
    assert "v1.0.1 is shown to earn more" in made["verdict"].value and "data:image/png" in made["pictures"].value


@pytest.mark.slow
def test_equal_versions_are_seldom_told_apart_however_often_one_looks() -> None:
    from babylon_rl.serving.ab_tests import _arms, differences
    from babylon_rl.store.live_usage import AgentHour
    from babylon_rl.store.releases import ABTest

    test = ABTest("t", ("old", "new"), (50.0, 50.0), 50.0, "running", START, None)
    rng, wrong, runs = np.random.default_rng(11), 0, 150
    for _ in range(runs):
        lasting, hours = rng.normal(0, 20, 40), list[AgentHour]()
        for number in range(24):
            tide = rng.normal(0, 300)
            for agent in range(40):
                version = "old" if agent < 20 else "new"
                pnl = float(tide + lasting[agent] + rng.normal(0, 40))
                hours.append(AgentHour(f"h{number:02d}", f"a{agent}", version, pnl, 1, 1, 1, 2, 0))
            if number % 4 == 3:
                interval = differences(test, _arms(test, hours))["new"]
                if interval.low > 0 or interval.high < 0:
                    wrong += 1
                    break
    assert wrong / runs <= 0.06
