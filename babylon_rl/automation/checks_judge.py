"""Checks of the judge's report: hours in quarantine, and pay for length. Both are warnings."""

from datetime import timedelta

import dagster as dg

from babylon_rl.assets.judge_report import REPORT_DAYS
from babylon_rl.assets.metadata import described
from babylon_rl.assets.resources import Babylon
from babylon_rl.store.judge_report import judges_of, without_scores
from babylon_rl.windows import HOUR, window_of

MOST_QUARANTINED = 0.1
MOST_LENGTH_POINTS = 0.1
LENGTH_ADVICE = (
    "Agents would learn to write more, or less, instead of to trade: try another model (`babylon-rl judge calibrate` compares them), "
    "or a lower JUDGE_REQUEST_TOKENS, which shows long episodes shorter."
)
QUARANTINE_ADVICE = (
    "`babylon-rl judge quarantine` shows why: a model that cannot answer in JSON is the wrong one, what is refused as too long wants a "
    "lower JUDGE_REQUEST_TOKENS; `babylon-rl judge retry --all` asks again."
)


@dg.asset_check(
    asset="judge_report",
    description=described(
        f"Of the hours that JUDGE_MODEL scored or set aside in the last {REPORT_DAYS} days, at most "
        f"{MOST_QUARANTINED:.0%} are in quarantine.",
        QUARANTINE_ADVICE,
    ),
)
def few_in_quarantine(babylon: dg.ResourceParam[Babylon]) -> dg.AssetCheckResult:
    now, judge = babylon.now(), babylon.settings.judge_model
    span = window_of(now - timedelta(days=REPORT_DAYS)), window_of(now + HOUR)
    with babylon.connection() as connection:
        aside, _ = without_scores(connection, judge, *span)
        hours = judges_of(connection, *span).get(judge, 0) + aside
    share = aside / hours if hours else 0.0
    sentence = f"{aside} of {hours} hours that {judge} was asked about are in quarantine"
    if not hours:
        sentence = f"Not measured: {judge} was asked about no hour of the last {REPORT_DAYS} days."
    return dg.AssetCheckResult(
        passed=bool(hours) and share <= MOST_QUARANTINED,
        severity=dg.AssetCheckSeverity.WARN,
        description=sentence + (f" ({share:.0%}). {QUARANTINE_ADVICE}" if share > MOST_QUARANTINED else "." if hours else ""),
        metadata={"hours": hours, "quarantined": aside, "quarantined_share": share},
    )


@dg.asset_check(
    asset="judge_report",
    description=described(
        f"Over the last {REPORT_DAYS} days, the longest transcript of a group is not scored {MOST_LENGTH_POINTS:g} points or more "
        "above or below the shortest at equal P&L.",
        LENGTH_ADVICE,
    ),
)
def length_earns_nothing(babylon: dg.ResourceParam[Babylon]) -> dg.AssetCheckResult:
    from babylon_rl.judge.reliability.report import reliability_report

    now = babylon.now()
    span = window_of(now - timedelta(days=REPORT_DAYS)), window_of(now + HOUR)
    with babylon.connection() as connection:
        report = reliability_report(connection, *span, babylon.settings)
    points = report.length_points
    if points is None or points.low is None or points.high is None:
        sentence, passed = f"Not measured: {report.groups} hours by {report.judge} are too few to tell length from luck.", False
    else:
        sentence = (
            f"{report.judge} gives the longest transcript {points.value:+.2f} points over the shortest at equal P&L "
            f"(95 % interval {points.low:+.2f} to {points.high:+.2f}, {points.groups} hours)."
        )
        passed = abs(points.value) < MOST_LENGTH_POINTS or points.low <= 0 <= points.high
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=sentence if passed or points is None or points.low is None else f"{sentence} {LENGTH_ADVICE}",
        metadata={} if points is None else {"points": points.value, "hours": points.groups},
    )


checks_of_judge = [few_in_quarantine, length_earns_nothing]
