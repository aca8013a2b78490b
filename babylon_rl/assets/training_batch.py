"""Asset ``training_batch``: all hours of a batch judged, groups without spread removed."""

from typing import Any

import dagster as dg

from babylon_rl.assets.partitions import asset, batch_of, batches, counts, linked_windows, table
from babylon_rl.assets.resources import Babylon, sole_run, tag_run
from babylon_rl.training.batches import Prepared, prepare_batch
from babylon_rl.training.publishing import data_version


@asset(
    partitions_def=batches,
    # Which hours a batch holds is in its rows alone; to Dagster it may stand on any of them.
    deps=[dg.AssetDep(name, partition_mapping=dg.AllPartitionMapping()) for name in ("scored_groups", "answer_groups")],
    group_name="training",
    code_version="1",
    table="babylon_rl.batch_episodes",
    columns={
        "batchId": ("text", "The batch"),
        "window": ("text", "The hour of the episode"),
        "agentId": ("text", "The agent of the episode"),
        "trajectories": ("integer", "Trajectories that the episode consists of"),
        "score": ("double precision", "0 to 1, as judged for this batch"),
        "advantage": ("double precision", "What every sequence of the episode is trained with"),
        "dropped": ("text", "Why the episode left the batch"),
    },
    says="The episodes that one training consumes, frozen when the batch was made. Judges the hours that lack scores.",
    when_red="`babylon-rl batches show BATCH` has the reason. A batch that waits for its judge is run again by itself; `babylon-rl "
    "batches cancel BATCH --reason TEXT` frees its trajectories.",
)
def training_batch(context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon]) -> dg.MaterializeResult[Any]:
    batch_id = batch_of(context)
    with babylon.connection() as connection, sole_run(context, connection, batch_id):
        prepared = prepare_batch(connection, batch_id, babylon.settings, babylon.now())
    tag_run(context, version=prepared.batch.version)
    return dg.MaterializeResult(
        metadata=_metadata(prepared), data_version=dg.DataVersion(data_version(prepared.remaining, prepared.answers))
    )


def _metadata(prepared: Prepared) -> dict[str, Any]:
    batch, episodes = prepared.batch, prepared.remaining
    windows = sorted({episode.window for episode in episodes})
    best = sorted(episodes, key=lambda episode: (episode.window, episode.rank or 0))
    return counts(
        len(episodes),
        windows=len(windows),
        trajectories=sum(len(episode.trajectory_ids) for episode in episodes),
        base_model=batch.base_model,
        backend=batch.backend,
        version=batch.version,
        parent=batch.parent_version or "the base",
        dropout=dict(batch.dropout) or None,
        dropped_groups=dict(prepared.dropped_groups) or None,
        episodes=table(
            [{"window": e.window, "rank": e.rank, "agent": e.agent_id, "score": e.score, "advantage": e.advantage} for e in best]
        ),
        upstream_windows=linked_windows(windows),
    )
