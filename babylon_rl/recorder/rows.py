"""Rows of a finished trajectory, in the form of the game's own recorder.

Same keys, order and derived columns. Two derived columns are wrong in the game and right here: the game counts no TRADING_DECISION as a
trade, and it counts posts that failed. ``windowId`` is the hour of the start; the game's is the hour of the end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from babylon_rl.errors import UsageError
from babylon_rl.recorder.calls import CheckedCall
from babylon_rl.recorder.values import MOST_IN_INTEGER, dump, mapping, number

STATUSES = ("completed", "completed_with_errors", "terminated", "error", "timeout")
_EPOCH = datetime(1970, 1, 1)


def milliseconds(moment: datetime) -> int:
    """Convert naive UTC to the game's milliseconds since 1970."""
    return round((moment - _EPOCH).total_seconds() * 1000)


@dataclass(frozen=True)
class Recording:
    """One finished trajectory: its row by column name, and the rows of its calls."""

    columns: dict[str, Any]
    calls: tuple[dict[str, Any], ...]

    @property
    def trajectory_id(self) -> str:
        return str(self.columns["trajectoryId"])

    @property
    def size(self) -> int:
        """Approximate number of bytes in its rows."""
        return sum(len(value) for row in (self.columns, *self.calls) for value in row.values() if isinstance(value, str))


@dataclass(frozen=True)
class FinishedStep:
    """A completed step as JSON, around calls that may be left out; and its counted facts."""

    number: int
    timestamp_ms: int
    head: str
    calls: tuple[CheckedCall, ...]
    tail: str
    action_type: str
    success: bool

    def json(self, with_calls: bool) -> str:
        calls = ",".join(call.json for call in self.calls) if with_calls else ""
        return f'{self.head},"llmCalls":[{calls}],{self.tail}'


@dataclass
class OpenStep:
    """The step that an agent has begun: its state, accesses and calls."""

    timestamp_ms: int
    state: str
    accesses: list[str] = field(default_factory=list)
    calls: list[CheckedCall] = field(default_factory=list)


@dataclass
class OpenTrajectory:
    """A trajectory that is recorded; times are naive UTC, ``total`` is the sum of its steps' rewards."""

    trajectory_id: str
    agent_id: str
    started: datetime
    window: str
    scenario: str
    steps: list[FinishedStep] = field(default_factory=list)
    step: OpenStep | None = None
    total: float = 0


def recording_of(
    trajectory: OpenTrajectory, ended: datetime, new_id: Callable[[], str], *, balance: float | None, pnl: float | None, status: str | None,
    evaluation: bool, game_knowledge: Mapping[str, Any] | None,
) -> Recording:  # fmt: skip
    """Build the rows of a trajectory that ends. Raises UsageError: a number, the status or the knowledge cannot be recorded."""
    # metricsJson leaves out missing values, the columns hold NULL.
    final = {
        "finalBalance": None if balance is None else number(balance, "balance"), "finalPnL": None if pnl is None else number(pnl, "pnl"),
    }  # fmt: skip
    if status is not None and status not in STATUSES:
        raise UsageError(f"status is {status!r}: give one of {', '.join(STATUSES)}, or none to have it derived.")
    steps, trajectory_id, window = trajectory.steps, trajectory.trajectory_id, trajectory.window
    trades, posts = _counted(steps, "TRADING", "BUY", "SELL"), _counted(steps, "POST")
    errors = sum(not step.success for step in steps)
    status = status or ("completed_with_errors" if errors else "completed")
    metrics = {
        "episodeLength": len(steps), "finalStatus": status, **{key: value for key, value in final.items() if value is not None},
        "tradesExecuted": trades, "postsCreated": posts, "errorCount": errors,
    }  # fmt: skip
    # The game's recorder always writes these two keys.
    knowledge = {"trueProbabilities": {}, "actualOutcomes": {}, **mapping(game_knowledge or {}, "game_knowledge")}
    # One call that does not fit keeps all calls of the trajectory out of the steps.
    in_steps = all(call.one_prompt for step in steps for call in step.calls)
    # A simulated clock may run backwards; the column is an INTEGER.
    duration = round((ended - trajectory.started).total_seconds() * 1000)
    columns = {
        "id": new_id(), "trajectoryId": trajectory_id, "agentId": trajectory.agent_id, "startTime": trajectory.started, "endTime": ended,
        "durationMs": max(-MOST_IN_INTEGER, min(duration, MOST_IN_INTEGER)), "scenarioId": trajectory.scenario,
        "episodeId": f"{window}-{milliseconds(ended)}", "windowId": window, "windowHours": 1,
        "stepsJson": f"[{','.join(step.json(in_steps) for step in steps)}]",
        "rewardComponentsJson": dump({"environmentReward": trajectory.total}, "reward"), "metricsJson": dump(metrics, "balance or pnl"),
        "metadataJson": dump({"isTrainingData": not evaluation, "gameKnowledge": knowledge}, "game_knowledge"),
        "totalReward": trajectory.total, "episodeLength": len(steps), "finalStatus": status, **final, "tradesExecuted": trades,
        "postsCreated": posts, "isTrainingData": not evaluation, "isEvaluation": evaluation, "usedInTraining": False,
        "createdAt": ended, "updatedAt": ended,
    }  # fmt: skip
    calls = (_call_row(trajectory_id, step, index, call, new_id) for step in steps for index, call in enumerate(step.calls))
    return Recording(columns, tuple(calls))


def _counted(steps: Sequence[FinishedStep], *words: str) -> int:
    return sum(step.success and any(word in step.action_type for word in words) for step in steps)


def _call_row(trajectory_id: str, step: FinishedStep, index: int, call: CheckedCall, new_id: Callable[[], str]) -> dict[str, Any]:
    moment = _EPOCH + timedelta(milliseconds=step.timestamp_ms)
    return {
        "id": new_id(), "trajectoryId": trajectory_id, "stepId": f"{trajectory_id}-step-{step.number}",
        "callId": f"{trajectory_id}-call-{step.number}-{index}", "timestamp": moment, **call.columns, "createdAt": moment,
    }  # fmt: skip
