"""The service's state: models, their checkpoints, and jobs that live by the clock alone, so that they go on when a client dies."""

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from babylon_rl_tests.training.serverless_stand_in.jobs import Job, JobFault, Payload, read_payload

PostFault = Literal["none", "429", "400", "500", "503", "drop_before", "drop_after", "reset_after", "500_after", "garbled_after"]


@dataclass(frozen=True)
class TrainedJob:
    """A job that made a checkpoint: what it trained, and at which step; ``deleted`` once that checkpoint was deleted."""

    job_id: str
    step: int
    trajectories: tuple[tuple[str, int, str], ...]
    deleted: bool


@dataclass
class Checkpoint:
    """A step of a model, shown in lists from ``visible_s`` on."""

    step: int
    visible_s: float
    metrics: dict[str, float]
    job_id: str


@dataclass
class Model:
    """A registered model."""

    id: str
    entity: str
    project: str
    name: str
    base_model: str
    checkpoints: list[Checkpoint] = field(default_factory=list)
    made: list[Checkpoint] = field(default_factory=list)


class Service:
    """``job_s`` is how long a job takes, ``lag_s`` how long a new checkpoint stays out of lists; faults are used up one by one."""

    def __init__(self, vocabulary: int = 1_000_000, job_s: float = 0.0, lag_s: float = 0.0, clock: Callable[[], float] = time.monotonic):
        self.vocabulary, self.job_s, self.lag_s = vocabulary, job_s, lag_s
        self.checkpoint_metrics = True  # False as at Weights & Biases, where only a client's own log stands in a checkpoint's metrics
        self.announces = True  # False: a job's events do not say how many sequences it trains
        self.sequences_a_step = 1  # of its events; 0 shows no gradient step at all
        self.retry_after: Callable[[], str] | None = None  # said with a 429
        self.post_faults: list[PostFault] = []
        self.job_faults: list[JobFault] = []
        self.read_faults: list[int] = []  # statuses that the next reads get
        self.jobs: list[Job] = []
        self.models: dict[str, Model] = {}
        self.requests: list[tuple[str, str]] = []
        self._clock, self._lock, self._numbers = clock, threading.RLock(), itertools.count(1)

    def begin(self) -> None:
        """Forget all models and jobs."""
        with self._lock:
            self.models.clear()
            self.jobs.clear()
            self._numbers = itertools.count(1)

    def create_model(self, body: dict[str, Any]) -> Model:
        with self._lock:
            entity = body.get("entity") or "stand-in"
            for model in self.models.values():
                if (model.entity, model.project, model.name) == (entity, body["project"], body["name"]):
                    return model
            model = Model(f"model-{next(self._numbers)}", entity, body["project"], body["name"], body["base_model"])
            self.models[model.id] = model
            return model

    def foreign_step(self, model_id: str) -> None:
        """A step that another producer trained."""
        self.models[model_id].checkpoints.append(Checkpoint(1, self._clock(), {}, "foreign"))

    def let_go(self) -> None:
        """End the jobs that are late."""
        with self._lock:
            for job in self.jobs:
                job.fault = "none" if job.fault == "late" else job.fault

    def post_job(self, body: dict[str, Any]) -> Job:
        with self._lock:
            config = body.get("experimental_config") or {}
            payload = read_payload(body["trajectory_groups"], config, self.vocabulary)
            fault = self.job_faults.pop(0) if self.job_faults else "none"
            job = Job(
                f"job-{next(self._numbers)}",
                body["model_id"],
                self._clock(),
                self.job_s,
                payload,
                fault,
                config,
                self.announces,
                self.sequences_a_step,
            )
            self.jobs.append(job)
            return job

    def events(self, job_id: str) -> list[dict[str, Any]] | None:
        with self._lock:
            self._settle()
            job = next((job for job in self.jobs if job.id == job_id), None)
            return None if job is None else job.events(self._clock())

    def checkpoints(self, model_id: str) -> list[Checkpoint]:
        """What a list shows now, oldest first."""
        with self._lock:
            self._settle()
            return [one for one in self.models[model_id].checkpoints if self._clock() >= one.visible_s]

    def delete_checkpoints(self, model_id: str, steps: list[int]) -> tuple[int, list[int]]:
        with self._lock:
            self._settle()
            model = self.models[model_id]
            there = [one.step for one in model.checkpoints]
            model.checkpoints = [one for one in model.checkpoints if one.step not in steps]
            return len(there) - len(model.checkpoints), [step for step in steps if step not in there]

    def trained(self) -> list[TrainedJob]:
        """Every job that has made a checkpoint."""
        with self._lock:
            self._settle()
            by_id = {job.id: job for job in self.jobs}
            return [
                TrainedJob(made.job_id, made.step, by_id[made.job_id].payload.trajectories, made not in model.checkpoints)
                for model in self.models.values()
                for made in model.made
            ]

    def running(self) -> int:
        """How many jobs have not ended."""
        with self._lock:
            return sum(not job.over(self._clock()) for job in self.jobs)

    def _settle(self) -> None:
        now_s = self._clock()
        for job in sorted(self.jobs, key=lambda job: job.posted_s + job.duration_s):
            if job.over(now_s) and not job.settled:
                job.settled = True
                if job.trains:
                    self._checkpoint(job)

    def _checkpoint(self, job: Job) -> None:
        model = self.models[job.model_id]
        job.step = max((one.step for one in model.made), default=0) + 1
        metrics = {"loss": job.loss(0), "num_sequences": float(job.payload.sequences)} if self.checkpoint_metrics else {}
        made = Checkpoint(job.step, job.posted_s + job.duration_s + self.lag_s, metrics, job.id)
        model.checkpoints.append(made)
        model.made.append(made)


__all__ = ["Checkpoint", "Job", "Model", "Payload", "PostFault", "Service", "TrainedJob"]
