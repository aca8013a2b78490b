"""Recorded steps and calls as typed structs.

Only the four fields that can reject a row have a type of their own; every other field may hold anything. The ``...Facts`` structs hold
the input of numbers; the others also hold the input of texts.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

PENDING = "pending"


class EnvironmentState(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The agent's account at the start of a step, in dollars and positions."""

    agent_balance: float
    agent_pnl: float = msgspec.field(name="agentPnL")
    open_positions: float


class ActionFacts(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Kind of an action; ``success`` is the recorded value, of any type."""

    action_type: Annotated[str, msgspec.Meta(min_length=1)]
    success: Any = None

    @property
    def succeeded(self) -> bool:
        """True only if ``success`` is JSON's true."""
        return self.success is True


class Action(ActionFacts, frozen=True, gc=False, rename="camel"):
    """An action with its recorded parameters."""

    parameters: msgspec.Raw = msgspec.Raw(b"null")


class CallFacts(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The fields of a recorded call that decide whether it trains."""

    purpose: Any = None
    system_prompt: Any = None
    user_prompt: Any = None
    response: Any = None


class StepCall(CallFacts, frozen=True, gc=False, rename="camel"):
    """One recorded call with the content of a training sequence."""

    model: Any = None
    model_version: Any = None
    call_id: Any = None
    messages: Any = None
    response_format: Any = None
    logprobs: Any = None


class StepFacts(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """One step without the texts of training sequences."""

    environment_state: EnvironmentState
    action: ActionFacts
    llm_calls: Sequence[CallFacts] | None = None
    step_number: Any = None
    timestamp: Any = None

    @property
    def began_ms(self) -> float | None:
        """Start time in milliseconds since the epoch; None if no number was recorded."""
        return as_number(self.timestamp)


class Step(StepFacts, frozen=True, gc=False, rename="camel"):
    """One step with the texts of its calls.

    ``step_number`` is a whole number after ``decode_steps``.
    """

    environment_state: EnvironmentState
    action: Action
    llm_calls: Sequence[StepCall] | None = None

    @property
    def number(self) -> int:
        """stepNumber, else the index in stepsJson."""
        return whole_number(self.step_number, 0)


def whole_number(recorded: Any, otherwise: int) -> int:
    """Return a recorded whole number, else ``otherwise``."""
    whole = recorded.__class__ is int or (recorded.__class__ is float and recorded.is_integer())
    return int(recorded) if whole else otherwise


def as_number(value: Any) -> float | None:
    """Return a recorded number as a float; None for anything else.

    Booleans and integers beyond the range of a float give None.
    """
    if value.__class__ is float:
        return float(value)
    if value.__class__ is not int:
        return None
    try:
        return float(value)
    except OverflowError:
        return None
