"""Reliability report of a judge over a range of hours, from stored data only.

No judge is asked and nothing is written. The report measures agreement between orders, bias by place and length, agreement with a
second judge and with the market, and cost. ``ReliabilityReport`` holds the numbers, ``report_document`` gives them as JSON, and
``report_rows`` as the rows of every table (terminal, Markdown, Dagster). Every number has its interval; missing values stay visible as null
or "unknown".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import fmean
from typing import Any

from babylon_rl.judge.consensus import kendall_tau, merge, spearman
from babylon_rl.judge.reliability.measures import (
    MOST_POINTS,
    Estimate,
    GroupSums,
    bin_estimates,
    length_correlation,
    length_points,
    mean_estimate,
    slope_estimate,
)
from babylon_rl.settings import HEURISTIC, JudgeSettings
from babylon_rl.store import judge_report as store
from babylon_rl.store import scores
from babylon_rl.store.columns import document_of, in_parts
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_report import JudgeAgreement, JudgeCost, judge_agreements
from babylon_rl.windows import window_end, window_of

HOURS_AT_ONCE = 24  # whose scores are in memory together
UNKNOWN = "unknown"


@dataclass(frozen=True)
class AuditAgreement:
    """Agreement of a second judge with the judge: rank correlations, mean absolute difference."""

    judge: str
    spearman: Estimate | None
    kendall_tau: Estimate | None
    difference: Estimate | None
    groups: int


@dataclass(frozen=True)
class ReliabilityReport:
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
    paid: Sequence[store.JudgeCost]
    in_use: int
    days: Sequence[store.JudgeCost]
    market: JudgeAgreement | None
    sums: GroupSums = field(repr=False)

    @property
    def quarantined_share(self) -> float | None:
        """Share of quarantined groups among all judged or quarantined; None without any."""
        total = self.groups + self.quarantined
        return self.quarantined / total if total else None

    @property
    def usd(self) -> float | None:
        """Dollars of all judges' answers about the hours; None if one price is unknown."""
        return None if any(bill.without_usd for bill in self.paid) else math.fsum(bill.usd for bill in self.paid)


def default_range(connection: Connection) -> tuple[str, str] | None:
    """The REPORT_DAYS days that end with the newest hour that was judged or set aside, as (from, to). None without one."""
    newest = store.newest_judged(connection)
    if newest is None:
        return None
    end = window_end(newest)
    return window_of(end - timedelta(days=store.REPORT_DAYS)), window_of(end)


def reliability_report(
    connection: Connection, first: str, end: str, settings: JudgeSettings, *, judge: str | None = None
) -> ReliabilityReport:
    """Build the report on the hours from ``first`` to before ``end``; ``judge`` defaults to JUDGE_MODEL, else to that of most scores."""
    judges = store.judges_of(connection, first, end)
    about = judge or (settings.judge_model if settings.judge_model in judges or not judges else next(iter(judges)))
    hours = store.judged_hours(connection, about, first, end)
    # every so many hours leave their episodes as points, about MOST_POINTS in all
    sums = GroupSums(every=max(1, math.ceil(sum(hour.group_size for hour in hours) / MOST_POINTS)))
    # in chunks, each reduced to sums at once, so that a long range takes little memory
    for some in in_parts([hour.window for hour in hours], HOURS_AT_ONCE):
        for verdicts in store.hour_verdicts(connection, some):
            sums.add(verdicts)
    quarantined, pending = store.without_scores(connection, about, first, end)
    slope = slope_estimate(sums.slopes)
    # hours with more orders than the least are those that disagreed at first
    fewest = min(sums.orders, default=0)
    return ReliabilityReport(
        first, end, about,
        versions=sorted(sums.versions),
        judges=judges,
        groups=len(hours),
        stale=sum(hour.stale for hour in hours),
        quarantined=quarantined,
        pending=pending,
        orders=fmean(sums.orders) if fewest else None,
        further_orders=sum(orders > fewest for orders in sums.orders),
        self_difference=mean_estimate(point.disagreement for point in sums.hours),
        self_tau=mean_estimate(point.tau for point in sums.hours),
        position_slope=slope,
        position_left=None if slope is None else abs(slope.value) * math.sqrt(fmean(sums.mean_places)),
        length_correlation=length_correlation(sums.lengths),
        length_points=length_points(sums.lengths),
        pnl_correlation=mean_estimate(point.pnl_correlation for point in sums.hours),
        audit=_audit(connection, about, [hour.window for hour in hours], settings.judge_audit_model),
        paid=store.paid(connection, store.BY_JUDGE, first, end),
        in_use=sum(hour.answers for hour in hours),
        days=store.paid(connection, store.BY_DAY, first, end),
        market=next((agreement for agreement in judge_agreements(connection) if agreement.judge == about), None),
        sums=sums,
    )  # fmt: skip


