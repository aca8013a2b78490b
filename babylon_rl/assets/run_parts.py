"""Check of the hours or the batch in a run's tags.

It is made before the first step, and by `babylon-rl dagster` before the run exists.
Within a run Dagster reads the versions of inputs before an asset's own code, and fails there without a partition, with a traceback.
"""

from collections.abc import Callable, Mapping
from datetime import datetime

from babylon_rl.serving.dagster_client import PARTITION_TAG, RANGE_END, RANGE_START, SCORING_JOBS, TRAIN_JOB
from babylon_rl.windows import is_complete, is_window_id


def why_no_hour(window: str, first: str, now: datetime) -> str | None:
    """Why an hour cannot be read, or None; ``first`` is the first hour of the graph."""
    if not is_window_id(window):
        return f"{window} is no hour: write one in UTC, as 2025-10-29T14:00; `babylon-rl windows` lists them."
    if window < first:
        return f"{window} lies before FIRST_WINDOW ({first}): set FIRST_WINDOW to {window} or earlier."
    # An hour that has not ended would be read in part, and its content would count as that of the hour.
    return None if is_complete(window, now) else f"{window} has not ended; an hour is read once it is over."


def why_no_part(job: str, tags: Mapping[str, str], first: str, now: datetime, has_batch: Callable[[str], bool]) -> str | None:
    """Why a run of ``job`` with these tags cannot be made, or None; ``has_batch`` says whether there is a batch of an id.

    Runs of other jobs, such as those of assets, have the partitions that Dagster gives them.
    """
    if job == TRAIN_JOB and PARTITION_TAG not in tags:
        return 'This run names no batch: give it one by --tags \'{"dagster/partition": "ID"}\'; `babylon-rl batches` lists them.'
    if job == TRAIN_JOB and not has_batch(tags[PARTITION_TAG]):
        return f"There is no batch {tags[PARTITION_TAG]}; `babylon-rl batches` lists them."
    if job not in SCORING_JOBS:
        return None
    ends = [tags[name] for name in (PARTITION_TAG, RANGE_START, RANGE_END) if name in tags]
    if PARTITION_TAG not in tags and len(ends) < 2:
        return (
            'This run names no hour: give it one by --tags \'{"dagster/partition": "2025-10-29T14:00"}\', '
            "or a range (docs/reference/ui.md)."
        )
    if ends[0] > ends[-1]:
        return f"The range ends before it starts: {ends[0]} to {ends[-1]}."
    return next(filter(None, (why_no_hour(window, first, now) for window in ends)), None)
