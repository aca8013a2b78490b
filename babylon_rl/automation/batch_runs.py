"""Decides whether an unfinished batch gets another run.

It gets none while a run is alive or the batch waits, and none after too many deaths. A run that stopped on purpose
(assets/resources.py) or finished an iteration is no death. A run that was lost with its machine (a reboot) says little about its
batch, so the limit for those is higher. A batch that holds paid work is never given up.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from babylon_rl.assets.resources import ENDED_TAG, GOES_ON_AFTER_TAG, LOST, TAKEN_OVER, WAITS
from babylon_rl.assets.workers import job_tags
from babylon_rl.automation.jobs import EVIDENCE_ASSETS, trained_keys
from babylon_rl.judge.judge_store import spent_until
from babylon_rl.serving.dagster_client import EVIDENCE, LIVE_STATES, PARTITION_TAG, training_tags
from babylon_rl.settings import JudgeSettings, Settings
from babylon_rl.store.batches import Batch
from babylon_rl.store.connection import Connection
from babylon_rl.store.scores import PendingHour, read_pending
from babylon_rl.store.write_ahead import finished_steps, read_jobs
from babylon_rl.training.batches import fail_batch
from babylon_rl.training.lifecycle import MAX_DEAD_RUNS, MAX_LOST_RUNS, RETRY_EVERY, retry_after

FAILURE_REASON_TAG = "dagster/failure_reason"
RUN_KEY_TAG = "dagster/run_key"
EVIDENCE_KEY = "{}/benchmark/"  # begins the run keys of finish_evidence for a batch
JUDGE_ASKED_AFTER, JUDGE_ASKED_EVERY = timedelta(minutes=30), timedelta(hours=4)  # at first, and at the longest, while it is down
LIVE = [dg.DagsterRunStatus(state) for state in LIVE_STATES]


def naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)


def training_run(
    instance: dg.DagsterInstance, connection: Connection, batch: Batch, settings: Settings, now: datetime
) -> dg.RunRequest | str:
    """The next run of a pending batch, or a reason for none now. Gives up a batch of which MAX_DEAD_RUNS runs died."""
    records = instance.get_run_records(dg.RunsFilter(tags={PARTITION_TAG: batch.batch_id}))
    if (why_not := _why_no_run(connection, batch, records, settings, now)) is not None:
        return why_not
    # Dagster starts one run for each key: a tick that is evaluated twice asks for the same one.
    key = _next_key([record.dagster_run for record in records], f"{batch.batch_id}/")
    tags = training_tags(settings, batch.backend) | _goes_on_after(records)
    return dg.RunRequest(run_key=key, partition_key=batch.batch_id, asset_selection=trained_keys(settings), tags=tags)


def evidence_run(records: Sequence[dg.RunRecord], batch_id: str, settings: Settings, now: datetime) -> dg.RunRequest | str:
    """The next run that compares a completed batch's version, or a reason for none now; ``records`` are those of all its runs."""
    own, newest = _evidence_runs(records, batch_id), next(iter(records), None)
    if not evidence_goes_on(records, batch_id):
        return f"{batch_id} was given up after {MAX_DEAD_RUNS} runs; materialize {' and '.join(EVIDENCE_ASSETS)} by hand."
    if newest is not None and newest.dagster_run.tags.get(ENDED_TAG) == WAITS:
        again_at = naive(newest.update_timestamp) + retry_after(len(own))
        if now < again_at:
            return f"{batch_id} could not be compared, as its last run says; {_in_words(again_at)}."
    selection = [dg.AssetKey(name) for name in EVIDENCE_ASSETS]
    tags, key = job_tags(settings, EVIDENCE) | _goes_on_after(records), _next_key(own, EVIDENCE_KEY.format(batch_id))
    return dg.RunRequest(run_key=key, partition_key=batch_id, asset_selection=selection, tags=tags)


def evidence_goes_on(records: Sequence[dg.RunRecord], batch_id: str) -> bool:
    """True while attempts of finish_evidence are left; lost and waiting runs count as none."""
    return sum(_how_it_ended(run) not in (LOST, WAITS) for run in _evidence_runs(records, batch_id)) < MAX_DEAD_RUNS


def _goes_on_after(records: Sequence[dg.RunRecord]) -> dict[str, str]:
    """Tag of a run that goes on where the newest of ``records`` ended; empty for the first run of a batch."""
    return {GOES_ON_AFTER_TAG: records[0].dagster_run.run_id} if records else {}


