"""Exactly-once execution of remote jobs, from the write-ahead row to the evidence.

The row is committed before the post, and the job id as soon as it is known. A run that resumes after a crash finds one of three states.
(1) An id: its events are followed to the end. (2) A post without an id: the run waits until the step moves or the longest job time has
passed; after an error or a cut connection, twice the usual job time. (3) An end. A job is posted again only after a refusal, or after that
wait and one more look. The row records the model's step before the post, so the next step belongs to this job. The service lists no jobs:
the step is the only sign of a job without an id.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from babylon_rl.errors import BabylonError, BatchConflict, CheckpointError, Diverged, TrainingError, TrainingPaused
from babylon_rl.store import write_ahead
from babylon_rl.store.write_ahead import JobState, RemoteJob
from babylon_rl.training.backends.openpipe_art import JobProgress, of_checkpoint, read_events
from babylon_rl.training.backends.protocol import RunContext
from babylon_rl.training.backends.serverless.service import Refused, ServerlessService, Unknown

MOST_POSTS = 5  # of one iteration in one run: those that were refused or lost
LONGEST_SLEEP_S = 10.0  # between signs of life
MOVED_TOO_FAR = "the model moved by more than one step: a job that was given up has ended late, or somebody else trains this model"
OnProgress = Callable[[JobProgress], None]
MaySend = Callable[[], None]  # raises when the request must not go out
PostJob = Callable[[MaySend], Awaitable[str]]  # as ServerlessService.post
# Called where a process may die between two effects: "row written", "answered", "id written", "end seen", "end written", ...
Boundary = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Posting:
    """Request ready to be sent, with the sequences and tokens that it would train."""

    send: PostJob
    sequences: int | None
    tokens: int | None


MakePost = Callable[[], Posting]  # builds the request, once it is known that one is needed


@dataclass(frozen=True, slots=True)
class Times:
    """Time limits of a remote training.

    ``longest_job``: how long a run waits for a job. ``first_job``: how long a job is taken to last before one has ended there.
    ``list_lag_s``: how far a list of checkpoints or events may lag behind a job that ended. ``timeout_s``: how long the service may fail to
    answer. ``whole``: the training time after which nothing more is posted.
    """

    longest_job: timedelta
    whole: timedelta
    poll_s: float = 0.25
    longest_poll_s: float = 10.0
    list_lag_s: float = 120.0
    timeout_s: float = 300.0
    first_job: timedelta = timedelta(minutes=15)


class RemoteJobRunner:
    """Runner of a batch's iterations on one remote model, each trained at most once."""

    def __init__(self, service: ServerlessService, run: RunContext, times: Times, at: Boundary) -> None:
        self._service, self._run, self._times, self._at = service, run, times, at

    async def train(self, job: RemoteJob, make_post: MakePost, on_progress: OnProgress) -> RemoteJob:
        """Train one iteration: resume its existing job, otherwise post ``job`` (its attempt is set here).

        Raises:
            TrainingError, Diverged: the job failed.
            TrainingPaused: nobody answers, a job does not end, the service takes none for now, or the settings name another service than
                the one that has this iteration's job; or the limit of the whole training is over.
            BatchConflict: the batch ended, was taken over, or another live batch has the model.
            CheckpointError: the service is not at the step from which this iteration continues.
        """
        current = write_ahead.newest_job(self._run.connection, job.batch_id, job.iteration)
        if current is not None and current.state != "refused" and (current.service, current.model) != (job.service, job.model):
            raise TrainingPaused(
                f"{_of(current)} was posted to {current.model} at {current.service}, and the settings name {job.model} at {job.service}. "
                "Set SERVERLESS_BASE_URL, WANDB_ENTITY, WANDB_PROJECT and WANDB_API_KEY back to what they were; the batch goes on there."
            )
        await self._settle_others(job)
        # Every turn first checks the outcome of earlier posts; a new one is made only when the last was refused or given up.
        posts = 0
        posting: Posting | None = None
        while True:
            lost = self._lost(job)
            # A post that was given up may still have made its step; then it counts and nothing is posted.
            if lost is not None and (ended := await self._made(lost)) is not None:
                current = self._end(ended)  # its step has come after all
            elif current is None or current.state in ("refused", "lost"):
                if current is not None and posts >= MOST_POSTS:
                    raise TrainingPaused(
                        f"The training service took no job in {posts} posts ({current.error}); `babylon-rl train` goes on later."
                    )
                # Only where something would be posted: what is posted is followed and paid for, whatever the time.
                self._keep_limit()
                # A lost post's step may come while the request is built, so the look is repeated. The row is written last.
                if posting is None:
                    posting = make_post()
                    self._at("request built")
                    continue
                posts += 1
                # Directly before the post: a step that comes afterwards is then this job's, as a model has one live job at most.
                await self._stand_at(job.step_before)
                attempt = 1 if current is None else current.attempt + 1
                new = replace(job, attempt=attempt, posted_at=self._run.now(), sequences=posting.sequences, trainable_tokens=posting.tokens)
                current = await self._post(new, posting.send)
            elif current.live:
                current = await self._settle(current, on_progress)
            elif current.state == "trained":
                return current
            else:
                raise failure_of(current)

    async def _post(self, job: RemoteJob, post: PostJob) -> RemoteJob:
        # Write-ahead: the row is committed before the request can leave.
        write_ahead.begin_job(self._run.connection, job, self._run.attempt)
        self._at("row written")
        try:
            job_id = await post(lambda: write_ahead.check_may_post(self._run.connection, job, self._run.attempt))
        except Refused as refused:
            # A server error or a cut may come after acceptance: keep the row and look for a step.
            if refused.look:
                write_ahead.note_error(self._run.connection, job, str(refused))
                await self._pause(refused.wait_s)
                return self._again(job)
            self._end(self._ended(job, "refused", str(refused)))
            if not refused.again:
                raise TrainingError(f"The training service refused {_of(job)}: {refused}") from None
            # As long as the service asks for, and at least a growing pause, as it may name no time.
            await self._pause(max(refused.wait_s, self._times.poll_s * 2 ** min(job.attempt, MOST_POSTS)))
            return self._again(job)
        except Unknown:
            return self._again(job)
        except Exception as failed:  # raised on, once it is known that the request never left (ServerlessService.post)
            why = str(failed) if isinstance(failed, BabylonError) else type(failed).__name__
            self._end(self._ended(job, "refused", f"it was not sent: {why}"))
            raise
        self._at("answered")
        write_ahead.name_job(self._run.connection, job, job_id)
        self._at("id written")
        return self._again(job)

    async def _settle(self, job: RemoteJob, on_progress: OnProgress) -> RemoteJob:
        if job.job_id is None:
            return await self._wait_for_step(job)
        return await self._follow(job, job.job_id, on_progress)

    async def _follow(self, job: RemoteJob, job_id: str, on_progress: OnProgress) -> RemoteJob:
        # From the post, not from now: a run that resumes does not begin to wait anew.
        deadline = job.posted_at + self._times.longest_job
        late, poll_s = self._run.now() + timedelta(seconds=self._times.list_lag_s), self._times.poll_s
        progress = JobProgress()
        while True:
            before, progress = progress, read_events(await self._service.events(job_id))
            on_progress(progress)
            # A failure ends the wait, with the step it may have made; an end counts once its event list is complete.
            if progress.failure is not None:
                step = await self._step_above(job.step_before)  # some fail after their last step
                return self._told(job, progress, "failed", f"the service says that it failed: {progress.failure}", step)
            if progress.ended and (progress.all_seen(before) or self._run.now() > late):
                return await self._weigh(job, progress)
            # Only a job that still runs can be overdue; the list lag counts from its end.
            if not progress.ended:
                late = self._run.now() + timedelta(seconds=self._times.list_lag_s)
                if self._run.now() > deadline:
                    raise TrainingPaused(
                        f"Job {job.job_id} of {_of(job)} has not ended within {self._times.longest_job.total_seconds() / 60:g} minutes. "
                        f"It may still train, so nothing else is posted to {job.model}; the next run looks again. If you know that it "
                        f"never will end, say so: `babylon-rl batches give-up-job {job.job_id} --reason ...`."
                    )
            await self._pause(poll_s)
            poll_s = min(self._times.longest_poll_s, poll_s * 1.5)

    async def _weigh(self, job: RemoteJob, progress: JobProgress) -> RemoteJob:
        """Decide whether an ended job counts.

        Its step must have advanced, and its events must not report zero sequences or a loss that is not finite.
        """
        # Looked for in any case: a step that no record names would stop the next training as somebody else's.
        step = await self._step_above(job.step_before)
        why = "it ended without training a sequence" if progress.sequences == 0 else _against(progress.sequences, progress.loss)
        if why is None and step is None:
            why = f"it ended, and the model's step stayed at {job.step_before}"
        elif why is None and await self._moved_too_far(job):
            why = MOVED_TOO_FAR
        return self._told(job, progress, "trained" if why is None else "failed", why, step)

    async def _made(self, job: RemoteJob) -> RemoteJob | None:
        """A post without an id as it has ended, by a new step, or None."""
        newest, metrics = await self._service.newest()
        if newest <= job.step_before:
            return None
        sequences, loss = of_checkpoint(metrics)
        why = MOVED_TOO_FAR if await self._moved_too_far(job) else _against(sequences, loss)
        state: JobState = "trained" if why is None else "failed"
        return self._ended(job, state, why, step_after=newest, sequences=sequences, loss=loss if why is None else None)

    async def _wait_for_step(self, job: RemoteJob) -> RemoteJob:
        """Wait for the step or id of a post without an id, or time out.

        That is the longest job time; after an error or a cut connection, which may have come after acceptance, twice the time that jobs
        take at this service.
        """
        longest = self._times.longest_job
        if job.error is not None:
            usual = write_ahead.usual_duration(self._run.connection, job.service)
            self._run.connection.commit()
            longest = min(longest, 2 * (self._times.first_job if usual is None else usual))
        # The list may show a step later than the job ended; giving up sooner would post, and pay, twice.
        deadline = job.posted_at + longest + timedelta(seconds=self._times.list_lag_s)
        poll_s = self._times.poll_s
        while True:
            current = self._again(job)
            if current.state != "posting":
                return current
            last = self._run.now() > deadline  # before the request: a slow answer is no denial
            ended = await self._made(job)
            if ended is None and last:
                ended = self._ended(job, "lost", f"{current.error or 'the post was not answered'}, and the step never moved")
            if ended is not None:
                return self._end(ended)
            await self._pause(poll_s)
            poll_s = min(self._times.longest_poll_s, poll_s * 1.5)

    async def _settle_others(self, job: RemoteJob) -> None:
        """Wait for the end of another iteration's job on this model, whichever batch posted it."""
        other = write_ahead.live_job(self._run.connection, job.service, job.model)
        if other is None or (other.batch_id, other.iteration) == (job.batch_id, job.iteration):
            return
        if other.batch_state != "failed" and other.batch_id != job.batch_id:
            raise BatchConflict(
                f"{other.batch_id} has a job on {job.model} that has not ended, and has not ended itself. "
                f"Finish it with `babylon-rl train --batch {other.batch_id}`, or cancel it."
            )
        # The job of a failed or cancelled batch, too, is followed to its end: until then the model may still move by a step.
        while other is not None and other.live:
            other = await self._settle(other, lambda progress: None)

    async def _stand_at(self, step: int) -> None:
        """Ensure that the model is at ``step``: delete steps of failed batches, refuse any other."""
        # Classify the jobs above `step`: of failed batches (deletable), without a known step, and of published versions (never deleted).
        above = write_ahead.jobs_above(self._run.connection, self._service.address, self._service.model_name, step)
        for job in above:
            if job.batch_state not in ("failed", "completed") and job.batch_id != self._run.batch_id:
                raise BatchConflict(
                    f"{job.batch_id} has trained steps of {job.model} and has not ended. "
                    f"Finish it with `babylon-rl train --batch {job.batch_id}`, or cancel it."
                )
        ours = [job for job in above if job.batch_state == "failed"]
        made = {job.step_after for job in ours if job.step_after is not None}
        silent = [job for job in ours if job.step_after is None and job.state in ("lost", "expired")]  # each may have made one more
        published = {job.step_after: job.batch_id for job in above if job.batch_state == "completed" and job.state == "trained"}
        until = self._run.now() + timedelta(seconds=self._times.list_lag_s)
        deleted: set[int] = set()
        while True:
            shown = set(await self._service.steps())
            extra = {number for number in shown if number > step} | (made - deleted)
            # Steps of versions that are no parent, and steps that no job explains, need a person.
            if versions := [published[number] for number in sorted(extra & published.keys())]:
                raise CheckpointError(_given_up(self._service.model_name, max(shown), step, versions))
            unexplained = (extra | deleted) - made
            if len(unexplained) > len(silent):
                late = write_ahead.late_jobs(self._run.connection, self._service.address, self._service.model_name)
                raise CheckpointError(_foreign(self._service.model_name, max(shown), step, late))
            # Delete what failed batches made, then look again: the list may lag behind.
            if extra - deleted:
                await self._service.delete(sorted(extra))
                self._at("steps deleted")
                deleted |= extra
            elif not extra and (step == 0 or step in shown):
                break
            if self._run.now() > until:
                raise CheckpointError(
                    f"{self._service.model_name} is at step {max(shown, default=0)}, and this training continues from step {step}, which "
                    "the service does not list. Restore it, or mark the version as failed in trained_models to continue from the one "
                    "before."
                )
            await self._pause(self._times.poll_s)
        gone = [job for job in ours if job.step_after in deleted] + silent[: len(unexplained)]
        if gone:
            write_ahead.discard_jobs(self._run.connection, gone, self._run.now())

    async def _step_above(self, step: int) -> int | None:
        until = self._run.now() + timedelta(seconds=self._times.list_lag_s)
        while True:
            last = self._run.now() > until
            newest, _ = await self._service.newest()
            if newest > step:
                return newest
            if last:
                return None
            await self._pause(self._times.poll_s)

    async def _moved_too_far(self, job: RemoteJob) -> bool:
        """True when more new steps exist than posts of this iteration may have made."""
        may_have_made = sum(post.state in ("posting", "running", "lost") for post in self._posts(job))
        return sum(number > job.step_before for number in await self._service.steps()) > max(1, may_have_made)

    def _posts(self, job: RemoteJob) -> list[RemoteJob]:
        return [post for post in write_ahead.read_jobs(self._run.connection, job.batch_id) if post.iteration == job.iteration]

    def _lost(self, job: RemoteJob) -> RemoteJob | None:
        """Return a post given up before its step, if no other can have made that."""
        posts = {post.state: post for post in self._posts(job)}
        return posts.get("lost") if posts.keys() <= {"lost", "refused"} else None

    def _told(self, job: RemoteJob, progress: JobProgress, state: JobState, error: str | None, step: int | None) -> RemoteJob:
        loss = progress.loss if progress.loss is not None and math.isfinite(progress.loss) else None
        counts = {"sequences": progress.sequences, "trainable_tokens": progress.tokens or None}
        return self._end(self._ended(job, state, error, step_after=step, loss=loss, metrics=progress.metrics, **counts))

    def _ended(self, job: RemoteJob, state: JobState, error: str | None, **told: Any) -> RemoteJob:
        """The job as it has ended; counts that are not told stay as posted."""
        known = {name: value for name, value in told.items() if value is not None}
        return replace(job, state=state, ended_at=self._run.now(), error=error, **known)

    def _end(self, job: RemoteJob) -> RemoteJob:
        self._at("end seen")
        write_ahead.end_job(self._run.connection, job)
        self._at("end written")
        return self._again(job)

    def _again(self, job: RemoteJob) -> RemoteJob:
        current = write_ahead.newest_job(self._run.connection, job.batch_id, job.iteration)
        self._run.connection.commit()
        if current is None:
            raise BatchConflict(f"The record of {_of(job)} is gone: its batch was deleted.")
        return current

    def _keep_limit(self) -> None:
        if self._run.now() - self._run.began_at > self._times.whole:
            raise TrainingPaused(
                f"{self._run.batch_id} has run for more than {self._times.whole.total_seconds() / 3600:g} hours "
                "(TRAINING_TIME_LIMIT_HOURS), and nothing more is posted. What is trained is kept: raise the limit and run "
                "`babylon-rl train`, or cancel the batch."
            )

    async def _pause(self, seconds: float) -> None:
        """Wait with heartbeats: a service may ask for long, and the batch may end."""
        left_s = seconds
        while True:
            self._run.beat()
            await asyncio.sleep(min(left_s, LONGEST_SLEEP_S))
            left_s -= LONGEST_SLEEP_S
            if left_s <= 0:
                return


