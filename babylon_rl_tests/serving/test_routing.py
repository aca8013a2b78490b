"""An agent's model follows from the registry and the settings alone, and stays the same while they do."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import ModelUnavailable
from babylon_rl.serving.routing import ALIASES, BY_REGISTRY, Route, alias_meaning, arm_of, place, route
from babylon_rl.settings import Settings
from babylon_rl.store.releases import ABTest, Rollout, RoutedVersion, RoutingTable

NOW = datetime(2025, 11, 20, 12)
DEFAULTS = Settings(_env_file=None, **{name: field.default for name, field in Settings.model_fields.items()})
AGENTS = [f"agent-{number}" for number in range(400)]
ids = st.text(min_size=1, max_size=30)
percentages = st.floats(0, 100)


def a_version(version: str, status: str = "ready") -> RoutedVersion:
    return RoutedVersion(version, status, "local", version, f"/checkpoints/{version}", False)


def a_trial(version: str, percentage: float, agents: tuple[str, ...] = (), state: Any = "rolling") -> Rollout:
    return Rollout(1, version, state, "test" if agents else "gradual", percentage, agents, None, NOW, NOW, NOW)


def a_test(arms: tuple[str, ...], shares: tuple[float, ...]) -> ABTest:
    return ABTest("t", arms, shares, 1.0, "running", NOW, None)


def a_table(deployed: str | None = "v1.0.0", trial: Rollout | None = None, test: ABTest | None = None) -> RoutingTable:
    versions = {name: a_version(name, "deployed" if name == deployed else "ready") for name in ("v1.0.0", "v1.0.1", "v1.0.2", "v1.0.3")}
    return RoutingTable(versions, deployed, trial, test)


def settings(**changed: Any) -> Settings:
    return DEFAULTS.model_copy(update=changed)


def seen(found: Route) -> tuple[str | None, str]:
    return found.version, found.arm


def test_each_rule_wins_over_those_after_it() -> None:
    everything = a_table("v1.0.0", a_trial("v1.0.1", 100), a_test(("v1.0.2", "base"), (100.0, 0.0)))
    pinned, elsewhere = {"rl_model_version": "v1.0.3"}, {"wandb_model": "team/model"}
    assert seen(route(everything, settings(**pinned, **elsewhere), "v1.0.0", "a")) == ("v1.0.0", "named")
    assert seen(route(everything, settings(**pinned, **elsewhere), "pro", "a")) == ("v1.0.3", "pinned")
    found = route(everything, settings(**elsewhere), None, "a")
    assert (found.version, found.arm, found.model_name, found.upstream) == (None, "wandb_model", "team/model", "wandb")
    assert seen(route(everything, settings(), None, "a")) == ("v1.0.2", "ab")
    assert seen(route(replace(everything, test=None), settings(), None, "a")) == ("v1.0.1", "rollout")
    assert seen(route(a_table(), settings(), None, "a")) == ("v1.0.0", "deployed")
    assert seen(route(a_table(None), settings(), None, "a")) == (None, "base")
    assert seen(route(everything, settings(use_rl_model=False, **pinned), "v1.0.0", "a")) == (None, "base")


def test_production_is_off_unless_it_is_said() -> None:
    assert seen(route(a_table(), settings(node_env="production"), None, "a")) == (None, "base")
    assert seen(route(a_table(), settings(environment="production"), "latest", "a")) == (None, "base")
    assert seen(route(a_table(), settings(node_env="production", use_rl_model=True), None, "a")) == ("v1.0.0", "deployed")


def test_names_mean_a_version_the_newest_deployed_one_or_the_choice_of_the_registry() -> None:
    rolling = a_table("v1.0.0", a_trial("v1.0.1", 100))
    for name in ("v1.0.2", "babylon-agent-v1.0.2"):
        assert seen(route(rolling, settings(), name, "a")) == ("v1.0.2", "named")
    for name in ("babylon-agent", "latest"):
        assert seen(route(rolling, settings(), name, "a")) == ("v1.0.0", "named")
        assert seen(route(a_table(None), settings(), name, "a")) == (None, "base")
    for name in [name for name, meaning in ALIASES.items() if meaning == BY_REGISTRY] + [None, ""]:
        assert seen(route(rolling, settings(), name, "a")) == ("v1.0.1", "rollout")
    for name in ("base", DEFAULTS.base_model):
        assert seen(route(rolling, settings(), name, "a")) == (None, "base")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("gpt-4o", True), ("gpt-5", True), ("gpt-5-mini", True), ("gpt-5-nano", True), ("gpt-4.1-mini", True), ("gpt-4", True),
        ("gpt-3.5-turbo", True), ("gpt-4o-2024-08-06", True), ("chatgpt-4o-latest", True), ("o1", True), ("o3-mini", True),
        ("openai/gpt-5.4", True), ("gpt", False), ("o", False), ("o1x", False), ("o11ama", False), ("text-embedding-3-small", False),
        ("babylon-gpt-4o", False), ("claude-5", False), ("gpt-4o\n", False), ("gpt-4o v2", False),
    ],
)  # fmt: skip
def test_openais_names_are_the_choice_of_the_registry(name: str, known: bool) -> None:
    assert alias_meaning(name) == (BY_REGISTRY if known else None)
    if known:
        assert seen(route(a_table(), settings(), name, "a")) == ("v1.0.0", "deployed")
    else:
        with pytest.raises(ModelUnavailable, match="There is no model"):
            route(a_table(), settings(), name, "a")
    named = RoutingTable({name: a_version(name)})
    assert seen(route(named, settings(), name, "a")) == (name, "named")


def test_a_version_that_cannot_be_asked_is_refused_and_never_replaced() -> None:
    table = a_table()
    for status, pruned, words in (("failed", False, "is failed"), ("archived", True, "was pruned")):
        broken = RoutingTable({"v1.0.0": replace(a_version("v1.0.0", status), pruned=pruned)})
        with pytest.raises(ModelUnavailable, match=words):
            route(broken, settings(), "v1.0.0", "a")
    with pytest.raises(ModelUnavailable, match="no model grok-9"):
        route(table, settings(), "grok-9", "a")
    with pytest.raises(ModelUnavailable, match="no version v9.9.9"):
        route(table, settings(rl_model_version="v9.9.9"), None, "a")


def test_versions_of_a_service_are_asked_there_by_their_own_name() -> None:
    elsewhere = RoutedVersion("v1.0.0", "deployed", "wandb", "team/agent:step3", "/checkpoints/v1.0.0", False)
    found = route(RoutingTable({"v1.0.0": elsewhere}, "v1.0.0"), settings(), None, "a")
    assert (found.upstream, found.model_name) == ("wandb", "team/agent:step3")


def test_test_agents_alone_get_a_version_on_test() -> None:
    table = a_table("v1.0.0", a_trial("v1.0.1", 0, ("agent-1", "agent-2")))
    treated = {agent for agent in AGENTS if route(table, settings(), None, agent).version == "v1.0.1"}
    assert treated == {"agent-1", "agent-2"}
    assert route(table, settings(), None, None, "agent-1").version == "v1.0.0"  # a key is no agent


def test_a_paused_rollout_keeps_its_agents() -> None:
    rolling, paused = (a_table("v1.0.0", a_trial("v1.0.1", 30, state=state)) for state in ("rolling", "paused"))
    assert all(route(rolling, settings(), None, agent) == route(paused, settings(), None, agent) for agent in AGENTS)


@given(agents=st.lists(ids, min_size=1, max_size=30), low=percentages, high=percentages, bound=percentages)
def test_raising_a_share_only_adds_agents(agents: list[str], low: float, high: float, bound: float) -> None:
    low, high = sorted((low, high))
    chosen = settings(rl_rollout_percentage=bound)
    before, after = (
        {agent for agent in agents if route(a_table("v1.0.0", a_trial("v1.0.1", share)), chosen, None, agent).version == "v1.0.1"}
        for share in (low, high)
    )
    assert before <= after
    narrow, wide = (
        {agent for agent in agents if route(a_table(), settings(rl_rollout_percentage=share), None, agent).version is not None}
        for share in (low, high)
    )
    assert narrow <= wide


@given(agent=ids, share=percentages, bound=percentages)
def test_the_share_of_a_rollout_is_the_smaller_of_the_two(agent: str, share: float, bound: float) -> None:
    found = route(a_table("v1.0.0", a_trial("v1.0.1", share)), settings(rl_rollout_percentage=bound), None, agent)
    expected = "v1.0.1" if place(agent) < min(share, bound) else "v1.0.0" if place(agent) < bound else None
    assert found.version == expected


@given(agent=ids, key=ids, share=percentages)
def test_the_agent_decides_its_place_and_without_one_the_key(agent: str, key: str, share: float) -> None:
    table = a_table("v1.0.0", a_trial("v1.0.1", share))
    with_both, alone = (route(table, settings(), None, agent, hash_of_key) for hash_of_key in (key, None))
    assert with_both == alone
    assert route(table, settings(), None, None, key).version == route(table, settings(), None, key).version


@given(st.lists(ids, min_size=1, max_size=30), st.lists(st.floats(1, 40), min_size=2, max_size=4))
def test_an_agent_is_in_one_arm_of_a_test_or_follows_the_rollouts(agents: list[str], weights: list[float]) -> None:
    shares = tuple(weight / max(1.0, sum(weights) / 100) for weight in weights)
    arms = ("v1.0.0", "v1.0.1", "v1.0.2", "base")[: len(shares)]
    test = a_test(arms, shares)
    for agent in agents:
        found, arm = route(a_table("v1.0.3", None, test), settings(), None, agent), arm_of(test, agent)
        if arm is None:
            assert seen(found) == ("v1.0.3", "deployed")
        else:
            assert found.arm == "ab" and (found.version or "base") == arms[arm] and found.share == shares[arm]


def test_places_are_spread_evenly_and_scales_are_independent() -> None:
    places = [place(f"agent-{number}") for number in range(10_000)]
    for percent in (1, 10, 25, 50, 90):
        below = sum(one < percent for one in places) / 100
        assert abs(below - percent) < 4 * (percent * (100 - percent) / 10_000) ** 0.5
    both = sum(place(f"agent-{number}") < 50 and place(f"agent-{number}", "other") < 50 for number in range(10_000))
    assert abs(both - 2500) < 200
    assert min(places) >= 0 and max(places) < 100
