"""The report as JSON and as sentences: every number with its interval.

Missing values stay visible as null or "unknown".
"""

import math
from collections.abc import Sequence
from typing import Any

from babylon_rl.judge.reliability import Reliability
from babylon_rl.judge.reliability_measures import Estimate, mean_estimate
from babylon_rl.settings import HEURISTIC
from babylon_rl.store.judge_report import Paid

UNKNOWN = "unknown"


def document_of(report: Reliability) -> dict[str, Any]:
    """JSON document of ``judge report --json``; unknown values, and unknown prices, are null."""
    return {
        "from": report.first,
        "to": report.end,
        "judge": report.judge,
        "judgeVersions": list(report.versions),
        "judges": dict(report.judges),
        "groups": report.groups,
        "episodes": report.seen.episodes,
        "flaggedEpisodes": report.seen.flagged,
        "flaggedGain": _flagged_gain(report),
        "stale": report.stale,
        "quarantined": report.quarantined,
        "quarantinedShare": report.quarantined_share,
        "pending": report.pending,
        "withoutSpread": report.without_spread,
        "selfAgreement": _self_agreement(report),
        "positionBias": _position_bias(report),
        "lengthBias": _length_bias(report),
        "auditAgreement": _audit(report),
        "pnlCorrelation": _estimate(report.pnl_correlation, "spearman", withoutRanks=report.seen.without_pnl_ranks),
        "marketAgreement": None if report.market is None else report.market.document,
        "tokens": _tokens(report.paid),
        "usd": report.usd,
        "cost": _cost(report),
    }


def _estimate(estimate: Estimate | None, name: str, **others: Any) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {name: estimate.value, "low": estimate.low, "high": estimate.high, "groups": estimate.groups, **others}


def _flagged_gain(report: Reliability) -> dict[str, Any] | None:
    gain = mean_estimate(report.seen.gains)
    return _estimate(gain, "meanGain", maskedGroups=report.seen.masked)


def _self_agreement(report: Reliability) -> dict[str, Any] | None:
    if report.self_difference is None:
        return None
    return {
        "meanAbsoluteDifference": report.self_difference.document,
        "kendallTau": None if report.self_tau is None else report.self_tau.document,
        "orders": report.orders,
        "furtherOrders": report.further_orders,
    }


def _position_bias(report: Reliability) -> dict[str, Any] | None:
    places = [{"place": place, **estimate.document} for place, estimate in report.seen.estimates(report.seen.by_place)]
    return _estimate(report.position_slope, "slope", leftInScores=report.position_left, places=places)


def _length_bias(report: Reliability) -> dict[str, Any] | None:
    points = None if report.length_points is None else report.length_points.document
    return _estimate(report.length_correlation, "partialCorrelation", points=points)


def _audit(report: Reliability) -> dict[str, Any] | None:
    audit = report.audit
    if audit is None:
        return None
    estimates = {"spearman": audit.spearman, "kendallTau": audit.kendall_tau, "meanAbsoluteDifference": audit.difference}
    written = {name: None if estimate is None else estimate.document for name, estimate in estimates.items()}
    return {"judge": audit.judge, "groups": audit.groups, **written}


def _tokens(paid: Sequence[Paid]) -> dict[str, int]:
    return {
        "prompt": sum(one.prompt_tokens for one in paid),
        "completion": sum(one.completion_tokens for one in paid),
        "answersWithoutCount": sum(one.without_tokens for one in paid),
    }


def _cost(report: Reliability) -> dict[str, Any]:
    by_judge = [
        {
            "judge": one.judge, "answers": one.answers, "unusable": one.unusable, "retries": one.retries,
            "promptTokens": one.prompt_tokens, "completionTokens": one.completion_tokens,
            "usd": None if one.without_usd else one.usd, "answersWithoutPrice": one.without_usd,
            "latencySeconds": {"median": one.latency_s, "p95": one.slow_latency_s},
        }
        for one in report.paid
    ]  # fmt: skip
    by_day = [
        {
            "day": day.day, "hours": day.hours, "answers": day.answers, "promptTokens": day.prompt_tokens,
            "completionTokens": day.completion_tokens, "usd": None if day.without_usd else day.usd,
        }
        for day in report.days
    ]  # fmt: skip
    return {"answersInUse": report.in_use, "byJudge": by_judge, "byDay": by_day}


