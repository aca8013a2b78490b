"""Reliability report of a judge over a range of hours, from stored data only.

No judge is asked and nothing is written. The report measures agreement between orders, bias by place and length, agreement with a
second judge and with the market, and cost.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from babylon_rl.judge.agreement import kendall_tau
from babylon_rl.judge.groups import NO_SPREAD
from babylon_rl.judge.reliability_groups import MOST_POINTS, Groups
from babylon_rl.judge.reliability_measures import Estimate, length_correlation, length_points, mean_estimate, slope_estimate
from babylon_rl.judge.reliability_ranks import spearman
from babylon_rl.judge.subgroups import merge
from babylon_rl.settings import Settings
from babylon_rl.store import judge_report as store
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_report import JudgeAgreement, judge_agreements
from babylon_rl.windows import window_end, window_of

HOURS_AT_ONCE = 500
DEFAULT_HOURS = 168


@dataclass(frozen=True)
class AuditAgreement:
    """Agreement of a second judge with the judge: rank correlations, mean absolute difference."""

    judge: str
    spearman: Estimate | None
    kendall_tau: Estimate | None
    difference: Estimate | None
    groups: int


@dataclass(frozen=True)
class Reliability:
    """The report. Scores are 0..1; an estimate is None where the data does not suffice.

    ``self_difference`` is the mean absolute difference between two orders, ``self_tau`` Kendall's tau between them; ``position_slope`` is
    the gain of a request's last place over its first (negative: a loss), and ``position_left`` the standard deviation that this
    leaves in the mean over the orders; ``length_correlation`` is the partial correlation of score and shown length given P&L, and
    ``length_points`` the gain of a group's longest transcript over its shortest at equal P&L.
    """

    first: str
    end: str
    judge: str
    versions: Sequence[str]
    judges: Mapping[str, int]
    groups: int
    stale: int
    quarantined: int
    pending: int
    without_spread: int
    orders: float | None
    further_orders: int
    self_difference: Estimate | None
    self_tau: Estimate | None
    position_slope: Estimate | None
    position_left: float | None
    length_correlation: Estimate | None
    length_points: Estimate | None
    pnl_correlation: Estimate | None
    audit: AuditAgreement | None
    paid: Sequence[store.Paid]
    in_use: int
    days: Sequence[store.PaidDay]
    market: JudgeAgreement | None
    seen: Groups = field(repr=False)

    @property
    def quarantined_share(self) -> float | None:
        """Share of quarantined groups among all judged or quarantined; None without any."""
        total = self.groups + self.quarantined
        return self.quarantined / total if total else None

    @property
    def usd(self) -> float | None:
        """Dollars of all judges' answers about the hours; None if one price is unknown."""
        return None if any(one.without_usd for one in self.paid) else math.fsum(one.usd for one in self.paid)


def default_range(connection: Connection) -> tuple[str, str] | None:
    """The last DEFAULT_HOURS hours up to the newest judged one, as (from, to).

    None where no hour is judged.
    """
    newest = store.newest_judged(connection)
    if newest is None:
        return None
    end = window_end(newest)
    return window_of(end - timedelta(hours=DEFAULT_HOURS)), window_of(end)


def judge_of(judges: Mapping[str, int], settings: Settings) -> str:
    """Judge of a report: JUDGE_MODEL, or the one with most scores if that has none."""
    return settings.judge_model if settings.judge_model in judges or not judges else next(iter(judges))


