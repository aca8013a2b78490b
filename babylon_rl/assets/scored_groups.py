"""Scores of every ready hour's group: the episodes judged against one another."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from babylon_rl.assets.hours import HourReport, plotted, report_hours
from babylon_rl.assets.metadata import HOURS_GROUP, OWNERS, column_schema, counts, table
from babylon_rl.assets.partitions import hours
from babylon_rl.assets.plots import bar_plot
from babylon_rl.assets.resources import Babylon
from babylon_rl.judge.groups import GroupScores
from babylon_rl.judge.scoring import score_windows

HOURS_PER_RUN = 24
NO_GROUP = "no group"
COLUMNS = column_schema(
    window=("varchar(50)", "The hour; one group"),
    agentId=("text", "The agent whose episode was judged"),
    score=("double precision", "0 to 1"),
    rank=("integer", "1 is the best; equal scores share the better rank"),
    advantage=("double precision", "(score - group mean) / population standard deviation"),
    disagreement=("double precision", "Between the orders in which the group was shown"),
    reasoning=("text", "What the judge said"),
)


@dg.asset(
    partitions_def=hours,
    deps=["window_groups", "market_outcomes"],
    group_name=HOURS_GROUP,
    owners=OWNERS,
    kinds={"python", "postgres"},
    code_version="1",
    backfill_policy=dg.BackfillPolicy.multi_run(HOURS_PER_RUN),
    metadata={**COLUMNS, "table": "babylon_rl.episode_scores"},
    description="Judges the usable episodes of a ready hour as one group. An hour that has not changed since is not judged again.",
)
def scored_groups(context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon]) -> Iterator[Any]:
    windows = list(context.partition_keys)
    with babylon.connection() as connection:
        scores = score_windows(connection, windows, babylon.settings, babylon.now())
    pictures = plotted(windows)
    yield from report_hours(context, {window: _report(scores.get(window), drawn=window in pictures) for window in windows})


def _report(group: GroupScores | None, *, drawn: bool) -> HourReport:
    if group is None:
        return HourReport(NO_GROUP, counts(0, judged="no: the hour has too few usable episodes for a group"))
    metadata = counts(
        group.group_size,
        judge=group.judge,
        judge_version=group.judge_version,
        mean=group.mean,
        spread=group.spread,
        has_spread=group.has_spread,
        disagreement=group.disagreement,
        changed=group.changed,
    )
    if drawn:
        title = f"Scores by agent, {group.window} ({group.judge})"
        metadata["scores_by_agent"] = bar_plot(title, "score, 0 to 1", [(s.agent_id, s.score) for s in group.scores])
    metadata["scores"] = table(
        [
            {"rank": s.rank, "agent": s.agent_id, "score": s.score, "advantage": s.advantage, "reasoning": s.reasoning[:300]}
            for s in group.scores
        ]
    )
    return HourReport(group.data_version, metadata)