def _next_key(runs: Sequence[dg.DagsterRun], prefix: str) -> str:
    """The next run key: Dagster drops a request whose key was used."""
    # By keys and not by the number of runs alone: a person may have deleted some.
    used = [re.fullmatch(rf"{re.escape(prefix)}(\d+)", run.tags.get(RUN_KEY_TAG, "")) for run in runs]
    return f"{prefix}{1 + max([len(runs), *(int(key[1]) for key in used if key)])}"


def _how_it_ended(run: dg.DagsterRun) -> str | None:
    # A run that timed out before its start was lost with its machine, whatever its tags say.
    never_began = run.tags.get(FAILURE_REASON_TAG) == "START_TIMEOUT"
    return LOST if never_began else run.tags.get(ENDED_TAG)


def _evidence_runs(records: Iterable[dg.RunRecord], batch_id: str) -> list[dg.DagsterRun]:
    """Those of a batch's runs that finish_evidence requested."""
    runs = (record.dagster_run for record in records)
    return [run for run in runs if run.tags.get(RUN_KEY_TAG, "").startswith(EVIDENCE_KEY.format(batch_id))]


def _in_words(again_at: datetime) -> str:
    return f"it is tried again at {again_at:%H:%M:%S} UTC"


def judge_asked_at(pending: PendingHour, settings: JudgeSettings) -> datetime:
    """Time of the judge's next try: after a doubling pause, or with tomorrow's budget."""
    after = retry_after(pending.asked, JUDGE_ASKED_AFTER, JUDGE_ASKED_EVERY)
    return spent_until(pending.reason, settings.judge_budget_usd, pending.asked_at) or pending.asked_at + after


def _why_no_run(
    connection: Connection, batch: Batch, records: Sequence[dg.RunRecord], settings: JudgeSettings, now: datetime
) -> str | None:
    if any(record.dagster_run.status in LIVE for record in records):
        return f"{batch.batch_id} has a live run."
    # The last of its hours counts: a run before that would find at least one of them unjudged again.
    asked_at = max((judge_asked_at(hour, settings) for hour in read_pending(connection, batch.windows).values()), default=None)
    if asked_at is not None and now < asked_at:
        return f"{batch.batch_id} waits for its judge, which is asked again at {asked_at:%Y-%m-%d %H:%M} UTC."
    # A run after which an iteration is there did not die of what comes again.
    trained_at = max((step.finished_at for step in finished_steps(connection, batch.batch_id).values() if step.finished_at), default=None)
    # The tag of each failed run since then; None is a death without one.
    failed = [
        _how_it_ended(record.dagster_run)
        for record in records
        if record.dagster_run.status == dg.DagsterRunStatus.FAILURE and (trained_at is None or naive(record.create_timestamp) > trained_at)
    ]
    seen_at = max([batch.heartbeat_at, *(naive(record.update_timestamp) for record in records[:1])])
    again_at = seen_at + retry_after(len(failed))
    if now < again_at:
        ended = records[0].dagster_run.tags.get(ENDED_TAG) if records else None
        if batch.error is not None:
            return f"{batch.batch_id} waits, and {_in_words(again_at)}: {batch.error}"
        if ended == TAKEN_OVER:
            return f"{batch.batch_id} was left to another run, or waits for another batch's job; {_in_words(again_at)}."
        if ended == WAITS:
            return f"{batch.batch_id} could not go on, as its last run says; {_in_words(again_at)}."
    # Too many deaths: give up, unless paid work would be lost.
    # One that waits, for its judge or with a sentence in its row, has not died: its last run ended on purpose.
    deaths, lost = failed.count(None), failed.count(LOST)
    if asked_at is None and batch.error is None and (deaths >= MAX_DEAD_RUNS or lost >= MAX_LOST_RUNS):
        died = deaths + lost
        paid = batch.state == "uploading" or any(job.live or job.state == "trained" for job in read_jobs(connection, batch.batch_id))
        if not paid:
            fail_batch(connection, batch.batch_id, f"{died} runs died without an error message.", now)
            return f"{batch.batch_id} was given up: {died} runs died without an error message."
        if now - seen_at < RETRY_EVERY:
            return f"{batch.batch_id} holds what was paid; {died} runs died, and the next is tried every {RETRY_EVERY}."
    return None
