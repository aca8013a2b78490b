"""Package openpipe-art: its capabilities, sequences as its groups, and evidence of training.

An hour is a group, an episode a trajectory, an LLM call a history. Capabilities are read from function signatures, because versions and
backends differ: 0.5.18 (the newest for Python 3.11) trains a text without log-probabilities on a GPU only; from 0.5.20 (Python 3.12) the
service does too; 0.5.23 requires a ``run_name``, which replaces ``name`` as the model's name on the wire.

ART computes the advantages from the rewards of a group's trajectories and averages an episode's loss over its tokens, as this package
does. Every episode of an iteration is therefore sent, also those that cannot train: without them the group mean would differ. Episodes
that left the batch earlier are not in ART's mean.

ART's train() returns or raises independently of the outcome: the model's step and the events of a job tell it.
"""

import inspect
import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from babylon_rl.chats import is_cut, plain_messages
from babylon_rl.models.checkpoints import BaseIdentity, files_identity
from babylon_rl.reporting.numbers import shortened
from babylon_rl.settings import Settings, TrainingSettings
from babylon_rl.training.backends.base_tokens import BaseTokens, TokenLogprobs
from babylon_rl.training.backends.protocol import RunContext, Trainer, TrainPlan, TrainSequence

LEARNING_RATE = 5e-6
NO_ADVANTAGE = "in a group whose episodes here all have the same score"
CUT_WITHOUT_IDS = "a cut answer without recorded token ids, after which an end would be trained"
EARLIER_ANSWERS = "a prompt with earlier answers, which would be trained too"
WITHOUT_LOGPROBS = "allow_training_without_logprobs"
RUN_NAME = "run_name"
FIRST_WITHOUT_LOGPROBS = "0.5.20"
LOSSES = ("loss", "policy_loss", "loss/train")
SEQUENCES = ("num_sequences", "num_gradient_steps", "data/step_num_gradient_steps")
TOKENS = ("num_trainable_tokens", "train_tokens", "data/step_trainer_tokens", "data/step_trainable_assistant_tokens")
NAMES = {"grad_norm": "gradientNorm", "kl_div": "kl", "kl_policy_ref": "kl", "entropy": "entropy", "learning_rate": "learningRate"}


@dataclass(frozen=True, slots=True)
class Installed:
    """Parameters of a backend's ``train`` and of a trainable model; the version is for messages."""

    version: str
    train: frozenset[str]
    model: frozenset[str]

    @property
    def trains_without_logprobs(self) -> bool:
        """True when texts recorded without log-probabilities can be trained (at a ratio of 1)."""
        return WITHOUT_LOGPROBS in self.train

    def train_arguments(self, settings: TrainingSettings, *, without_logprobs: bool) -> dict[str, Any]:
        wanted: dict[str, Any] = {"learning_rate": settings.learning_rate or LEARNING_RATE, "kl_penalty_coef": settings.kl_penalty}
        return self.accepted(wanted | ({WITHOUT_LOGPROBS: True} if without_logprobs else {}))

    def accepted(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in arguments.items() if name in self.train}

    def model_arguments(self, name: str) -> dict[str, str]:
        """Return arguments that name a model the same on the wire in every version."""
        return {"name": name} | ({RUN_NAME: name} if RUN_NAME in self.model else {})

    def __str__(self) -> str:
        return f"openpipe-art {self.version} on Python {platform.python_version()}"


class ArtTrainer(Trainer):
    """Trainer for BASE_MODEL by openpipe-art, here or at its service."""

    def __init__(self, settings: Settings) -> None:
        self.base_model = settings.base_model
        self._settings = settings
        self._base = BaseTokens(settings, settings.base_model)
        self._run: RunContext | None = None

    def base_identity(self) -> BaseIdentity:
        return files_identity(self._base.directory, self.base_model)

    def tokenizer_dir(self) -> Path | None:
        return self._base.directory

    def hyperparameters(self, generation: int) -> dict[str, Any]:
        return {"learning_rate": self._settings.learning_rate or LEARNING_RATE}