def reliability(connection: Connection, first: str, end: str, settings: Settings, *, judge: str | None = None) -> Reliability:
    """Build the report on the hours from ``first`` to before ``end``.

    ``judge`` defaults to that of ``judge_of``.
    """
    judges = store.judges_of(connection, first, end)
    about = judge or judge_of(judges, settings)
    hours = store.judged_hours(connection, about, first, end)
    seen = Groups(every=max(1, math.ceil(sum(hour.group_size for hour in hours) / MOST_POINTS)))
    # in chunks, each reduced to sums at once, so that a long range takes little memory
    for start in range(0, len(hours), HOURS_AT_ONCE):
        some = hours[start : start + HOURS_AT_ONCE]
        episodes = store.judged_episodes(connection, [hour.window for hour in some])
        for hour in some:
            seen.add(hour, episodes.get(hour.window, []))
    quarantined, pending = store.without_scores(connection, about, first, end)
    slope = slope_estimate(seen.slopes)
    # hours with more orders than the least are those that disagreed at first
    fewest = min((hour.orders for hour in hours), default=0)
    return Reliability(
        first, end, about,
        versions=sorted({hour.judge_version for hour in hours}),
        judges=judges,
        groups=len(hours),
        stale=sum(hour.stale for hour in hours),
        quarantined=quarantined,
        pending=pending,
        without_spread=sum(hour.spread < NO_SPREAD for hour in hours),
        orders=sum(hour.orders for hour in hours) / len(hours) if hours and fewest else None,
        further_orders=sum(hour.orders > fewest for hour in hours),
        self_difference=mean_estimate([point.disagreement for point in seen.hours if point.disagreement is not None]),
        self_tau=mean_estimate([point.tau for point in seen.hours if point.tau is not None]),
        position_slope=slope,
        position_left=None if slope is None else abs(slope.value) * seen.mean_place_deviation,
        length_correlation=length_correlation(seen.lengths),
        length_points=length_points(seen.lengths),
        pnl_correlation=mean_estimate([point.pnl_correlation for point in seen.hours if point.pnl_correlation is not None]),
        audit=_audit(connection, about, [hour.window for hour in hours], settings.judge_audit_model),
        paid=store.paid(connection, first, end),
        in_use=store.answers_in_use(connection, about, first, end),
        days=store.paid_days(connection, first, end),
        market=_market(connection, about),
        seen=seen,
    )  # fmt: skip


def _market(connection: Connection, judge: str) -> JudgeAgreement | None:
    """Stored agreement of the judge with the market, None without one."""
    return next((found for found in judge_agreements(connection) if found.judge == judge), None)


def _audit(connection: Connection, judge: str, windows: Sequence[str], audit_model: str | None) -> AuditAgreement | None:
    """Agreement with the second judge on the hours that both scored.

    None without a second judge.
    """
    if audit_model is None or audit_model == judge:
        return None
    answered = store.answered_windows(connection, audit_model, windows)
    ranks, taus, differences = list[float](), list[float](), list[float]()
    for start in range(0, len(answered), HOURS_AT_ONCE):
        some = answered[start : start + HOURS_AT_ONCE]
        theirs = store.answered_scores(connection, audit_model, some)
        for window, episodes in store.judged_episodes(connection, some).items():
            ours = {episode.agent_id: episode.score for episode in episodes}
            second = audited_scores(theirs[window], list(ours))
            # the group has changed since, or the audit covers only a part of it
            if second is None:
                continue
            agents = sorted(ours)
            differences.append(math.fsum(abs(ours[agent] - second[agent]) for agent in agents) / len(agents))
            rank, tau = spearman([ours[agent] for agent in agents], [second[agent] for agent in agents]), kendall_tau(ours, second)
            ranks += [] if rank is None else [rank]
            taus += [] if tau is None else [tau]
    return AuditAgreement(audit_model, mean_estimate(ranks), mean_estimate(taus), mean_estimate(differences), len(differences))


def audited_scores(orders: Mapping[int, Sequence[Mapping[str, float]]], agents: Sequence[str]) -> dict[str, float] | None:
    """Mean scores of a second judge over the orders that cover exactly ``agents``.

    None where no order does. ``orders`` has the parts of a group in each order, agent id -> score: an order of which a part is missing
    does not count.
    """
    merged = []
    for parts in orders.values():
        covered = {agent for part in parts for agent in part}
        # parts overlap in their anchors; without a common agent they cannot be merged
        if covered == set(agents) and set.intersection(*(set(part) for part in parts)):
            merged.append(merge(parts))
    if not merged:
        return None
    return {agent: math.fsum(order[agent] for order in merged) / len(merged) for agent in agents}
