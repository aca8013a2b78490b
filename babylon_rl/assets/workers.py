"""Celery workers: tags by which a run finds its queue, and the refusal of a worker whose code or judge is another.

Jobs carry the tags of the machine that loaded them (automation/jobs.py), so each run of a job says which code and judge it expects.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from babylon_rl.errors import UsageError
from babylon_rl.project_files import project_file
from babylon_rl.serving.dagster_client import GPU_TRAINER, QUEUE_TAG, QUEUES, TRAINER
from babylon_rl.settings import Settings
from babylon_rl.versions import files_version

TASK_TAG, CODE_TAG, JUDGE_TAG = "dagster-celery/task_id", "babylon_rl/code", "babylon_rl/judge"


@cache
def code_version() -> str:
    """Version of this process's code: package, number of the newest migration, and a hash of the sources.

    Read once, early: files that are replaced later are not the ones in execution.
    """
    migrations = sorted(project_file("migrations").glob("[0-9]*.sql"))
    newest = int(migrations[-1].name.partition("_")[0]) if migrations else 0
    return f"{version('babylon-rl')}+{newest}.{files_version(Path(__file__).resolve().parents[1], '*.py')[:8]}"


def job_tags(settings: Settings, queue: str) -> dict[str, str]:
    """Tags of a job's runs: queue, code and judge; none without workers."""
    if settings.celery_broker_url is None:
        return {}
    return {QUEUE_TAG: queue, CODE_TAG: code_version(), JUDGE_TAG: settings.judge_model}


def why_refused(tags: Mapping[str, str], settings: Settings) -> str | None:
    """A sentence if this worker's code or judge does not fit a run with such tags; else None.

    Code does not if it is older, or another of the same version. Newer code may run what older code asked for. A run that no worker
    executes, or that has no such tags, fits.
    """
    if TASK_TAG not in tags:
        return None
    own = code_version()
    wanted = tags.get(CODE_TAG, own)
    if wanted != own and _ordered(own) <= _ordered(wanted):
        return (
            f"This worker has code version {own}, and the run was asked for by {wanted}. "
            "Install the same version here, then start it again."
        )
    asked = tags.get(JUDGE_TAG, settings.judge_model)
    if asked != settings.judge_model:
        return (
            f"This worker's JUDGE_MODEL is {settings.judge_model}, and {asked} where the run was asked for. "
            "Give the worker the same settings, then start it again."
        )
    return None


def _ordered(code: str) -> tuple[tuple[int, ...], int]:
    package, _, rest = code.partition("+")
    return tuple(int(part) for part in package.split(".") if part.isdecimal()), int(rest.partition(".")[0] or 0)


def worker_queues(asked: Sequence[str] | None, gpu: bool) -> tuple[str, ...]:
    """The queues of a worker that was asked for some, or for all.

    A trainer with a ``gpu`` takes the batches that need one, too.

    Raises:
        UsageError: there is no queue of that name.
    """
    names = dict.fromkeys(asked or [name for name in QUEUES if name != GPU_TRAINER])
    if unknown := [name for name in names if name not in QUEUES]:
        raise UsageError(f"{unknown[0]} is not a queue. Choose from {', '.join(QUEUES)}.")
    return (*names, GPU_TRAINER) if gpu and TRAINER in names and GPU_TRAINER not in names else tuple(names)
