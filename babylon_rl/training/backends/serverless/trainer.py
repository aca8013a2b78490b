"""Serverless trainer: openpipe-art's training service behind the protocol of trainers.

Before the first post it states what would train and the price. An iteration is one job, trained at most once (runner.py). Its directory
holds a pointer to the step at the service, which agents call.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from babylon_rl.errors import CheckpointError, NothingToTrain
from babylon_rl.interrupts import run_coroutine
from babylon_rl.models.checkpoints import read_remote, write_document
from babylon_rl.services import WANDB
from babylon_rl.settings import Settings
from babylon_rl.store.write_ahead import RemoteJob, newest_job
from babylon_rl.training.backends.openpipe_art import (
    FIRST_WITHOUT_LOGPROBS,
    ArtTrainer,
    Installed,
    JobProgress,
    SentEpisode,
    art_groups,
    count_groups,
    sent_groups,
)
from babylon_rl.training.backends.protocol import (
    SERVERLESS,
    IterationResult,
    OnStep,
    RunContext,
    StepMetrics,
    TrainIteration,
    TrainPlan,
    TrainSequence,
)
from babylon_rl.training.backends.serverless.runner import Boundary, Posting, RemoteJobRunner, Times, failure_of
from babylon_rl.training.backends.serverless.service import ServerlessService, serverless_art

# Settings of training that the service takes under no name.
LONGEST_JOB = timedelta(hours=3)  # then a posted job counts as dead; before, nothing is posted in its place
NEVER_TAKEN = ("batch_size", "gradient_accumulation_steps", "max_grad_norm", "warmup_steps")


class ServerlessTrainer(ArtTrainer):
    """Trainer for BASE_MODEL at the service; ``times`` None takes the settings', ``at`` is called at every boundary (runner.py)."""

    name = SERVERLESS
    service = WANDB

    def __init__(self, settings: Settings, times: Times | None = None, at: Boundary = lambda boundary: None) -> None:
        super().__init__(settings)
        self._times = times or Times(LONGEST_JOB, timedelta(hours=settings.training_time_limit_hours))
        self._at = at

    def hyperparameters(self, generation: int) -> dict[str, Any]:
        return dict.fromkeys(NEVER_TAKEN) | super().hyperparameters(generation)

    def could_train(self, sequences: Sequence[TrainSequence]) -> TrainPlan:
        return self._plan(sequences, judged=False)

    def prepare(self, run: RunContext, sequences: Sequence[TrainSequence]) -> TrainPlan:
        self._run = run
        return self._plan(sequences, judged=True)

    def train(self, iteration: TrainIteration, parent: Path | None, out: Path, on_step: OnStep) -> IterationResult:
        """Train an iteration at most once at the service; a posted job is followed even if its sequences have changed since."""
        assert self._run is not None, "prepare() comes before train()"
        job = newest_job(self._run.connection, iteration.batch_id, iteration.step)
        if job is not None and job.state in ("failed", "expired"):  # whether or not its service can be reached now
            raise failure_of(job)
        return run_coroutine(self._trained(self._run, iteration, parent, out, on_step))

    async def _trained(
        self, run: RunContext, iteration: TrainIteration, parent: Path | None, out: Path, on_step: OnStep,
    ) -> IterationResult:  # fmt: skip
        reported = 0

        # Report each gradient step once: events are read again at every poll.
        def tell(progress: JobProgress) -> None:
            nonlocal reported
            for number, step in enumerate(progress.steps[reported:], start=reported + 1):
                on_step(StepMetrics(iteration.step, number, progress.announced or number, step.loss, progress.tokens, dict(step.metrics)))
            reported = max(reported, len(progress.steps))

        async with ServerlessService(self._settings, self.base_model, self._times.timeout_s, run.beat) as service:
            before = _step_of(parent, service)
            job = RemoteJob(
                iteration.batch_id, iteration.step, 1, self.name, service.address, service.model_name, before, run.now(),
                self._usd(iteration.sequences),
            )  # fmt: skip
            done = await RemoteJobRunner(service, run, self._times, self._at).train(job, lambda: self._post(iteration, service), tell)
            assert done.step_after is not None
            write_document(out, service.remote(done.step_after, done.job_id))
            self._at("pointer written")
            # A step that counts must not fail as one without tokens: where the service tells no number, that of the post stands in.
            tokens = done.trainable_tokens or self._counted(iteration, service)[1].trainable_tokens or done.sequences or 1
        metrics = dict(done.metrics) | {"remoteStep": float(done.step_after), "posts": float(done.attempt)}
        if done.estimated_usd is not None:
            metrics["trainingUsd"] = done.estimated_usd
        return IterationResult(metrics, tokens, done.loss, done.sequences or 0)

    def _post(self, iteration: TrainIteration, service: ServerlessService) -> Posting:
        groups, counted = self._counted(iteration, service)
        if not counted.trainable_tokens:
            cure = _cure(service.installed, counted)
            raise NothingToTrain(f"Iteration {iteration.step} of {iteration.batch_id} has no trainable token. {cure}")
        bare = any(call.tokens is None for group in groups for episode in group for call in episode.calls)
        allow = bare and service.installed.trains_without_logprobs
        sent = art_groups(groups, iteration.batch_id, iteration.step, allow)
        arguments = service.installed.train_arguments(self._settings, without_logprobs=allow)
        return Posting(lambda may_send: service.post(sent, arguments, may_send), counted.sequences, counted.trainable_tokens)

    def _counted(self, iteration: TrainIteration, service: ServerlessService) -> tuple[list[list[SentEpisode]], TrainPlan]:
        groups = sent_groups(iteration.sequences, self._base)
        return groups, count_groups(groups, self._base, service.installed.trains_without_logprobs)

    def _plan(self, sequences: Sequence[TrainSequence], judged: bool) -> TrainPlan:
        art = serverless_art()
        counted = count_groups(sent_groups(sequences, self._base), self._base, art.trains_without_logprobs, judged=judged)
        by_window: dict[str, list[TrainSequence]] = {}
        for sequence in sequences:
            by_window.setdefault(sequence.window, []).append(sequence)
        priced = self._settings.serverless_usd_per_million_tokens is not None and judged
        usd = {window: self._usd(own) or 0.0 for window, own in by_window.items()} if priced else None
        kl = () if "kl_penalty_coef" in art.train else ("kl_penalty",)
        ignored = [name.upper() for name in (*NEVER_TAKEN, *kl)]
        return replace(counted, cure=_cure(art, counted), paid=True, usd=usd, ignored=ignored)

    def _usd(self, sequences: Sequence[TrainSequence]) -> float | None:
        price = self._settings.serverless_usd_per_million_tokens
        if price is None:
            return None
        tokens = sum(self._base.prompt_tokens(sequence.messages) + self._base.answer_tokens(sequence) for sequence in sequences)
        return tokens * price / 1e6


