"""The recorder's calls that only remember: they touch memory alone, never wait, and are the same for threads and for tasks.

Any number of agents share one recorder; a trajectory belongs to the agent that began it.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from babylon_rl.errors import UsageError
from babylon_rl.recorder.rows import Recording
from babylon_rl.recorder.trajectory import OpenTrajectory, Unkept
from babylon_rl.recorder.values import label
from babylon_rl.windows import is_window_id, window_of

_BENCHMARK = "benchmark-"
_STATE_NAMES = {
    "balance": "agentBalance", "pnl": "agentPnL", "openPositions": "openPositions", "open_positions": "openPositions",
}  # fmt: skip
_ACTION_NAMES = {"type": "actionType", "params": "parameters"}
_NOT_KEPT = Unkept()


def new_uuid() -> str:
    """A fresh id for a trajectory or a row."""
    return str(uuid4())


class RecorderCalls:
    """What every recorder does in memory. Clock, ids and sampling rate (the share of trajectories kept, 0..1) are arguments."""

    def __init__(self, new_id: Callable[[], str], clock: Callable[[], datetime], sampling_rate: float) -> None:
        self._new_id, self._clock, self._sampling = new_id, clock, sampling_rate
        self._open: dict[str, OpenTrajectory | Unkept] = {}

    def start_trajectory(self, agent_id: str, *, window: str | None = None, scenario: str | None = None) -> str:
        """Begin a trajectory and return its id; window and scenario default to the current hour (UTC).

        Whether it is kept is decided here, by a hash of the id; one that is not costs next to nothing.

        Raises:
            UsageError: an agent id or scenario that does not fit its column, or a window that is neither an hour nor ``benchmark-<id>``.
        """
        trajectory_id = label(self._new_id(), "the new id")
        if self._sampling < 1 and random.Random(trajectory_id).random() >= self._sampling:
            self._open[trajectory_id] = _NOT_KEPT
            return trajectory_id
        now = self._now()
        hour = window_of(now) if window is None else label(window, "window", 50)
        if not is_window_id(hour) and not hour.startswith(_BENCHMARK):
            raise UsageError(f"{hour!r} is not a window: give an hour in UTC as YYYY-MM-DDTHH:00, or none for the current one.")
        named = hour if scenario is None else label(scenario, "scenario", 100)
        self._open[trajectory_id] = OpenTrajectory(trajectory_id, label(agent_id, "agent_id"), now, hour, named)
        return trajectory_id

    def start_step(self, trajectory_id: str, *, balance: float, pnl: float, open_positions: float, **extra: Any) -> None:
        """Begin a step in the given state of the agent's account (dollars); ``extra`` is kept under its own names.

        A step that was started and not completed is left out.

        Raises:
            UsageError: the trajectory is not open, or a number is not finite.
        """
        state = {"agentBalance": balance, "agentPnL": pnl, "openPositions": open_positions, **extra}
        self._trajectory(trajectory_id).start_step(self._now(), state)

    def provider_access(self, trajectory_id: str, provider: str, payload: Mapping[str, Any], purpose: str) -> None:
        """Note what a provider told the agent. Raises UsageError: no open step, or a payload that is not JSON."""
        self._trajectory(trajectory_id).provider_access(provider, payload, purpose)

    def llm_call(
        self,
        trajectory_id: str,
        *,
        model: str,
        messages: Sequence[Mapping[str, str]],
        response: str,
        temperature: float,
        max_tokens: int,
        purpose: str = "action",
        action_type: str | None = None,
        latency_ms: float | None = None,
        model_version: str | None = None,
        reasoning: str | None = None,
        top_p: float | None = None,
        response_format: Mapping[str, Any] | None = None,
        logprobs: Any = None,
        tokens: tuple[int, int] | None = None,
    ) -> None:
        """Note one request to a model exactly as it was served; without its prompts nothing trains.

        Args:
            messages: what was asked, in order; texts of system, user and assistant, the user's last.
            purpose: action, reasoning, evaluation, response or other; only action trains by default.
            model_version: of a model of this pipeline, such as v1.0.3.
            response_format: the schema that the answer was constrained to, if any.
            logprobs: the answer's tokens [{"token", "logprob", "tokenId"}], or the endpoint's ``choice.logprobs`` as it came.
            tokens: (prompt, completion) token counts.

        Raises:
            UsageError: no open step, or something that cannot be recorded; the step goes on without this call.
        """
        self._trajectory(trajectory_id).llm_call(
            model=model, messages=messages, response=response, temperature=temperature, max_tokens=max_tokens, purpose=purpose,
            action_type=action_type, latency_ms=latency_ms, model_version=model_version, reasoning=reasoning, top_p=top_p,
            response_format=response_format, logprobs=logprobs, tokens=tokens,
        )  # fmt: skip

    def complete_step(
        self,
        trajectory_id: str,
        action_type: str,
        parameters: Mapping[str, Any],
        *,
        success: bool,
        reward: float,
        result: Mapping[str, Any] | None = None,
        error: str | None = None,
        reasoning: str | None = None,
    ) -> None:
        """End the step with what the agent did and what it brought.

        An ``action_type`` with TRADING, BUY or SELL in it is a trade, one with POST a post, HOLD neither.

        Raises:
            UsageError: no open step, or something that cannot be recorded; the step is then still open.
        """
        action = {"actionType": action_type, "parameters": dict(parameters), "success": success}
        later = {"result": None if result is None else dict(result), "error": error, "reasoning": reasoning}
        said = {key: value for key, value in later.items() if value is not None}
        self._trajectory(trajectory_id).complete_step({**action, **said}, reward)

    def record_step(
        self,
        trajectory_id: str,
        *,
        environment_state: Mapping[str, Any],
        action: Mapping[str, Any],
        reward: float,
        llm_calls: Sequence[Mapping[str, Any]] = (),
        provider_accesses: Sequence[Mapping[str, Any]] = (),
        step_number: int | None = None,
    ) -> None:
        """A whole step in one call: nothing of it is recorded when a part of it cannot be.

        Args:
            environment_state: {"balance", "pnl", "openPositions" (else 0), ...}, or the names of the database.
            action: {"type", "params", "success" (else True), "result", "error"}, or the names of the database.
            llm_calls: keyword arguments of ``llm_call``, one mapping a call.
            provider_accesses: {"provider", "payload", "purpose"} each.
            step_number: taken for the sake of callers that count; steps are numbered from 0 in the order in which they come.

        Raises:
            UsageError: the trajectory is not open, or something cannot be recorded.
        """
        trajectory = self._trajectory(trajectory_id)
        state = {"openPositions": 0, **{_STATE_NAMES.get(name, name): value for name, value in environment_state.items()}}
        named = {_ACTION_NAMES.get(name, name): value for name, value in action.items()}
        for name, given, of in (("agentBalance", state, "balance"), ("agentPnL", state, "pnl"), ("actionType", named, "type")):
            if name not in given:
                raise UsageError(f"The step has no {of!r}: environment_state needs balance and pnl, action needs type.")
        try:
            trajectory.start_step(self._now(), state)
            for access in provider_accesses:
                self.provider_access(trajectory_id, **access)
            for call in llm_calls:
                self.llm_call(trajectory_id, **call)
            said = {key: value for key, value in named.items() if value is not None}
            trajectory.complete_step({"actionType": None, "parameters": {}, "success": True, **said}, reward)
        finally:
            trajectory.abandon_step()

    def _finished(
        self, trajectory_id: str, balance: float | None, pnl: float | None, status: str | None, evaluation: bool,
        game_knowledge: Mapping[str, Any] | None,
    ) -> Recording | None:  # fmt: skip
        ending = {"balance": balance, "pnl": pnl, "status": status, "evaluation": evaluation, "game_knowledge": game_knowledge or {}}
        return self._trajectory(trajectory_id).finished(self._now(), ending, self._new_id)

    def _unfinished(self) -> int:
        return sum(one.kept for one in tuple(self._open.values()))

    def _now(self) -> datetime:
        # a database keeps milliseconds and would round 10:59:59.9996 into the next hour
        now = self._clock()
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    def _trajectory(self, trajectory_id: str) -> OpenTrajectory | Unkept:
        found = self._open.get(trajectory_id)
        if found is None:
            raise UsageError(f"Trajectory {trajectory_id} is not open: it has ended, or start_trajectory was not called.")
        return found


def status_after(kind: type[BaseException] | None) -> str | None:
    """The status of a trajectory whose block was left by an exception of this kind; None without one: it is derived."""
    if kind is None:
        return None
    if issubclass(kind, TimeoutError):
        return "timeout"
    return "error" if issubclass(kind, Exception) else "terminated"
