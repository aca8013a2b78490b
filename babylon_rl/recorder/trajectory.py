"""One open trajectory in memory: its completed steps and the current one.

Values become text when they are given, so that later changes by the agent have no effect, and a value that cannot be recorded is refused
at its own call. ``UnsampledTrajectory`` is a trajectory left out by sampling: it accepts the same calls and keeps nothing.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from babylon_rl.errors import UsageError
from babylon_rl.recorder.calls import CheckedCall, make_call
from babylon_rl.recorder.rows import Ending, FinishedStep, Recording, milliseconds, recording_of
from babylon_rl.recorder.values import dump, label, number, text, truth


@dataclass
class _Step:
    """The current step of the agent."""

    timestamp_ms: int
    state: str
    accesses: list[str] = field(default_factory=list)
    calls: list[CheckedCall] = field(default_factory=list)


class UnsampledTrajectory:
    """Null object for a trajectory that is not recorded."""

    sampled = False

    def start_step(self, now: datetime, state: Mapping[str, Any]) -> None:
        """Do nothing."""

    def provider_access(self, provider: str, payload: Mapping[str, Any], purpose: str) -> None:
        """Do nothing."""

    def llm_call(self, **call: Any) -> None:
        """Do nothing."""

    def complete_step(self, action: Mapping[str, Any], reward: float) -> None:
        """Do nothing."""

    def abandon_step(self) -> None:
        """Do nothing."""

    def finished(self, ended: datetime, ending: Mapping[str, Any], new_id: Callable[[], str]) -> Recording | None:
        """Return None: there is nothing to write."""
        return None


@dataclass
class OpenTrajectory:
    """A recorded trajectory; times are naive UTC."""

    trajectory_id: str
    agent_id: str
    started: datetime
    window: str
    scenario: str
    _steps: list[FinishedStep] = field(default_factory=list)
    _current: _Step | None = None
    _total: float = 0

    sampled = True

    def start_step(self, now: datetime, state: Mapping[str, Any]) -> None:
        """Begin a step in ``state``; a step still open is left out.

        Raises:
            UsageError: a number is not finite, or the state is not JSON.
        """
        self._current = None
        # The checked numbers come first and cannot be replaced by extra fields.
        checked = {name: number(state[name], name) for name in ("agentBalance", "agentPnL", "openPositions")}
        moment = milliseconds(now)
        self._current = _Step(moment, dump({**checked, **state, **checked, "timestamp": moment}, "the state"))

    def provider_access(self, provider: str, payload: Mapping[str, Any], purpose: str) -> None:
        """Record the data that a provider gave the agent.

        Raises:
            UsageError: no open step, or a payload that is not JSON.
        """
        access = {"providerName": label(provider, "provider"), "data": dict(payload), "purpose": text(purpose, "purpose")}
        self._step().accesses.append(dump(access, "payload"))

    def llm_call(self, **call: Any) -> None:
        """Record a model request.

        Raises:
            UsageError: no open step, or a value that cannot be recorded.
        """
        self._step().calls.append(make_call(**call))

    def complete_step(self, action: Mapping[str, Any], reward: float) -> None:
        """End the step with its action.

        Raises:
            UsageError: no open step, or a value that cannot be recorded; the step is then still open.
        """
        # Every check comes before the first change, so a refused value leaves the step open.
        step, earned = self._step(), number(reward, "reward")
        if not math.isfinite(self._total + earned):
            raise UsageError("The rewards' sum is not a finite number any more.")
        action_type, success = label(action["actionType"], "action_type"), truth(action["success"], "success")
        moment, index = step.timestamp_ms, len(self._steps)
        # The same key order as the game's recorder; the calls come between head and tail.
        head = f'{{"stepNumber":{index},"timestamp":{moment},"environmentState":{step.state},"providerAccesses":[{",".join(step.accesses)}]'
        tail = f'"action":{dump(dict(action), "the action")},"reward":{dump(earned, "reward")}}}'
        self._steps.append(FinishedStep(index, moment, head, tuple(step.calls), tail, action_type, success))
        self._total += earned
        self._current = None

    def abandon_step(self) -> None:
        """Discard the open step."""
        self._current = None

    def finished(self, ended: datetime, ending: Mapping[str, Any], new_id: Callable[[], str]) -> Recording | None:
        """Return the rows to write; an uncompleted step is left out.

        Raises:
            UsageError: a number, the status or the knowledge cannot be recorded.
        """
        final = {name: None if ending[name] is None else number(ending[name], name) for name in ("balance", "pnl")}
        return recording_of(
            self.trajectory_id, self.agent_id, self.window, self.scenario, self.started, ended, self._total, tuple(self._steps),
            Ending(**{**ending, **final}), new_id,
        )  # fmt: skip

    def _step(self) -> _Step:
        if self._current is None:
            raise UsageError(f"Trajectory {self.trajectory_id} has no open step: call start_step first.")
        return self._current
