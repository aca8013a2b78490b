"""The public recorder: what an agent saw, was asked, answered and did, written as the game's own recorder writes it.

A trajectory lives in memory until it ends and is then handed over whole, so an agent that dies leaves nothing half written.
Ids, clock and the place to write to come in as arguments. ``Recording`` objects are plain rows; store/recording.py puts them
into the database.
"""

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from babylon_rl.errors import UsageError
from babylon_rl.windows import window_of

_EPOCH = datetime(1970, 1, 1)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def milliseconds(moment: datetime) -> int:
    """Naive UTC as the game's milliseconds since 1970."""
    return round((moment - _EPOCH).total_seconds() * 1000)


@dataclass(frozen=True)
class CallRow:
    """One row of llm_call_logs, by column name."""

    columns: dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """One finished trajectory: its row by column name, and its calls' rows."""

    columns: dict[str, Any]
    calls: tuple[CallRow, ...]


@dataclass
class _Open:
    agent_id: str
    started: datetime
    window: str
    scenario: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    current: dict[str, Any] | None = None
    game_knowledge: dict[str, Any] = field(default_factory=lambda: {"trueProbabilities": {}, "actualOutcomes": {}})


class TrajectoryRecorder:
    """Records any number of trajectories at once; not thread-safe, one per agent process.

    Args:
        write: takes a finished Recording; called once per kept trajectory.
        new_id: gives decimal snowflake or uuid ids, never the same twice.
        clock: naive UTC now; simulated agents pass simulated time.
        sampling_rate: share of trajectories kept, 0..1, decided by a hash of the id.
    """

    def __init__(
        self, write: Callable[[Recording], None], new_id: Callable[[], str], clock: Callable[[], datetime], sampling_rate: float = 1.0
    ) -> None:
        self._write, self._new_id, self._clock, self._sampling = write, new_id, clock, sampling_rate
        self._open: dict[str, _Open] = {}

    def start_trajectory(self, agent_id: str, *, window: str | None = None, scenario: str | None = None) -> str:
        """Begin a trajectory and return its id; window and scenario default to the current hour."""
        now = self._clock()
        hour = window or window_of(now)
        trajectory_id = self._new_id()
        self._open[trajectory_id] = _Open(agent_id, now, hour, scenario or hour)
        return trajectory_id

    def start_step(self, trajectory_id: str, *, balance: float, pnl: float, open_positions: int, **extra: Any) -> None:
        """Begin a step in the given state of the agent's account (dollars)."""
        trajectory = self._trajectory(trajectory_id)
        moment = milliseconds(self._clock())
        state = {"agentBalance": balance, "agentPnL": pnl, "openPositions": open_positions, **extra, "timestamp": moment}
        trajectory.current = {
            "stepNumber": len(trajectory.steps),
            "timestamp": moment,
            "environmentState": state,
            "providerAccesses": [],
            "llmCalls": [],
        }

    def provider_access(self, trajectory_id: str, provider: str, payload: Mapping[str, Any], purpose: str) -> None:
        """Note what a provider told the agent."""
        self._step(trajectory_id)["providerAccesses"].append({"providerName": provider, "data": dict(payload), "purpose": purpose})

    def llm_call(
        self,
        trajectory_id: str,
        *,
        model: str,
        messages: list[dict[str, str]],
        response: str,
        purpose: str = "action",
        action_type: str | None = None,
        temperature: float = 0.7,
        max_tokens: int = 300,
        latency_ms: float | None = None,
        model_version: str | None = None,
        reasoning: str | None = None,
        response_format: Mapping[str, Any] | None = None,
        logprobs: list[dict[str, Any]] | None = None,
        tokens: tuple[int, int] | None = None,
    ) -> None:
        """Note one request to a model exactly as it was served; without its prompts nothing trains.

        Args:
            response_format: the schema that the answer was constrained to, if any.
            logprobs: the answer's tokens with their log-probabilities as the endpoint returned them.
            tokens: (prompt, completion) token counts.
        """
        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        user = "\n\n".join(message["content"] for message in messages if message["role"] == "user")
        call = {
            "model": model, "modelVersion": model_version, "systemPrompt": _storable(system), "userPrompt": _storable(user),
            "response": _storable(response), "reasoning": None if reasoning is None else _storable(reasoning), "temperature": temperature,
            "maxTokens": max_tokens, "latencyMs": latency_ms, "purpose": purpose, "actionType": action_type,
            "responseFormat": response_format, "logprobs": logprobs,
            "promptTokens": tokens[0] if tokens else None, "completionTokens": tokens[1] if tokens else None,
        }  # fmt: skip
        self._step(trajectory_id)["llmCalls"].append({key: value for key, value in call.items() if value is not None})

    def complete_step(self, trajectory_id: str, action_type: str, parameters: Mapping[str, Any], *, success: bool, reward: float,
                      result: Mapping[str, Any] | None = None, error: str | None = None) -> None:  # fmt: skip
        """End the step with what the agent did and what it brought."""
        trajectory, step = self._trajectory(trajectory_id), self._step(trajectory_id)
        action: dict[str, Any] = {"actionType": action_type, "parameters": dict(parameters), "success": success}
        if result is not None:
            action["result"] = dict(result)
        if error is not None:
            action["error"] = error
        trajectory.steps.append({**step, "action": action, "reward": reward})
        trajectory.current = None

    def end_trajectory(
        self, trajectory_id: str, *, balance: float, pnl: float, status: str | None = None, evaluation: bool = False
    ) -> None:
        """End the trajectory and hand it over; a step that was started and not completed is left out.

        ``status`` None is completed, or completed_with_errors when a step failed.

        Raises:
            UsageError: something recorded is not JSON, such as NaN: the row would be rejected when it is read.
        """
        trajectory = self._trajectory(trajectory_id)
        del self._open[trajectory_id]
        if random.Random(trajectory_id).random() < self._sampling:
            self._write(_recording(trajectory_id, trajectory, self._clock(), self._new_id, balance, pnl, status, evaluation))

    def _trajectory(self, trajectory_id: str) -> _Open:
        if trajectory_id not in self._open:
            raise UsageError(f"Trajectory {trajectory_id} is not open: it has ended, or start_trajectory was not called.")
        return self._open[trajectory_id]

    def _step(self, trajectory_id: str) -> dict[str, Any]:
        step = self._trajectory(trajectory_id).current
        if step is None:
            raise UsageError(f"Trajectory {trajectory_id} has no open step: call start_step first.")
        return step