def _audit(connection: Connection, judge: str, windows: Sequence[str], audit_model: str | None) -> AuditAgreement | None:
    """Agreement with the second judge on the hours that both scored. None without a second judge."""
    if audit_model is None or audit_model == judge:
        return None
    answered = store.answered_windows(connection, audit_model, windows)
    ranks, taus, differences = list[float | None](), list[float | None](), list[float]()
    for some in in_parts(answered, HOURS_AT_ONCE):
        theirs = store.answered_scores(connection, audit_model, some)
        for window, group in scores.read(connection, some).items():
            ours = {score.agent_id: score.score for score in group.scores}
            second = audited_scores(theirs[window], list(ours))
            # the group has changed since, or the audit covers only a part of it
            if second is None:
                continue
            agents = sorted(ours)
            differences.append(math.fsum(abs(ours[agent] - second[agent]) for agent in agents) / len(agents))
            ranks.append(spearman([ours[agent] for agent in agents], [second[agent] for agent in agents]))
            taus.append(kendall_tau(ours, second))
    return AuditAgreement(audit_model, mean_estimate(ranks), mean_estimate(taus), mean_estimate(differences), len(differences))


def audited_scores(orders: Mapping[int, Sequence[Mapping[str, float]]], agents: Sequence[str]) -> dict[str, float] | None:
    """Mean scores of a second judge over the orders that cover exactly ``agents``; None where no order does.

    ``orders`` has the parts of a group in each order, agent id -> score: an order of which a part is missing
    does not count.
    """
    # parts overlap in their anchors; without a common agent they cannot be merged
    merged = [merge(parts) for parts in orders.values() if set().union(*parts) == set(agents) and set(parts[0]).intersection(*parts)]
    return {agent: math.fsum(order[agent] for order in merged) / len(merged) for agent in agents} if merged else None


def report_document(report: ReliabilityReport) -> dict[str, Any]:
    """JSON document of ``judge report --json``; unknown values, and unknown prices, are null."""
    places = [{"place": place, **estimate.document()} for place, estimate in bin_estimates(report.sums.by_place)]
    return {
        "from": report.first,
        "to": report.end,
        "judge": report.judge,
        "judgeVersions": list(report.versions),
        "judges": dict(report.judges),
        "groups": report.groups,
        "episodes": report.sums.episodes,
        "flaggedEpisodes": report.sums.flagged,
        "flaggedGain": _estimate(mean_estimate(report.sums.gains), "meanGain", maskedGroups=report.sums.masked),
        "wordsMove": _estimate(mean_estimate(report.sums.words), "meanAbsoluteGain", followed=report.sums.followed),
        "stale": report.stale,
        "quarantined": report.quarantined,
        "quarantinedShare": report.quarantined_share,
        "pending": report.pending,
        "withoutSpread": report.sums.without_spread,
        "selfAgreement": _self_agreement(report),
        "positionBias": _estimate(report.position_slope, "slope", leftInScores=report.position_left, places=places),
        "lengthBias": _estimate(report.length_correlation, "partialCorrelation", points=_estimate(report.length_points)),
        "auditAgreement": _audit_document(report),
        "pnlCorrelation": _estimate(report.pnl_correlation, "spearman", withoutRanks=report.sums.without_pnl_ranks),
        "marketAgreement": None if report.market is None else report.market.document,
        "tokens": _tokens(report.paid),
        "usd": report.usd,
        "cost": _cost(report),
    }


def _estimate(estimate: Estimate | None, name: str = "mean", **others: Any) -> dict[str, Any] | None:
    return None if estimate is None else estimate.document(name, **others)


def _self_agreement(report: ReliabilityReport) -> dict[str, Any] | None:
    if report.self_difference is None:
        return None
    return {
        "meanAbsoluteDifference": _estimate(report.self_difference),
        "kendallTau": _estimate(report.self_tau),
        "orders": report.orders,
        "furtherOrders": report.further_orders,
    }


def _audit_document(report: ReliabilityReport) -> dict[str, Any] | None:
    audit = report.audit
    if audit is None:
        return None
    estimates = {"spearman": audit.spearman, "kendallTau": audit.kendall_tau, "meanAbsoluteDifference": audit.difference}
    return {"judge": audit.judge, "groups": audit.groups, **{name: _estimate(estimate) for name, estimate in estimates.items()}}


def _tokens(paid: Sequence[JudgeCost]) -> dict[str, int]:
    return {
        "prompt": sum(bill.prompt_tokens for bill in paid),
        "completion": sum(bill.completion_tokens for bill in paid),
        "answersWithoutCount": sum(bill.without_tokens for bill in paid),
    }


def _cost(report: ReliabilityReport) -> dict[str, Any]:
    by_judge = [
        {
            "judge": bill.of,
            **document_of(bill, "answers", "unusable", "retries", "prompt_tokens", "completion_tokens"),
            "usd": None if bill.without_usd else bill.usd,
            "answersWithoutPrice": bill.without_usd,
            "latencySeconds": {"median": bill.latency_s, "p95": bill.slow_latency_s},
        }
        for bill in report.paid
    ]
    by_day = [
        {"day": day.of, **document_of(day, "hours", "answers", "prompt_tokens", "completion_tokens")}
        | {"usd": None if day.without_usd else day.usd}
        for day in report.days
    ]
    return {"answersInUse": report.in_use, "byJudge": by_judge, "byDay": by_day}


