"""Tags by which the UI finds runs of an hour, batch or version."""

import dagster as dg

from babylon_rl.traces import note

WINDOW_TAG, BATCH_TAG, VERSION_TAG = "babylon_rl/window", "babylon_rl/batch", "babylon_rl/version"


def tag_run(context: dg.AssetExecutionContext, *, window: str | None = None, batch: str | None = None, version: str | None = None) -> None:
    """Tag a run with its window (or first...last), batch or version, if missing; the step's trace gets them too."""
    note(window=window, batch=batch, version=version)
    tags = {WINDOW_TAG: window, BATCH_TAG: batch, VERSION_TAG: version}
    wanted = {name: value for name, value in tags.items() if value is not None}
    if not wanted.items() <= context.run.tags.items():
        context.instance.add_run_tags(context.run.run_id, wanted)