def load_art() -> Any:
    """Import the package `art` without network access."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # read at import: without it a table comes from the net
    try:
        from transformers import masking_utils
    except ImportError:  # no torch here, and nothing to restore
        import art

        return art
    untouched = masking_utils._preprocess_mask_arguments
    import art

    masking_utils._preprocess_mask_arguments = untouched  # the import breaks it for the locked version
    return art


def installed(train: Callable[..., Any], model: Callable[..., Any]) -> Installed:
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("openpipe-art")
    except PackageNotFoundError:
        number = "of an unknown version"
    return Installed(number, frozenset(inspect.signature(train).parameters), frozenset(inspect.signature(model).parameters))


@dataclass(frozen=True, slots=True)
class SentCall:
    """One LLM call with its recorded tokens, or the reason ``lacking`` why it has none."""

    sequence: TrainSequence
    tokens: TokenLogprobs | None
    lacking: str = ""

    @property
    def plain(self) -> list[dict[str, str]]:
        """Prompt in the form that ART takes: text only."""
        return plain_messages(self.sequence.messages)


@dataclass(frozen=True, slots=True)
class SentEpisode:
    window: str
    agent_id: str
    reward: float
    calls: Sequence[SentCall]


def sent_groups(sequences: Sequence[TrainSequence], base: BaseTokens) -> list[list[SentEpisode]]:
    """Build the groups of an iteration, one per window or part of one, newest window first."""
    # Sequences are collected by episode first, then episodes by group; -1 stands for the whole window.
    episodes: dict[tuple[str, int, str], list[TrainSequence]] = {}
    for sequence in sequences:
        part = -1 if sequence.part is None else sequence.part
        episodes.setdefault((sequence.window, part, sequence.agent_id), []).append(sequence)
    groups: dict[tuple[str, int], list[SentEpisode]] = {}
    for (window, part, agent_id), own in sorted(episodes.items()):
        recorded = [(sequence, base.recorded(sequence)) for sequence in own]
        calls = [SentCall(call, None, found) if isinstance(found, str) else SentCall(call, found) for call, found in recorded]
        reward = own[0].advantage if own[0].score is None else own[0].score
        groups.setdefault((window, part), []).append(SentEpisode(window, agent_id, reward, calls))
    return [groups[key] for key in sorted(groups, reverse=True)]


def count_groups(groups: Sequence[Sequence[SentEpisode]], base: BaseTokens, without_logprobs: bool, *, judged: bool = True) -> TrainPlan:
    """Plan what ART trains of these groups.

    An episode at its group's mean trains nothing; neither does a call without log-probabilities, unless that is allowed. With ``judged``
    False there are no rewards yet, and every group is assumed to have a spread.
    """
    sequences = 0
    tokens = Counter({group[0].window: 0 for group in groups})
    untrained: Counter[str] = Counter()
    trajectories = set[str]()
    for group in groups:
        mean = fmean(episode.reward for episode in group)
        for episode in group:
            for call in episode.calls:
                level = judged and abs(episode.reward - mean) < 1e-12
                reason = NO_ADVANTAGE if level else _why_not(call, without_logprobs)
                if reason:
                    untrained[reason] += 1
                else:
                    sequences += 1
                    trajectories.add(call.sequence.trajectory_id)
                    tokens[episode.window] += len(call.tokens) if call.tokens is not None else base.answer_tokens(call.sequence)
    return TrainPlan(tokens, sequences, dict(untrained), trajectories=frozenset(trajectories))


def art_groups(groups: Sequence[Sequence[SentEpisode]], batch_id: str, iteration: int, without_logprobs: bool) -> list[Any]:
    """Build art.TrajectoryGroup objects, labelled with batch, iteration, window and trajectories."""
    art, made = load_art(), []
    for group in groups:
        marks: dict[str, Any] = {"batchId": batch_id, "iteration": iteration, "window": group[0].window}
        made.append(art.TrajectoryGroup([_trajectory(art, episode, marks, without_logprobs) for episode in group], metadata=marks))
    return made


def _trajectory(art: Any, episode: SentEpisode, marks: Mapping[str, Any], without_logprobs: bool) -> Any:
    training = [call for call in episode.calls if not _why_not(call, without_logprobs)]
    # An episode that trains nothing still counts in its group's mean; its first prompt stands for it.
    prompt = [message for message in episode.calls[0].plain if message["role"] != "assistant"]
    histories = [_history(call) for call in training] or [prompt]
    trajectory_ids = sorted({call.sequence.trajectory_id for call in episode.calls})
    return art.Trajectory(
        messages_and_choices=histories[0],
        additional_histories=[{"messages_and_choices": history} for history in histories[1:]],  # the class's name differs by version
        reward=episode.reward,
        metadata={**marks, "agentId": episode.agent_id, "trajectoryIds": ",".join(trajectory_ids)},
    )


def _history(call: SentCall) -> list[Any]:
    response = call.sequence.response
    if call.tokens is None:
        return [*call.plain, {"role": "assistant", "content": response}]
    # ART recognises recorded tokens by the form of an OpenAI choice with logprobs.
    from openai.types.chat.chat_completion import Choice

    # Without bytes: ART decodes the first token's, and a token may be part of a character.
    content: list[dict[str, Any]] = [
        {"token": f"token_id:{token}", "logprob": value, "bytes": None, "top_logprobs": []} for token, value in call.tokens
    ]
    reason = call.sequence.finish_reason or "stop"  # the form needs one: of what was recorded without it nobody knows another
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": response}, "logprobs": {"content": content}}
    return [*call.plain, Choice.model_validate(choice)]


def _why_not(call: SentCall, without_logprobs: bool) -> str:
    if not without_logprobs:
        return call.lacking
    if call.tokens is None and is_cut(call.sequence.finish_reason):
        return CUT_WITHOUT_IDS
    # Under this flag ART trains every assistant message of a history, not only the last.
    return EARLIER_ANSWERS if any(message.get("role") == "assistant" for message in call.sequence.messages) else ""


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event of a job: training_started, gradient_step, training_ended or training_failed."""

    id: str
    type: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GradientStep:
    loss: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Progress of a job by its ``seen`` events; ``announced`` is None where a service does not count sequences."""

    seen: int = 0
    announced: int | None = None
    steps: tuple[GradientStep, ...] = ()
    ended: bool = False
    failure: str | None = None
    tokens: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def sequences(self) -> int | None:
        """Number of trained sequences. 0 without a gradient step, whatever was announced; None where the service shows neither."""
        if self.steps:
            return max(self.announced or 0, len(self.steps))
        return None if self.announced is None else 0

    @property
    def loss(self) -> float | None:
        """Mean loss; NaN when one loss is not finite, None without a step."""
        losses = [step.loss for step in self.steps]
        return None if not losses else fmean(losses) if all(math.isfinite(loss) for loss in losses) else math.nan

    def all_seen(self, before: "JobProgress") -> bool:
        """Check that the event list of an ended job is complete.

        Some services show events late, and not every one has a gradient step for each sequence. A job that counts its sequences and shows
        no step at all is not judged by one more look.
        """
        if self.announced is not None and len(self.steps) >= self.announced:
            return self.ended
        return self.ended and self.seen == before.seen and self.sequences != 0


def read_events(events: Iterable[JobEvent]) -> JobProgress:
    """Fold the events of a job; duplicates count once."""
    by_id = {event.id: event for event in events}
    announced: int | None = None
    steps: list[GradientStep] = []
    failure: str | None = None
    ended, tokens = False, 0
    for event in by_id.values():
        if event.type == "training_started":
            count = _number(event.data, SEQUENCES)
            announced = None if count is None else int(count)
        elif event.type == "gradient_step":
            loss = _number(event.data, LOSSES)
            tokens += int(_number(event.data, TOKENS) or 0)
            steps.append(GradientStep(math.nan if loss is None else loss, _named(event.data)))
        elif event.type == "training_ended":
            ended = True
        elif event.type == "training_failed":
            failure = shortened(str(event.data.get("error_message") or "the service gave no reason"), 500)
    names = sorted({name for step in steps for name in step.metrics})
    means = {name: fmean(step.metrics[name] for step in steps if name in step.metrics) for name in names}
    return JobProgress(len(by_id), announced, tuple(steps), ended, failure, tokens, means)


def of_checkpoint(metrics: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """Return (sequences, loss) from a checkpoint's own metrics, None where they are missing.

    At Weights & Biases these are only the values that a client logged; a client that died logged none.
    """
    sequences = _number(metrics, SEQUENCES + TOKENS)
    return None if sequences is None else int(sequences), _number(metrics, LOSSES)


def _named(data: Mapping[str, Any]) -> dict[str, float]:
    known = {name: value for name, value in data.items() if name not in (*LOSSES, *TOKENS) and isinstance(value, int | float)}
    return {NAMES.get(name, name): float(value) for name, value in known.items() if math.isfinite(value)}


def _number(data: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    for name in names:
        value = data.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None
