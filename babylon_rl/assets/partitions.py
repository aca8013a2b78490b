"""Partitions of the asset graph: hours and batches.

An hour's key is its window id, so that UI, CLI, database and logs name it the same way; a batch's key is its batch id.
"""

from datetime import datetime

import dagster as dg

from babylon_rl.assets.run_tags import tag_run
from babylon_rl.settings import load_settings
from babylon_rl.windows import WINDOW_FORMAT, is_complete

hours = dg.HourlyPartitionsDefinition(start_date=load_settings().first_window, fmt=WINDOW_FORMAT)
BATCHES = "batch"
batches = dg.DynamicPartitionsDefinition(name=BATCHES)


def hours_of(context: dg.AssetExecutionContext, now: datetime) -> list[str]:
    """The hours that a run was started for; tags the run with them.

    Raises:
        dagster.Failure: it names none, or one that has not ended.
    """
    if not (context.has_partition_key or context.has_partition_key_range):
        raise _refused(
            'This run names no hour: give it one by --tags \'{"dagster/partition": "2025-10-29T14:00"}\', '
            "or a range (docs/reference/ui.md)."
        )
    windows = list(context.partition_keys)
    unfinished = next((window for window in windows if not is_complete(window, now)), None)
    if unfinished is not None:
        raise _refused(f"{unfinished} has not ended; an hour is read once it is over.")
    tag_run(context, window=windows[0] if len(windows) == 1 else f"{windows[0]}...{windows[-1]}")
    return windows


def batch_of(context: dg.AssetExecutionContext) -> str:
    """The batch that a run was started for; tags the run with it.

    Raises:
        dagster.Failure: it names none.
    """
    if not context.has_partition_key:
        raise _refused('This run names no batch: give it one by --tags \'{"dagster/partition": "ID"}\'; `babylon-rl batches` lists them.')
    tag_run(context, batch=str(context.partition_key))
    return str(context.partition_key)


def _refused(sentence: str) -> dg.Failure:
    return dg.Failure(sentence, allow_retries=False)