def sentences(report: Reliability) -> list[tuple[str, str, str]]:
    """Lines of the report: what was measured, the number with its interval, the meaning."""
    lines = [
        ("groups", *_groups(report)),
        ("orders differ by", _said(report.self_difference, 3), _orders_words(report)),
        ("Kendall's tau between orders", _said(report.self_tau, 2, sign=True), "1: every order ranks alike"),
        ("position bias", _said(report.position_slope, 3, sign=True), _position_words(report)),
        ("length bias", _said(report.length_points, 3, sign=True), _length_words(report)),
        ("with the hour's P&L", _said(report.pnl_correlation, 2, sign=True), _pnl_words(report)),
    ]
    return lines + _gain_lines(report) + _audit_lines(report) + _market_lines(report) + [("cost", *_cost_words(report))]


def _groups(report: Reliability) -> tuple[str, str]:
    parts = [f"{report.seen.episodes} episodes"]
    share = report.quarantined_share
    if share is not None and report.judge != HEURISTIC:
        parts += [f"{report.quarantined} more in quarantine ({share:.1%})", f"{report.pending} wait"]
    for count, words in ((report.stale, "stale"), (report.without_spread, "with one score for all")):
        parts += [f"{count} {words}"] if count else []
    if report.seen.flagged:
        parts.append(f"{report.seen.flagged} episodes speak to the judge")
    return str(report.groups), ", ".join(parts)


def _orders_words(report: Reliability) -> str:
    if report.orders is None or report.self_difference is None:
        return "the heuristic has one opinion" if report.judge == HEURISTIC else "one order each: nothing to compare"
    more = f"; {report.further_orders} groups needed more than others" if report.further_orders else ""
    return f"of 0 to 1, mean of any two of {report.orders:.3g} orders{more}"


def _position_words(report: Reliability) -> str:
    if report.position_slope is None:
        return "no places recorded"
    return f"of the last place over the first; in the mean over the orders {report.position_left or 0.0:.3f} is left"


def _length_words(report: Reliability) -> str:
    correlation = _said(report.length_correlation, 2, sign=True)
    return f"of the longest transcript over the shortest, at equal P&L; correlation {correlation}"


def _pnl_words(report: Reliability) -> str:
    left_out = report.seen.without_pnl_ranks
    return "Spearman within an hour" + (f"; {left_out} hours do not rank" if left_out else "")


def _gain_lines(report: Reliability) -> list[tuple[str, str, str]]:
    gain = mean_estimate(report.seen.gains)
    if gain is None:
        return []
    words = f"gain of flagged episodes in {gain.groups} hours; in {report.seen.masked} the scores with flagged passages masked count"
    return [("text to the judge", _said(gain, 3, sign=True), words)]


def _audit_lines(report: Reliability) -> list[tuple[str, str, str]]:
    audit = report.audit
    if audit is None:
        return [("second judge", "-", "set JUDGE_AUDIT_MODEL to ask one about a sample")]
    tau, difference = _said(audit.kendall_tau, 2, sign=True), _said(audit.difference, 3)
    words = f"Spearman with {audit.judge} in {audit.groups} groups; tau {tau}, scores differ by {difference}"
    return [("second judge", _said(audit.spearman, 2, sign=True), words)]


def _market_lines(report: Reliability) -> list[tuple[str, str, str]]:
    market = report.market
    if market is None:
        return [("with expected P&L", "-", "`babylon-rl judge calibrate` measures it on agents of known skill")]
    mean, low, high = market.expected
    return [("with expected P&L", f"{mean:+.2f} ({low:+.2f} to {high:+.2f})", f"in {market.hours} calibration hours")]


def _cost_words(report: Reliability) -> tuple[str, str]:
    if not report.paid:
        return "$0", "no language model was asked"
    tokens, answers = _tokens(report.paid), sum(one.answers for one in report.paid)
    known = math.fsum(one.usd for one in report.paid)
    price = f"${report.usd:.4f}" if report.usd is not None else (f"${known:.4f} and {UNKNOWN}" if known else UNKNOWN)
    latency = max(report.paid, key=lambda one: one.answers).latency_s
    words = (
        f"{answers} answers ({sum(one.unusable for one in report.paid)} unusable), {tokens['prompt']} tokens in, "
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
