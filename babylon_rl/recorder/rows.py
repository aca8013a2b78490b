"""Rows of a finished trajectory, in the form of the game's own recorder.

Same keys, order and derived columns. Two derived columns are wrong in the game and right here: the game counts no TRADING_DECISION as a
trade, and it counts posts that failed. ``windowId`` is the hour of the start; the game's is the hour of the end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from babylon_rl.errors import UsageError
from babylon_rl.recorder.calls import CheckedCall
from babylon_rl.recorder.values import MOST_IN_INTEGER, dump, mapping

STATUSES = ("completed", "completed_with_errors", "terminated", "error", "timeout")
_EPOCH = datetime(1970, 1, 1)


def milliseconds(moment: datetime) -> int:
    """Convert naive UTC to the game's milliseconds since 1970."""
    return round((moment - _EPOCH).total_seconds() * 1000)


@dataclass(frozen=True)
class CallRow:
    """One row of llm_call_logs, by column name."""

    columns: dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """One finished trajectory: its row by column name, and the rows of its calls."""

    columns: dict[str, Any]
    calls: tuple[CallRow, ...]

    @property
    def trajectory_id(self) -> str:
        """Id that the recorder gave to the agent."""
        return str(self.columns["trajectoryId"])

    @property
    def size(self) -> int:
        """Approximate number of bytes in its rows."""
        texts = [self.columns, *(call.columns for call in self.calls)]
        return sum(len(value) for columns in texts for value in columns.values() if isinstance(value, str))


@dataclass(frozen=True)
class FinishedStep:
    """A completed step as JSON, with the facts that are counted.

    The JSON is split into head and tail, because the calls between them may be left out.
    """

    number: int
    timestamp_ms: int
    head: str
    calls: tuple[CheckedCall, ...]
    tail: str
    action_type: str
    success: bool

    def json(self, with_calls: bool) -> str:
        """Return the step as JSON text of stepsJson."""
        calls = ",".join(call.json for call in self.calls) if with_calls else ""
        return f'{self.head},"llmCalls":[{calls}],{self.tail}'


@dataclass(frozen=True)
class Ending:
    """End of a trajectory; dollars, None where the agent gave no value.

    Raises:
        UsageError: the status is not one of the contract.
    """

    balance: float | None
    pnl: float | None
    status: str | None
    evaluation: bool
    game_knowledge: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.status is not None and self.status not in STATUSES:
            raise UsageError(f"status is {self.status!r}: give one of {', '.join(STATUSES)}, or none to have it derived.")


def recording_of(
    trajectory_id: str, agent_id: str, window: str, scenario: str, started: datetime, ended: datetime, total: float,
    steps: Sequence[FinishedStep], ending: Ending, new_id: Callable[[], str],
) -> Recording:  # fmt: skip
    """Build the rows of a trajectory.

    ``total`` is the sum of its steps' rewards.

    Raises:
        UsageError: the game knowledge is not JSON.
    """
    trades, posts = _counted(steps, "TRADING", "BUY", "SELL"), _counted(steps, "POST")
    errors = sum(not step.success for step in steps)
    status = ending.status or ("completed_with_errors" if errors else "completed")
    # metricsJson leaves out missing values, the columns hold NULL.
    final = {"finalBalance": ending.balance, "finalPnL": ending.pnl}
    metrics = {
        "episodeLength": len(steps), "finalStatus": status, **{key: value for key, value in final.items() if value is not None},
        "tradesExecuted": trades, "postsCreated": posts, "errorCount": errors,
    }  # fmt: skip
    # The game's recorder always writes these two keys.
    knowledge = {"trueProbabilities": {}, "actualOutcomes": {}, **mapping(ending.game_knowledge, "game_knowledge")}
    # One call that does not fit keeps all calls of the trajectory out of the steps.
    in_steps = all(call.one_prompt for step in steps for call in step.calls)
    # A simulated clock may run backwards; the column is an INTEGER.
    duration = round((ended - started).total_seconds() * 1000)
    columns = {
        "id": new_id(), "trajectoryId": trajectory_id, "agentId": agent_id, "startTime": started, "endTime": ended,
        "durationMs": max(-MOST_IN_INTEGER, min(duration, MOST_IN_INTEGER)), "scenarioId": scenario,
        "episodeId": f"{window}-{milliseconds(ended)}", "windowId": window, "windowHours": 1,
        "stepsJson": f"[{','.join(step.json(in_steps) for step in steps)}]",
        "rewardComponentsJson": dump({"environmentReward": total}, "reward"), "metricsJson": dump(metrics, "balance or pnl"),
        "metadataJson": dump({"isTrainingData": not ending.evaluation, "gameKnowledge": knowledge}, "game_knowledge"),
        "totalReward": total, "episodeLength": len(steps), "finalStatus": status, **final, "tradesExecuted": trades,
        "postsCreated": posts, "isTrainingData": not ending.evaluation, "isEvaluation": ending.evaluation, "usedInTraining": False,
        "createdAt": ended, "updatedAt": ended,
    }  # fmt: skip
    calls = (_call_row(trajectory_id, step, index, call, new_id) for step in steps for index, call in enumerate(step.calls))
    return Recording(columns, tuple(calls))


def _counted(steps: Sequence[FinishedStep], *words: str) -> int:
    return sum(step.success and any(word in step.action_type for word in words) for step in steps)


def _call_row(trajectory_id: str, step: FinishedStep, index: int, call: CheckedCall, new_id: Callable[[], str]) -> CallRow:
    moment = _EPOCH + timedelta(milliseconds=step.timestamp_ms)
    return CallRow({
        "id": new_id(), "trajectoryId": trajectory_id, "stepId": f"{trajectory_id}-step-{step.number}",
        "callId": f"{trajectory_id}-call-{step.number}-{index}", "timestamp": moment, **call.columns, "createdAt": moment,
    })  # fmt: skip
