"""Asset ``judge_report``, the numbers of `babylon-rl judge report`, and checks of them."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from babylon_rl.assets.partitions import asset, counts, described, embedded, table
from babylon_rl.assets.resources import Babylon
from babylon_rl.reporting.plots import Picture
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_report import REPORT_DAYS, judges_of, without_scores
from babylon_rl.versions import content_version
from babylon_rl.windows import window_of

if TYPE_CHECKING:
    from babylon_rl.judge.reliability.measures import Estimate  # loads numpy

NEWEST = f"the {REPORT_DAYS} days that end with the newest judged hour"
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


@asset(
    deps=["scored_groups"],
    group_name="judge",
    code_version="1",
    columns={
        "measured": ("text", "What was measured"),
        "interval": ("text", "The number with its 95 % interval over hours"),
        "meaning": ("text", "What it says"),
    },
    says=f"How the judge agrees with itself, with a second judge (JUDGE_AUDIT_MODEL, asked about a sample) and with the market, "
    f"whether place and length sway it, and what it costs, over {NEWEST}.",
    when_red="the log of its run says why; `babylon-rl judge report` makes the same. Training does not wait for it.",
)
def judge_report(context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.MaterializeResult[Any]:
    from babylon_rl.judge.reliability.audit import report_with_audit
    from babylon_rl.judge.reliability.plots import draw_plots
    from babylon_rl.judge.reliability.report import report_document, report_rows

    now = babylon.now()
    with babylon.connection() as connection:
        span = _newest_hours(connection, now)
        report, audited = report_with_audit(connection, babylon.settings, span, now, on_progress=babylon.on_progress)
    if audited is not None:
        context.log.info(audited.sentence)
    document = report_document(report)
    metadata = counts(
        report.groups,
        judge=report.judge,
        quarantined_share=report.quarantined_share,
        pending=report.pending,
        orders_differ_by=_value(report.self_difference),
        position_bias=_value(report.position_slope),
        length_bias=_value(report.length_correlation),
        length_bias_points=_value(report.length_points),
        pnl_correlation=_value(report.pnl_correlation),
        second_judge_correlation=None if report.audit is None else _value(report.audit.spearman),
        usd=report.usd,
    )
    metadata["report"] = table([{"measured": what, "interval": number, "meaning": words} for what, number, words in report_rows(report)])
    metadata |= embedded([Picture(name, png) for name, png in draw_plots(report).items()])
    metadata["document"] = dg.MetadataValue.json(document)
    if audited is not None:
        metadata["second_judge"] = audited.sentence
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(content_version(document)))


def _newest_hours(connection: Connection, now: datetime) -> tuple[str, str]:
    """The hours of `babylon-rl judge report`, as (from, to); an empty range where nothing was judged."""
    from babylon_rl.judge.reliability.report import default_range  # loads numpy

    return default_range(connection) or (window_of(now), window_of(now))


def _value(estimate: "Estimate | None") -> float | None:
    return None if estimate is None else estimate.value


@dg.asset_check(
    asset="judge_report",
    description=described(
        f"Of the hours that JUDGE_MODEL scored or set aside in {NEWEST}, at most {MOST_QUARANTINED:.0%} are in quarantine.",
        QUARANTINE_ADVICE,
    ),
)
def few_in_quarantine(babylon: dg.ResourceParam[Babylon]) -> dg.AssetCheckResult:
    judge = babylon.settings.judge_model
    with babylon.connection() as connection:
        span = _newest_hours(connection, babylon.now())
        aside, _ = without_scores(connection, judge, *span)
        hours = judges_of(connection, *span).get(judge, 0) + aside
    share = aside / hours if hours else 0.0
    sentence = f"{aside} of {hours} hours that {judge} was asked about are in quarantine"
    if not hours:
        sentence = f"Nothing measured: {judge} was asked about no hour of {NEWEST}."
    return dg.AssetCheckResult(
        passed=bool(hours) and share <= MOST_QUARANTINED,
        severity=dg.AssetCheckSeverity.WARN,
        description=sentence + (f" ({share:.0%}). {QUARANTINE_ADVICE}" if share > MOST_QUARANTINED else "." if hours else ""),
        metadata={"quarantined_share": share} if share else {},
    )


@dg.asset_check(
    asset="judge_report",
    description=described(
        f"Over {NEWEST}, the longest transcript of a group is not scored {MOST_LENGTH_POINTS:g} points or more "
        "above or below the shortest at equal P&L.",
        LENGTH_ADVICE,
    ),
)
def length_earns_nothing(babylon: dg.ResourceParam[Babylon]) -> dg.AssetCheckResult:
    from babylon_rl.judge.reliability.report import reliability_report

    with babylon.connection() as connection:
        span = _newest_hours(connection, babylon.now())
        report = reliability_report(connection, *span, babylon.settings)
    points = report.length_points
    if points is None or points.low is None or points.high is None:
        sentence, passed = f"Nothing measured: {report.groups} hours by {report.judge} are too few to tell length from luck.", False
    else:
        sentence = (
            f"{report.judge} gives the longest transcript {points.value:+.2f} points over the shortest at equal P&L "
            f"(95 % interval {points.low:+.2f} to {points.high:+.2f}, {points.groups} hours)."
        )
        # Both are asked for: a large value that chance explains is no finding, nor is a certain one that is small.
        passed = abs(points.value) < MOST_LENGTH_POINTS or points.low <= 0 <= points.high
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=sentence if passed or points is None or points.low is None else f"{sentence} {LENGTH_ADVICE}",
        metadata={} if points is None else {"points": points.value},
    )


checks_of_judge = [few_in_quarantine, length_earns_nothing]