def _step_of(parent: Path | None, service: ServerlessService) -> int:
    if parent is None:
        return 0
    remote = read_remote(parent)
    if remote is None:
        raise CheckpointError(
            f"The parent in {parent} is an adapter of this machine, from which the training service cannot continue. "
            "Set BASE_MODEL to another base to begin a line of its own, or train on this machine (unset WANDB_API_KEY)."
        )
    if (remote.service, remote.model) != (service.address, service.model_name):
        raise CheckpointError(
            f"The parent is {remote.artifact} at {remote.service}, and the settings name {service.model_name} at {service.address}. "
            "Set ART_MODEL_NAME, WANDB_PROJECT, WANDB_ENTITY and SERVERLESS_BASE_URL back to what it was trained with."
        )
    return remote.step


def _cure(art: Installed, counted: TrainPlan) -> str:
    reasons = ", ".join(f"{number} {reason}" for reason, number in counted.untrained.items()) or "no sequence"
    cure = (
        "Record the answers with their logprobs (`recorder.llm_call(..., logprobs=choice.logprobs)`, the endpoint asked with "
        "logprobs=true), or train on this machine: unset WANDB_API_KEY and set TRAIN_RL_LOCAL=true"
    )
    if art.trains_without_logprobs:
        return f"Serverless training finds {reasons}. {cure}."
    return (
        f"Serverless training finds {reasons}; {art} trains a text only with the logprobs that it was served with. {cure}, "
        f"or upgrade to Python 3.12 and openpipe-art {FIRST_WITHOUT_LOGPROBS} or newer, which trains such texts too."
    )
