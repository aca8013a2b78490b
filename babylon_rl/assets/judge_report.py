"""Asset ``judge_report``: the numbers of `babylon-rl judge report` over the last days, with plots."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import dagster as dg

from babylon_rl.assets.metadata import OWNERS, column_schema, counts, described, embedded, table
from babylon_rl.assets.resources import Babylon
from babylon_rl.reporting.plots import Picture
from babylon_rl.traces import traced_step
from babylon_rl.versions import content_version
from babylon_rl.windows import HOUR, window_of

REPORT_DAYS = 14
COLUMNS = column_schema(
    measured=("text", "What was measured"),
    interval=("text", "The number with its 95 % interval over hours"),
    meaning=("text", "What it says"),
)


@dg.asset(
    deps=["scored_groups"],
    group_name="judge",
    owners=OWNERS,
    kinds={"python", "postgres"},
    code_version="1",
    metadata=COLUMNS,
    description=described(
        f"How the judge agrees with itself, with a second judge (JUDGE_AUDIT_MODEL, asked about a sample) and with the market, "
        f"whether place and length sway it, and what it costs, over the last {REPORT_DAYS} days.",
        "the log of its run says why; `babylon-rl judge report` makes the same. Training does not wait for it.",
    ),
)
@traced_step
def judge_report(context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.MaterializeResult[Any]:
    from babylon_rl.judge.reliability.audit import report_with_audit
    from babylon_rl.judge.reliability.plots import draw_plots
    from babylon_rl.judge.reliability.report import report_document, report_rows

    now = babylon.now()
    span = window_of(now - timedelta(days=REPORT_DAYS)), window_of(now + HOUR)
    with babylon.connection() as connection:
        report, audited = report_with_audit(connection, babylon.settings, span, now, on_progress=babylon.on_progress)
    if audited is not None:
        context.log.info(audited.sentence)
    document = report_document(report)
    # Numbers over time first, then the report's table and plots, then the whole document.
    metadata = counts(report.groups, judge=report.judge, quarantined_share=report.quarantined_share, pending=report.pending)
    metadata |= _numbers(document)
    metadata["report"] = table([{"measured": what, "interval": number, "meaning": words} for what, number, words in report_rows(report)])
    metadata |= {name: embedded(Picture(name, png)) for name, png in draw_plots(report).items()}
    metadata["document"] = dg.MetadataValue.json(document)
    if audited is not None:
        metadata["second_judge"] = audited.sentence
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(content_version(document)))


def _numbers(document: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata values that Dagster plots over time."""
    # Name of the plotted value, and its path in the report's document.
    paths = {
        "orders_differ_by": ("selfAgreement", "meanAbsoluteDifference", "mean"),
        "position_bias": ("positionBias", "slope"),
        "length_bias": ("lengthBias", "partialCorrelation"),
        "length_bias_points": ("lengthBias", "points", "mean"),
        "pnl_correlation": ("pnlCorrelation", "spearman"),
        "second_judge_correlation": ("auditAgreement", "spearman", "mean"),
        "usd": ("usd",),
    }
    numbers: dict[str, Any] = {}
    for name, path in paths.items():
        value: Any = document
        for key in path:
            value = None if value is None else value.get(key)
        if value is not None:
            numbers[name] = float(value)
    return numbers