def report_rows(report: ReliabilityReport) -> list[tuple[str, str, str]]:
    """Rows of the report's table: measure, number with its interval, meaning."""
    unranked = f"; {report.sums.without_pnl_ranks} hours do not rank" if report.sums.without_pnl_ranks else ""
    left = f"of the last place over the first; in the mean over the orders {report.position_left or 0.0:.3f} is left"
    correlation = _said(report.length_correlation, 2, sign=True)
    longest = f"of the longest transcript over the shortest, at equal P&L; correlation {correlation}"
    lines = [
        ("groups", *_groups(report)),
        ("orders differ by", _said(report.self_difference, 3), _orders_words(report)),
        ("Kendall's tau between orders", _said(report.self_tau, 2, sign=True), "1: every order ranks alike"),
        ("position bias", _said(report.position_slope, 3, sign=True), "no places recorded" if report.position_slope is None else left),
        ("length bias", _said(report.length_points, 3, sign=True), longest),
        ("with the hour's P&L", _said(report.pnl_correlation, 2, sign=True), f"Spearman within an hour{unranked}"),
    ]
    return lines + _gain_lines(report) + _audit_lines(report) + _market_lines(report) + [("cost", *_cost_words(report))]


def _groups(report: ReliabilityReport) -> tuple[str, str]:
    parts = [f"{report.sums.episodes} episodes"]
    # the heuristic has an answer to every hour: nothing of its own waits
    share = report.quarantined_share
    if share is not None and report.judge != HEURISTIC:
        parts += [f"{report.quarantined} more in quarantine ({share:.1%})", f"{report.pending} wait"]
    for count, words in ((report.stale, "stale"), (report.sums.without_spread, "with one score for all")):
        parts += [f"{count} {words}"] if count else []
    if report.sums.flagged:
        parts.append(f"{report.sums.flagged} episodes speak to the judge")
    return str(report.groups), ", ".join(parts)


def _orders_words(report: ReliabilityReport) -> str:
    if report.orders is None or report.self_difference is None:
        return "the heuristic has one opinion" if report.judge == HEURISTIC else "one order each: nothing to compare"
    more = f"; {report.further_orders} groups needed more than others" if report.further_orders else ""
    return f"of 0 to 1, mean of any two of {report.orders:.3g} orders{more}"


def _gain_lines(report: ReliabilityReport) -> list[tuple[str, str, str]]:
    gain, words, lines = mean_estimate(report.sums.gains), mean_estimate(report.sums.words), []
    if gain is not None:
        meaning = f"gain of flagged episodes in {gain.groups} hours; in {report.sums.masked} the scores with flagged sentences masked count"
        lines.append(("text to the judge", _said(gain, 3, sign=True), meaning))
    if words is not None:
        meaning = f"by which an agent's words move its score, in {words.groups} hours; {report.sums.followed} scores follow words"
        lines.append(("words of the agents", _said(words, 3), meaning))
    return lines


def _audit_lines(report: ReliabilityReport) -> list[tuple[str, str, str]]:
    audit = report.audit
    if audit is None:
        return [("second judge", "-", "set JUDGE_AUDIT_MODEL to ask one about a sample")]
    tau, difference = _said(audit.kendall_tau, 2, sign=True), _said(audit.difference, 3)
    words = f"Spearman with {audit.judge} in {audit.groups} groups; tau {tau}, scores differ by {difference}"
    return [("second judge", _said(audit.spearman, 2, sign=True), words)]


def _market_lines(report: ReliabilityReport) -> list[tuple[str, str, str]]:
    market = report.market
    if market is None:
        return [("with expected P&L", "-", "`babylon-rl judge calibrate` measures it on agents of known skill")]
    mean, low, high = market.expected
    return [("with expected P&L", f"{mean:+.2f} ({low:+.2f} to {high:+.2f})", f"in {market.hours} calibration hours")]


def _cost_words(report: ReliabilityReport) -> tuple[str, str]:
    if not report.paid:
        return "$0", "no language model was asked"
    tokens, answers = _tokens(report.paid), sum(bill.answers for bill in report.paid)
    known = math.fsum(bill.usd for bill in report.paid)
    price = f"${report.usd:.4f}" if report.usd is not None else (f"${known:.4f} and {UNKNOWN}" if known else UNKNOWN)
    # latencies of several judges have no common median: that of the busiest stands for all
    latency = max(report.paid, key=lambda bill: bill.answers).latency_s
    words = (
        f"{answers} answers ({sum(bill.unusable for bill in report.paid)} unusable), {tokens['prompt']} tokens in, "
        f"{tokens['completion']} out, median {latency:.2f} s; {report.in_use} answers are in use and free to use again"
    )
    return price, words


def _said(estimate: Estimate | None, digits: int, *, sign: bool = False) -> str:
    if estimate is None:
        return "-"
    plus = "+" if sign else ""
    value = f"{estimate.value:{plus}.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({estimate.low:{plus}.{digits}f} to {estimate.high:{plus}.{digits}f})"