def _against(sequences: int | None, loss: float | None) -> str | None:
    """Return why a job that made a step does not count; None without contrary evidence."""
    if sequences == 0:
        return "it made a step without training a sequence"
    return None if loss is None or math.isfinite(loss) else "its loss is not finite"


def _of(job: RemoteJob) -> str:
    return f"iteration {job.iteration} of {job.batch_id}"


def failure_of(job: RemoteJob) -> TrainingError:
    message = f"The job of {_of(job)} at {job.service} does not count: {job.error or job.state}."
    if job.error is not None and "loss is not finite" in job.error:
        return Diverged(f"{message} Nothing was published. Lower LEARNING_RATE.")
    return TrainingError(f"{message} Freeze a new batch with `babylon-rl train`.")


def _given_up(model: str, shown: int, step: int, batches: Sequence[str]) -> str:
    return (
        f"{model} is at step {shown}, and this training continues from step {step}: the steps above are of versions that failed, were "
        f"refused, or are not deployed ({', '.join(dict.fromkeys(batches))}). To continue from the newest, `babylon-rl models deploy` it; "
        "to give them up, delete their steps at the service. Then train again; this pipeline deletes no step of a version."
    )


def _foreign(model: str, shown: int, step: int, late: Sequence[RemoteJob]) -> str:
    given_up = f", or a job that was given up has ended late ({', '.join(sorted({_of(job) for job in late}))})" if late else ""
    return (
        f"{model} is at step {shown}, and this line's newest version at step {step}: somebody else trained it{given_up}. "
        "Set ART_MODEL_NAME to a name of this pipeline's own, or delete the steps that are not its."
    )