def _storable(text: str) -> str:
    """Postgres holds neither NUL nor half a surrogate pair, and a model can answer both: U+FFFD stands for them."""
    return _UNSTORABLE.sub("\ufffd", text)


def _dump(value: Any) -> str:
    try:
        return _storable(json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False))
    except ValueError as error:
        raise UsageError(f"What was recorded is not JSON ({error}): give finite numbers.") from None


def _counted(steps: list[dict[str, Any]], *names: str) -> int:
    return sum(step["action"]["success"] and any(name in step["action"]["actionType"] for name in names) for step in steps)


def _recording(
    trajectory_id: str, one: _Open, ended: datetime, new_id: Callable[[], str], balance: float, pnl: float,
    status: str | None, evaluation: bool,
) -> Recording:  # fmt: skip
    steps = one.steps
    total = sum(step["reward"] for step in steps)
    trades, posts = _counted(steps, "TRADING", "BUY", "SELL"), _counted(steps, "POST")
    errors = sum(not step["action"]["success"] for step in steps)
    status = status or ("completed_with_errors" if errors else "completed")
    metrics = {
        "episodeLength": len(steps), "finalStatus": status, "finalBalance": balance, "finalPnL": pnl, "tradesExecuted": trades,
        "postsCreated": posts, "errorCount": errors,
    }  # fmt: skip
    columns = {
        "id": new_id(), "trajectoryId": trajectory_id, "agentId": one.agent_id, "startTime": one.started, "endTime": ended,
        "durationMs": round((ended - one.started).total_seconds() * 1000), "scenarioId": one.scenario,
        "episodeId": f"{one.window}-{milliseconds(ended)}", "windowId": one.window, "windowHours": 1, "stepsJson": _dump(steps),
        "rewardComponentsJson": _dump({"environmentReward": total}), "metricsJson": _dump(metrics),
        "metadataJson": _dump({"isTrainingData": not evaluation, "gameKnowledge": one.game_knowledge}), "totalReward": total,
        "episodeLength": len(steps), "finalStatus": status, "finalBalance": balance, "finalPnL": pnl, "tradesExecuted": trades,
        "postsCreated": posts, "isTrainingData": not evaluation, "isEvaluation": evaluation, "usedInTraining": False, "createdAt": ended,
        "updatedAt": ended,
    }  # fmt: skip
    calls = tuple(_call_row(trajectory_id, step, index, call, new_id) for step in steps for index, call in enumerate(step["llmCalls"]))
    return Recording(columns, calls)


def _call_row(trajectory_id: str, step: dict[str, Any], index: int, call: dict[str, Any], new_id: Callable[[], str]) -> CallRow:
    number = step["stepNumber"]
    moment = _EPOCH + timedelta(milliseconds=step["timestamp"])
    metadata = {key: call[key] for key in ("modelVersion", "responseFormat", "logprobs") if key in call}
    prompt, completion = call.get("promptTokens"), call.get("completionTokens")
    return CallRow({
        "id": new_id(), "trajectoryId": trajectory_id, "stepId": f"{trajectory_id}-step-{number}",
        "callId": f"{trajectory_id}-call-{number}-{index}", "timestamp": moment, "latencyMs": round(call.get("latencyMs") or 0),
        "model": call["model"], "purpose": call["purpose"], "actionType": call.get("actionType"), "systemPrompt": call["systemPrompt"],
        "userPrompt": call["userPrompt"],
        "messagesJson": _dump([{"role": "system", "content": call["systemPrompt"]}, {"role": "user", "content": call["userPrompt"]}]),
        "response": call["response"], "reasoning": call.get("reasoning"), "temperature": call["temperature"],
        "maxTokens": call["maxTokens"], "topP": None, "promptTokens": prompt, "completionTokens": completion,
        "totalTokens": prompt + completion if prompt is not None and completion is not None else None, "metadata": _dump(metadata),
        "createdAt": moment,
    })  # fmt: skip
