"""Assets of a version's evidence and what follows from it.

``benchmark_report`` plays a checkpoint and its opponents in the same unseen markets; ``released_model`` records the gate's decision, and
starts the rollout that follows from it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from babylon_rl.assets.partitions import admin_link, asset, batch_of, batches, counts, embedded, results_table
from babylon_rl.assets.resources import Babylon, tag_run, tagging_end
from babylon_rl.models.server_process import Serving, kept_open
from babylon_rl.reporting.plots import Picture
from babylon_rl.store.registry import model_of_batch

# Of a row of the report, what fits on a page; the report in Markdown has the intervals.
SHOWN = {
    "model": "model", "pnl": "$/h", "interval": "95 % interval", "improvement": "vs ref.", "winRate": "wins", "holdShare": "hold",
}  # fmt: skip


@dg.resource(description="The endpoint of compared models: a server on this machine, kept open until the run ends.")
def models_here(_: dg.InitResourceContext) -> Iterator[Serving]:
    from babylon_rl.market.model_endpoints import served_here

    with kept_open(served_here) as serving:
        yield serving


@asset(
    partitions_def=batches,
    deps=["trained_checkpoint"],
    group_name="evaluation",
    code_version="2",
    columns={
        "model": ("text", "A version, the base, or a strategy"),
        "pnl": ("double precision", "Dollars an hour, mean over the markets played"),
        "low": ("double precision", "Lower end of the 95 % interval"),
        "high": ("double precision", "Upper end of the 95 % interval"),
    },
    says="The checkpoint plays unseen markets against the deployed version or the newest ancestor that passed, the base, doing "
    "nothing and scripts, paired: P&L with intervals, never the judge's score.",
    when_red="the log of its run says what could not be played; the sensor finish_evidence asks again, three times at most, then "
    "materialize this and what follows by hand.",
)
def benchmark_report(
    context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon], models: dg.ResourceParam[Serving]
) -> dg.MaterializeResult[Any]:
    from babylon_rl.evaluation.benchmark import evaluate_batch
    from babylon_rl.evaluation.results import runs_directory

    # A run that ends because a server is away is tagged as waiting, and finish_evidence counts it as no attempt.
    with babylon.connection() as connection, tagging_end(context):
        report = evaluate_batch(
            connection,
            batch_of(context),
            babylon.settings,
            context.log.info,
            clock=babylon.now,
            serving=models,
            on_progress=babylon.on_progress,
        )
    tag_run(context, version=report.version)
    metadata = counts(len(report.rows), version=report.version, decision=report.decision, reason=report.reason, markets=report.markets)
    metadata["results"] = results_table(report.rows, SHOWN)
    assert report.plot_path is not None  # written just now
    metadata |= embedded([Picture("P&L with intervals", Path(report.plot_path).read_bytes())])
    metadata["report"] = dg.MetadataValue.md(report.table_markdown)
    decisions = runs_directory(babylon.settings.home, report.version)
    if decisions.is_dir():  # a version that could not be played here has none
        metadata["decisions"] = dg.MetadataValue.path(decisions)
    metadata["look_at_decisions"] = f"babylon-rl benchmark compare {report.version} base --gate --report page"
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(report.data_version))


@asset(
    partitions_def=batches,
    deps=["benchmark_report"],
    group_name="serving",
    code_version="2",
    columns={
        "version": ("text", "The version that was decided on"),
        "decision": ("text", "Whether the evidence lets it in front of the agents"),
        "reason": ("text", "The numbers behind the decision"),
        "release": ("text", "The rollout that follows from it"),
    },
    says="Records whether a version may be put in front of the agents, from its benchmark report. One that passed becomes a "
    "candidate; with AUTO_PROMOTE it is confirmed in fresh markets, and its rollout starts.",
    when_red="the log of its run says why; the deployed version stays. Overdue: no version was decided on lately, and `babylon-rl "
    "ready` says what is missing for a training.",
)
def released_model(
    context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon], models: dg.ResourceParam[Serving]
) -> dg.MaterializeResult[Any]:
    from babylon_rl.evaluation.benchmark import record_release
    from babylon_rl.serving.promotion import promote

    with babylon.connection() as connection, tagging_end(context):
        batch_id = batch_of(context)
        # Committed before what may take long: of a confirmation that is interrupted the decision stays, and finish_evidence asks again.
        decided = record_release(connection, batch_id, babylon.now())
        tag_run(context, version=decided.version)
        released = promote(
            connection,
            decided.version,
            decided.decision,
            babylon.settings,
            context.log.info,
            clock=babylon.now,
            serving=models,
            on_progress=babylon.on_progress,
        )
        model = model_of_batch(connection, batch_id)
    context.log.info(released)
    version = f"{decided.version} {decided.decision}"
    metadata = counts(1, version=decided.version, decision=decided.decision, reason=decided.reason, release=released) | admin_link(
        babylon.settings
    )
    tracking = (model.tracking_url if model is not None else None) or ""
    if tracking.startswith("http"):
        metadata["weights_and_biases"] = dg.MetadataValue.url(tracking)
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(version))
