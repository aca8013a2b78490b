"""Asset ``ab_test_report``: the newest A/B test, arm by arm."""

from typing import Any

import dagster as dg

from babylon_rl.assets.partitions import asset, counts, embedded, table
from babylon_rl.assets.resources import Babylon
from babylon_rl.reporting.plots import bar_plot, line_plot
from babylon_rl.versions import content_version


@asset(
    deps=["window_groups"],
    group_name="serving",
    code_version="1",
    columns={
        "version": ("text", "The arm: a version, or base"),
        "share": ("double precision", "Percent of all agents"),
        "agents": ("integer", "Agents that traded in hours of every arm"),
        "pnl": ("double precision", "Dollars an agent-hour, mean"),
    },
    says="The newest A/B test of versions on live agents: P&L of each arm in the same hours, the difference with an interval that "
    "holds at every look, and whether agents came as they were assigned.",
    when_red="the log of its run says why; `babylon-rl ab status` shows the same numbers. The test itself goes on.",
)
def ab_test_report(context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.MaterializeResult[Any]:
    from babylon_rl.serving.ab_tests import course, report
    from babylon_rl.store.releases import read_tests

    with babylon.connection() as connection:
        tests = read_tests(connection)
        newest = report(connection, tests[0].name, babylon.settings) if tests else None
    if newest is None:
        return dg.MaterializeResult(metadata=counts(0, verdict="There has been no A/B test."), data_version=dg.DataVersion("none"))
    context.log.info(newest.verdict)
    document = newest.document
    arms = [arm for arm in document["arms"] if arm["pnl"] is not None]
    metadata = counts(
        len(document["arms"]), test=newest.test.name, state=newest.test.state, verdict=newest.verdict, spillover=document["spillover"]
    )
    metadata["arms"] = table([arm | {"interval": str(arm["interval"])} for arm in document["arms"]])
    # An arm without an interval yet is drawn as its mean alone.
    bounds = [tuple(arm["pnl"] if bound is None else bound for bound in arm["interval"]) for arm in arms]
    bars = bar_plot("P&L by arm", "dollars an agent-hour", [(a["version"], a["pnl"]) for a in arms], intervals=bounds)
    metadata |= embedded([bars, line_plot("P&L so far", "dollars an agent-hour", course(newest), x_label="hours of an agent")])
    metadata["document"] = dg.MetadataValue.json(document)
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(content_version(document)))
