"""One open trajectory in memory: the steps that its agent has completed, and the one that it is in.

Everything is turned into text when it is given, so that what an agent changes afterwards changes nothing here, and what cannot
be recorded is refused at its own call. ``Unkept`` is a trajectory that the sampling left out: it takes the same calls and keeps nothing.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from babylon_rl.errors import UsageError
from babylon_rl.recorder.calls import Call, make_call
from babylon_rl.recorder.rows import Ending, FinishedStep, Recording, milliseconds, recording_of
from babylon_rl.recorder.values import dump, label, number, text, truth


@dataclass
class _Step:
    """The step that the agent is in."""

    timestamp_ms: int
    state: str
    accesses: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


class Unkept:
    """A trajectory that is not recorded: a null object."""

    kept = False

    def start_step(self, now: datetime, state: Mapping[str, Any]) -> None:
        """Nothing."""

    def provider_access(self, provider: str, payload: Mapping[str, Any], purpose: str) -> None:
        """Nothing."""

    def llm_call(self, **call: Any) -> None:
        """Nothing."""

    def complete_step(self, action: Mapping[str, Any], reward: float) -> None:
        """Nothing."""

    def abandon_step(self) -> None:
        """Nothing."""

    def finished(self, ended: datetime, ending: Mapping[str, Any], new_id: Callable[[], str]) -> Recording | None:
        """None: there is nothing to write."""
        return None


@dataclass
class OpenTrajectory:
    """A trajectory that is recorded; times are naive UTC."""

    trajectory_id: str
    agent_id: str
    started: datetime
    window: str
    scenario: str
    _steps: list[FinishedStep] = field(default_factory=list)
    _current: _Step | None = None
    _total: float = 0

    kept = True

    def start_step(self, now: datetime, state: Mapping[str, Any]) -> None:
        """Begin a step in ``state``; one that is still open is left out. Raises UsageError."""
        self._current = None
        checked = {name: number(state[name], name) for name in ("agentBalance", "agentPnL", "openPositions")}
        moment = milliseconds(now)
        self._current = _Step(moment, dump({**checked, **state, **checked, "timestamp": moment}, "the state"))

    def provider_access(self, provider: str, payload: Mapping[str, Any], purpose: str) -> None:
        """Note what a provider told the agent. Raises UsageError."""
        access = {"providerName": label(provider, "provider"), "data": dict(payload), "purpose": text(purpose, "purpose")}
        self._step().accesses.append(dump(access, "payload"))

    def llm_call(self, **call: Any) -> None:
        """Note a request to a model. Raises UsageError."""
        self._step().calls.append(make_call(**call))

    def complete_step(self, action: Mapping[str, Any], reward: float) -> None:
        """End the step with its action. Raises UsageError; the step is then still open."""
        step, earned = self._step(), number(reward, "reward")
        if not math.isfinite(self._total + earned):
            raise UsageError("The rewards' sum is not a finite number any more.")
        action_type, success = label(action["actionType"], "action_type"), truth(action["success"], "success")
        moment, index = step.timestamp_ms, len(self._steps)
        head = f'{{"stepNumber":{index},"timestamp":{moment},"environmentState":{step.state},"providerAccesses":[{",".join(step.accesses)}]'
        tail = f'"action":{dump(dict(action), "the action")},"reward":{dump(earned, "reward")}}}'
        self._steps.append(FinishedStep(index, moment, head, tuple(step.calls), tail, action_type, success))
        self._total += earned
        self._current = None

    def abandon_step(self) -> None:
        """Leave the open step out."""
        self._current = None

    def finished(self, ended: datetime, ending: Mapping[str, Any], new_id: Callable[[], str]) -> Recording | None:
        """The rows to write; a step that was not completed is left out. Raises UsageError."""
        final = {name: None if ending[name] is None else number(ending[name], name) for name in ("balance", "pnl")}
        return recording_of(
            self.trajectory_id, self.agent_id, self.window, self.scenario, self.started, ended, self._total, tuple(self._steps),
            Ending(**{**ending, **final}), new_id,
        )  # fmt: skip

    def _step(self) -> _Step:
        if self._current is None:
            raise UsageError(f"Trajectory {self.trajectory_id} has no open step: call start_step first.")
        return self._current
