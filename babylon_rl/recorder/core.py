"""Recorder calls that only touch memory, the same for threads and tasks.

They never wait. Any number of agents share one recorder; a trajectory belongs to the agent that began it. Its values become text when they
are given, so that later changes by the agent have no effect, and a value that cannot be recorded is refused at its own call.
"""

import contextlib
import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from babylon_rl.errors import DatabaseError, UsageError
from babylon_rl.recorder.calls import make_call
from babylon_rl.recorder.rows import FinishedStep, OpenStep, OpenTrajectory, Recording, milliseconds, recording_of
from babylon_rl.recorder.values import dump, label, mapping, number, text, truth
from babylon_rl.recorder.writer import BackgroundWriter, RecorderReport
from babylon_rl.windows import is_window_id, whole_ms, window_of

_LOG = logging.getLogger("babylon_rl.recorder")
_BENCHMARK = "benchmark-"
# Short names that ``record_step`` accepts, and the names in the database.
_STATE_NAMES = {
    "balance": "agentBalance", "pnl": "agentPnL", "openPositions": "openPositions", "open_positions": "openPositions",
}  # fmt: skip
_ACTION_NAMES = {"type": "actionType", "params": "parameters"}


def new_uuid() -> str:
    return str(uuid4())


class RecorderCalls:
    """In-memory part of every recorder.

    Clock, ids and sampling rate (the share of trajectories kept, 0..1) are arguments. ``connect`` sets the writer, and what is held open
    for it until ``close``.
    """

    def __init__(self, new_id: Callable[[], str], clock: Callable[[], datetime], sampling_rate: float) -> None:
        self._new_id, self._clock, self._sampling = new_id, clock, sampling_rate
        # None is a trajectory that is not kept: it takes the same calls.
        self._open: dict[str, OpenTrajectory | None] = {}
        self._writer: BackgroundWriter | None = None
        self._held = contextlib.ExitStack()

    def start_trajectory(
        self, agent_id: str, *, window: str | None = None, scenario: str | None = None, trajectory_id: str | None = None
    ) -> str:
        """Begin a trajectory and return its id.

        Window and scenario default to the current hour (UTC), ``trajectory_id`` to a fresh id; give the one that the gateway got. A
        hash of the id decides here whether it is kept; one that is not kept costs next to nothing.

        Raises:
            UsageError: an id or scenario that does not fit its column, an id that is open, or a window that is neither an hour nor
                ``benchmark-<id>``.
        """
        trajectory_id = label(self._new_id() if trajectory_id is None else trajectory_id, "the trajectory's id")
        # Its steps would be lost without a word.
        if trajectory_id in self._open:
            raise UsageError(f"Trajectory {trajectory_id} is open already: end it first, or give another id.")
        # Seeded by the id: the same id gives the same decision on every machine.
        if self._sampling < 1 and random.Random(trajectory_id).random() >= self._sampling:
            self._open[trajectory_id] = None
            return trajectory_id
        now = self._now()
        # The window column holds 50 characters, the scenario column 100.
        hour = window_of(now) if window is None else label(window, "window", 50)
        if not is_window_id(hour) and not hour.startswith(_BENCHMARK):
            raise UsageError(f"{hour!r} is not a window: give an hour in UTC as YYYY-MM-DDTHH:00, or none for the current one.")
        scenario_id = hour if scenario is None else label(scenario, "scenario", 100)
        self._open[trajectory_id] = OpenTrajectory(trajectory_id, label(agent_id, "agent_id"), now, hour, scenario_id)
        return trajectory_id

    def start_step(self, trajectory_id: str, *, balance: float, pnl: float, open_positions: float, **extra: Any) -> None:
        """Begin a step in the given state of the agent's account (dollars); one that is never completed is left out.

        ``extra`` is kept under its own names.

        Raises:
            UsageError: the trajectory is not open, or a number is not finite.
        """
        state = {"agentBalance": balance, "agentPnL": pnl, "openPositions": open_positions, **extra}
        self._begin(trajectory_id, state)

    def provider_access(self, trajectory_id: str, provider: str, payload: Mapping[str, Any], purpose: str) -> None:
        """Record the data that a provider gave the agent. Raises UsageError: no open step, or a payload that is not JSON."""
        if (step := self._step(trajectory_id)) is not None:
            access = {"providerName": label(provider, "provider"), "data": mapping(payload, "payload"), "purpose": text(purpose, "purpose")}
            step.accesses.append(dump(access, "payload"))

    def llm_call(
        self,
        trajectory_id: str,
        *,
        model: str,
        messages: Iterable[Any],
        response: Any,
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
        finish_reason: str | None = None,
    ) -> None:
        """Record one model request exactly as it was served.

        Without its prompts nothing trains.

        Args:
            messages: the request, in order; texts of system, user and assistant, the user's last; mappings, or a client library's objects.
            response: the answer's text, or its message as it came; None of a call of a tool, which does not train.
            purpose: action, reasoning, evaluation, response or other; only action trains by default.
            model_version: of a model of this pipeline, such as v1.0.3.
            response_format: the schema that the answer was constrained to, if any.
            logprobs: the answer's tokens [{"token", "logprob", "tokenId"}], or the endpoint's ``choice.logprobs`` unchanged.
            tokens: (prompt, completion) token counts.
            finish_reason: the endpoint's ``choice.finish_reason``; an answer that was cut off does not train.

        Raises:
            UsageError: no open step, or something that cannot be recorded; the step goes on without this call.
        """
        if (step := self._step(trajectory_id)) is not None:
            step.calls.append(make_call(
                model=model, messages=messages, response=response, temperature=temperature, max_tokens=max_tokens, purpose=purpose,
                action_type=action_type, latency_ms=latency_ms, model_version=model_version, reasoning=reasoning, top_p=top_p,
                response_format=response_format, logprobs=logprobs, tokens=tokens, finish_reason=finish_reason,
            ))  # fmt: skip

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
        """End the step with the agent's action and its result.

        An ``action_type`` with TRADING, BUY or SELL in it is a trade, one with POST a post, HOLD neither.

        Raises:
            UsageError: no open step, or something that cannot be recorded; the step is then still open.
        """
        action = {"actionType": action_type, "parameters": mapping(parameters, "parameters"), "success": success}
        later = {"result": None if result is None else mapping(result, "result"), "error": error, "reasoning": reasoning}
        present = {key: value for key, value in later.items() if value is not None}
        self._complete(trajectory_id, {**action, **present}, reward)

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
        """Record a whole step in one call, or nothing if a part cannot be recorded.

        Args:
            environment_state: {"balance", "pnl", "openPositions" (else 0), ...}, or the names of the database.
            action: {"type", "params", "success" (else True), "result", "error"}, or the names of the database.
            llm_calls: keyword arguments of ``llm_call``, one mapping per call.
            provider_accesses: {"provider", "payload", "purpose"} each.
            step_number: accepted for callers that count, and ignored; steps are numbered from 0 in the order in which they come.

        Raises:
            UsageError: the trajectory is not open, or something cannot be recorded.
        """
        trajectory = self._trajectory(trajectory_id)
        # Both spellings are accepted; the database's names are stored.
        observed = mapping(environment_state, "environment_state")
        state = {"openPositions": 0, **{_STATE_NAMES.get(name, name): value for name, value in observed.items()}}
        action_fields = {_ACTION_NAMES.get(name, name): value for name, value in mapping(action, "action").items()}
        for name, given, of in (("agentBalance", state, "balance"), ("agentPnL", state, "pnl"), ("actionType", action_fields, "type")):
            if name not in given:
                raise UsageError(f"The step has no {of!r}: environment_state needs balance and pnl, action needs type.")
        try:
            self._begin(trajectory_id, state)
            for access in provider_accesses:
                self.provider_access(trajectory_id, **mapping(access, "provider_accesses"))
            for call in llm_calls:
                self.llm_call(trajectory_id, **mapping(call, "llm_calls"))
            present = {key: value for key, value in action_fields.items() if value is not None}
            self._complete(trajectory_id, {"actionType": None, "parameters": {}, "success": True, **present}, reward)
        finally:
            # After an error: the partial step is discarded.
            if trajectory is not None:
                trajectory.step = None

    def report(self) -> RecorderReport:
        """Return the counts of trajectories so far."""
        written = RecorderReport() if self._writer is None else self._writer.report()
        return replace(written, unfinished=sum(trajectory is not None for trajectory in tuple(self._open.values())))

    def _last_report(self) -> RecorderReport:
        report = self.report()
        if report.unfinished:
            _LOG.warning(report.sentence)
        return report

    def _now(self) -> datetime:
        return whole_ms(self._clock())

    def _trajectory(self, trajectory_id: str) -> OpenTrajectory | None:
        try:
            return self._open[trajectory_id]
        except KeyError:
            message = f"Trajectory {trajectory_id} is not open: it has ended, or start_trajectory was not called."
            raise UsageError(message) from None

    def _step(self, trajectory_id: str) -> OpenStep | None:
        trajectory = self._trajectory(trajectory_id)
        if trajectory is not None and trajectory.step is None:
            raise UsageError(f"Trajectory {trajectory_id} has no open step: call start_step first.")
        return None if trajectory is None else trajectory.step

    def _begin(self, trajectory_id: str, state: Mapping[str, Any]) -> None:
        """Begin a step in ``state``; a step still open is left out."""
        if (trajectory := self._trajectory(trajectory_id)) is None:
            return
        trajectory.step = None
        # The checked numbers come first and cannot be replaced by extra fields.
        checked = {name: number(state[name], name) for name in ("agentBalance", "agentPnL", "openPositions")}
        moment = milliseconds(self._now())
        trajectory.step = OpenStep(moment, dump({**checked, **state, **checked, "timestamp": moment}, "the state"))

    def _complete(self, trajectory_id: str, action: dict[str, Any], reward: float) -> None:
        # Every check comes before the first change, so a refused value leaves the step open.
        trajectory, step = self._trajectory(trajectory_id), self._step(trajectory_id)
        if trajectory is None or step is None:
            return
        earned = number(reward, "reward")
        if not math.isfinite(trajectory.total + earned):
            raise UsageError("The rewards' sum is not a finite number any more.")
        action_type, success = label(action["actionType"], "action_type"), truth(action["success"], "success")
        moment, index = step.timestamp_ms, len(trajectory.steps)
        # The same key order as the game's recorder; the calls come between head and tail.
        head = f'{{"stepNumber":{index},"timestamp":{moment},"environmentState":{step.state},"providerAccesses":[{",".join(step.accesses)}]'
        tail = f'"action":{dump(action, "the action")},"reward":{dump(earned, "reward")}}}'
        trajectory.steps.append(FinishedStep(index, moment, head, tuple(step.calls), tail, action_type, success))
        trajectory.total += earned
        trajectory.step = None

    def _recording(self, trajectory_id: str, **ending: Any) -> Recording | None:
        """The rows of a trajectory that ends; None if it is not kept."""
        trajectory = self._trajectory(trajectory_id)
        return None if trajectory is None else recording_of(trajectory, self._now(), self._new_id, **ending)


def require_all(report: RecorderReport) -> None:
    """Raise DatabaseError if a trajectory that ended is not in the database."""
    if report.lost or report.rejected:
        raise DatabaseError(report.sentence)


def status_after(failed: BaseException) -> str:
    if isinstance(failed, TimeoutError):
        return "timeout"
    # Not an Exception: a cancelled task, KeyboardInterrupt or SystemExit.
    return "error" if isinstance(failed, Exception) else "terminated"
