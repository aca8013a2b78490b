"""A/B tests of versions on live agents, compared hour by hour.

Each agent stays in one arm while the test runs. An agent's hour counts as its P&L less the mean of all arms in the same hour: the arms
trade the same hours, so what the market gave to all of them falls out. Agents are the units (statistics/live.py), and every interval holds
at every look. Left out: an agent's hours with several versions, and hours in which an arm has nobody.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from babylon_rl.errors import ReleaseRefused, UsageError
from babylon_rl.evaluation.statistics.intervals import CONFIDENCE, mean_interval
from babylon_rl.evaluation.statistics.live import LiveInterval, SampleRatio, live_comparison, live_sample_ratio
from babylon_rl.serving.recorded_privacy import agent_hash, why_agents_unknown
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.live_usage import AgentHour, read_agent_hours
from babylon_rl.store.registry import read_models
from babylon_rl.store.releases import BASE, RELEASES_LOCK, ABTest, ReleaseAuthor, assigned_agents, end_test, insert_test, read_tests
from babylon_rl.windows import window_of

EXPECTED_USD = 50.0  # P&L difference an agent-hour at which comparisons are sharpest
SPILLOVER = (
    "All arms trade in the same markets and move each other's prices: what one arm earns another may have lost, so the difference between "
    "two arms is not what replacing one by the other for all agents would bring."
)


@dataclass(frozen=True)
class Arm:
    """One arm: P&L in dollars by agent and hour; ``paired`` less the mean of all arms."""

    name: str
    share: float
    hours: Mapping[str, Sequence[float]]
    paired: Mapping[str, Sequence[float]]
    windows: int

    @property
    def document(self) -> dict[str, Any]:
        """This arm as a JSON-ready dict; the ``interval`` of its P&L an agent-hour is for one look."""
        values = [value for own in self.hours.values() for value in own]
        agents = [agent for agent, own in self.hours.items() for _ in own]
        pnl = mean_interval(values, clusters=agents) if values else None
        interval = None if pnl is None else [_finite(pnl.low), _finite(pnl.high)]
        document = {"version": self.name, "share": self.share, "agents": len(self.hours), "windows": self.windows}
        return document | {"pnl": None if pnl is None else round(pnl.mean, 4), "interval": interval}


@dataclass(frozen=True)
class ABReport:
    """Report of a test: arms, differences to the first, sample ratio, verdict."""

    test: ABTest
    arms: Sequence[Arm]
    differences: Mapping[str, LiveInterval]
    sample_ratio: SampleRatio
    verdict: str

    @property
    def document(self) -> dict[str, Any]:
        """The report as a JSON-ready dict; ``difference`` is that of the second arm."""
        found = {
            name: {"mean": round(one.mean, 4), "low": _finite(one.low), "high": _finite(one.high), "p": one.p, "agents": one.count}
            for name, one in self.differences.items()
        }
        ratio = self.sample_ratio
        return {
            "name": self.test.name, "state": self.test.state, "startedAt": self.test.started_at.isoformat() + "Z",
            "arms": [arm.document for arm in self.arms], "difference": next(iter(found.values()), None), "differences": found,
            "sampleRatio": {"counts": list(ratio.counts), "expected": list(ratio.expected), "p": ratio.p, "mismatch": ratio.mismatch},
            "spillover": SPILLOVER, "verdict": self.verdict,
        }  # fmt: skip


def start(
    connection: Connection, name: str, arms: Sequence[str], shares: Sequence[float], expected_effect_usd: float, author: ReleaseAuthor
) -> None:
    """Start a test of versions (or base) with their percent of all agents.

    Raises:
        UsageError: the arms or shares make no sense.
        ReleaseRefused: a version cannot be asked, or another test runs.
    """
    if len(arms) < 2 or len(arms) != len(set(arms)) or len(arms) != len(shares):
        raise UsageError("Give two or more different versions and a share for each: --versions v1.0.0,v1.0.1 --shares 50,50.")
    # In this form NaN is refused, too.
    if not (all(share > 0 for share in shares) and sum(shares) <= 100 and 0 < expected_effect_usd < math.inf):
        raise UsageError("Shares are percents above 0 whose sum is at most 100, and the expected effect is above 0.")
    with own_transaction(connection):
        connection.take_lock(RELEASES_LOCK)
        models, tests = {model.version: model for model in read_models(connection)}, read_tests(connection)
        for arm in arms:
            model = models.get(arm)
            if arm != BASE and (model is None or not model.can_be_asked):
                raise ReleaseRefused(f"{arm} cannot be asked: it is {'not registered' if model is None else model.shown_status}.")
        running = next((test.name for test in tests if test.state == "running"), None)
        if running is not None:
            raise ReleaseRefused(f"The A/B test {running} runs, and only one does at a time: `babylon-rl ab stop {running}` ends it.")
        if any(test.name == name for test in tests):
            raise ReleaseRefused(f"There has been an A/B test {name}: choose another name, which also assigns agents anew.")
        insert_test(connection, name, arms, shares, expected_effect_usd, author)


def stop(connection: Connection, name: str, author: ReleaseAuthor) -> None:
    """Stop a running test; its agents follow the rollouts again. Raises ReleaseRefused: it does not run."""
    with own_transaction(connection):
        connection.take_lock(RELEASES_LOCK)
        if not end_test(connection, name, author):
            raise ReleaseRefused(f"There is no running A/B test {name}.")


def report(connection: Connection, name: str, settings: Settings) -> ABReport:
    """Compare the arms of a test by all hours that have been read. Raises ReleaseRefused: there is no such test."""
    test = next((test for test in read_tests(connection) if test.name == name), None)
    if test is None:
        raise ReleaseRefused(f"There is no A/B test {name}; `babylon-rl ab status` lists them.")
    assigned = assigned_agents(connection, test.started_at, test.stopped_at)
    hours = read_agent_hours(connection, test.started_at, agent_hash(settings))
    if test.stopped_at is not None:
        # Agents followed the rollouts for the rest of the hour in which it was stopped.
        hours = [hour for hour in hours if hour.window < window_of(test.stopped_at)]
    arms = _arms(test, hours)
    counts = [assigned.get(None if arm == BASE else arm, 0) for arm in test.arms]
    ratio, found = live_sample_ratio(counts, test.shares), differences(test, arms)
    return ABReport(test, arms, found, ratio, _verdict(test, found, ratio, why_agents_unknown(settings)))


def differences(test: ABTest, arms: Sequence[Arm]) -> dict[str, LiveInterval]:
    """Differences to the first arm in dollars an agent-hour; several share the 95 % (Bonferroni)."""
    first, *others = arms
    confidence = 1 - (1 - CONFIDENCE) / len(others)
    return {
        arm.name: live_comparison(
            list(arm.paired.values()), list(first.paired.values()), expected_effect=test.expected_effect, confidence=confidence
        )
        for arm in others
        if arm.paired and first.paired
    }


def course(report: ABReport) -> dict[str, list[float]]:
    """The cumulative mean P&L an agent-hour of each arm, hour after hour, for a plot."""
    lines = {}
    for arm in report.arms:
        longest = max((len(own) for own in arm.hours.values()), default=0)
        totals = [sum(sum(own[:count]) for own in arm.hours.values()) for count in range(1, longest + 1)]
        # An agent with fewer hours stays in the mean with those that it has.
        played = [sum(min(count, len(own)) for own in arm.hours.values()) for count in range(1, longest + 1)]
        lines[arm.name] = [total / number for total, number in zip(totals, played, strict=True)]
    return lines


def _arms(test: ABTest, hours: Sequence[AgentHour]) -> list[Arm]:
    by_window: dict[str, dict[str, list[AgentHour]]] = {}
    for hour in hours:
        by_window.setdefault(hour.window, {}).setdefault(hour.version or BASE, []).append(hour)
    # An hour without some arm has no mean of all arms, from which differences are taken.
    common = {window: arms for window, arms in by_window.items() if all(arm in arms for arm in test.arms)}
    made = []
    # Each arm counts the same in the mean of its hour, whatever its share.
    levels = {
        window: sum(sum(hour.pnl_usd for hour in arms[arm]) / len(arms[arm]) for arm in test.arms) / len(test.arms)
        for window, arms in common.items()
    }
    for arm, share in zip(test.arms, test.shares, strict=True):
        own: dict[str, list[float]] = {}
        paired: dict[str, list[float]] = {}
        for window, arms in sorted(common.items()):
            for hour in arms[arm]:
                own.setdefault(hour.agent_id, []).append(hour.pnl_usd)
                paired.setdefault(hour.agent_id, []).append(hour.pnl_usd - levels[window])
        made.append(Arm(arm, share, own, paired, len(common)))
    return made


def _verdict(test: ABTest, found: Mapping[str, LiveInterval], ratio: SampleRatio, unknown: str | None) -> str:
    # First of all: if agents did not come as assigned, the arms differ by more than their versions.
    if ratio.mismatch:
        return f"Invalid: agents did not come as they were assigned ({ratio}). Nothing measured here can be believed."
    if not found:
        return "No hour yet in which every arm traded." if unknown is None else f"No hour of any arm: {unknown}."
    sentences = []
    for name, one in found.items():
        words = "is shown to earn more than" if one.low > 0 else "is shown to earn less than" if one.high < 0 else "is not told apart from"
        sentences.append(f"{name} {words} {test.arms[0]}: {one}.")
    return " ".join(sentences)


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
