"""How a run of a batch ended where it did not die: said on the run itself, so that automation counts the others.

A run that waits for a judge, a service or a storage, that another run has taken over, or that was interrupted leaves its batch to the
next one on purpose. A process that was killed, and an error that nobody foresaw, say nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from babylon_rl.errors import BatchConflict, JudgeError, TrainingPaused

ENDED_TAG = "babylon_rl/ended"
WAITS, TAKEN_OVER, INTERRUPTED = "waits", "taken over", "interrupted"


@contextmanager
def ending_in_words(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Tag the run with ENDED_TAG when the block ends in an error after which its batch goes on with another run."""
    try:
        yield
    except (JudgeError, TrainingPaused):
        _say(context, WAITS)
        raise
    except BatchConflict:
        _say(context, TAKEN_OVER)
        raise
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        _say(context, INTERRUPTED)
        raise


def _say(context: dg.AssetExecutionContext, how: str) -> None:
    context.instance.add_run_tags(context.run.run_id, {ENDED_TAG: how})
