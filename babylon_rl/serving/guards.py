"""Guards of a rollout: verdicts on the version on trial from live data.

Every interval holds at every look (statistics/live.py), so that a guard may be asked as often as one likes. Calls and decisions are counted
as independent trials, though those of an agent are alike: the guards of shares may therefore stop a rollout too early. P&L takes agents
as the units. The trial's agents are compared with those of the deployed version in the same time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from babylon_rl.evaluation.gate import COLLAPSE, FAIL, INCONCLUSIVE, PASS
from babylon_rl.evaluation.statistics.live import live_comparison, live_share
from babylon_rl.store.live_usage import AgentHour, CallCounts

PNL = "P&L"
CONFIDENCE = 0.975  # of each of two intervals, so that their difference holds with 95 %


@dataclass(frozen=True)
class Guard:
    """One guard: ``verdict`` is pass, fail or inconclusive."""

    name: str
    verdict: str
    words: str


@dataclass(frozen=True)
class Limits:
    """Limits of the guards: shares above the control's, dollars below it.

    Dollars are an agent-hour's; the effect is the one that P&L is tuned for.
    """

    share: float
    loss_usd: float
    expected_effect_usd: float


def judge_calls(ours: CallCounts, theirs: CallCounts, limits: Limits) -> list[Guard]:
    """Guards of errors and latency, from calls through the gateway."""
    return [
        _share("errors", (ours.failed, ours.calls), (theirs.failed, theirs.calls), limits),
        _share("latency", (ours.slow, ours.calls), (theirs.slow, theirs.calls), limits),
    ]


def judge_hours(hours: Sequence[AgentHour], version: str, control: str | None, limits: Limits) -> list[Guard]:
    """Guards of refused orders, action collapse and P&L, from the hours of agents."""
    ours, theirs = ([hour for hour in hours if hour.version == name] for name in (version, control))
    refused, control_refused = ((sum(h.refused for h in arm), sum(h.trades for h in arm)) for arm in (ours, theirs))
    return [
        _share("refused orders", refused, control_refused, limits),
        _collapse({"hold": sum(h.holds for h in ours), "up": sum(h.up for h in ours), "down": sum(h.down for h in ours)}),
        _pnl(ours, theirs, limits),
    ]


def _share(name: str, ours: tuple[int, int], theirs: tuple[int, int], limits: Limits) -> Guard:
    mine, yours = (live_share(*counts, confidence=CONFIDENCE) for counts in (ours, theirs))
    # Without a control the share is held against none at all.
    low, high = (mine.low - yours.high, mine.high - yours.low) if theirs[1] else (mine.low, mine.high)
    words = f"{ours[0]} of {ours[1]}, control {theirs[0]} of {theirs[1]}"
    if ours[1] and low > limits.share:
        return Guard(name, FAIL, f"{words}: shown to be more than {limits.share:.0%} above")
    if ours[1] and high <= limits.share:
        return Guard(name, PASS, f"{words}: at most {limits.share:.0%} above")
    return Guard(name, INCONCLUSIVE, f"{words}: too early to say")


def _collapse(actions: Mapping[str, int]) -> Guard:
    total, name = sum(actions.values()), max(actions, key=lambda action: actions[action])
    share, words = live_share(actions[name], total, null=COLLAPSE), f"{name} in {actions[name]} of {total} decisions"
    if total and share.low > COLLAPSE:
        return Guard("action collapse", FAIL, f"{words}: one action alone")
    if total and share.high < COLLAPSE:
        return Guard("action collapse", PASS, words)
    return Guard("action collapse", INCONCLUSIVE, f"{words}: too early to say")


def _pnl(ours: Sequence[AgentHour], theirs: Sequence[AgentHour], limits: Limits) -> Guard:
    arms = [_by_agent(arm) for arm in (ours, theirs)]
    if not all(arms):
        return Guard(PNL, INCONCLUSIVE, f"{len(arms[0])} agents against {len(arms[1])}: too early to say")
    found = live_comparison(*arms, expected_effect=limits.expected_effect_usd)
    words = f"{found.mean:+.1f} dollars an agent-hour ({found.low:+.1f} to {found.high:+.1f}), {len(arms[0])} agents against {len(arms[1])}"
    # Fails on any loss that is shown, and passes once a loss of ``loss_usd`` is excluded.
    if found.high < 0:
        return Guard(PNL, FAIL, f"{words}: shown to earn less")
    if found.low > -limits.loss_usd:
        return Guard(PNL, PASS, words)
    return Guard(PNL, INCONCLUSIVE, f"{words}: a loss of {limits.loss_usd:g} is not excluded")


def _by_agent(hours: Sequence[AgentHour]) -> list[list[float]]:
    by_agent: dict[str, list[float]] = {}
    for hour in hours:
        by_agent.setdefault(hour.agent_id, []).append(hour.pnl_usd)
    return list(by_agent.values())
