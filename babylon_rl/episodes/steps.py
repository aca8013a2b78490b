"""Steps and calls as they were recorded, as typed structs.

Only the four fields that can reject a row have a type of their own; every other field may hold anything.
The ``...Facts`` structs hold what numbers are made of, the others also what texts are made of.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

PENDING = "pending"


class EnvironmentState(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What the agent had when the step began, in dollars and positions."""

    agent_balance: float
    agent_pnl: float = msgspec.field(name="agentPnL")
    open_positions: float


class ActionFacts(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What kind of thing the agent did; ``success`` is whatever was recorded."""

    action_type: Annotated[str, msgspec.Meta(min_length=1)]
    success: Any = None

    @property
    def succeeded(self) -> bool:
        """True when ``success`` is JSON's true and nothing else."""
        return self.success is True


class Action(ActionFacts, frozen=True, gc=False, rename="camel"):
    """What the agent did, with its parameters as they were recorded."""

    parameters: msgspec.Raw = msgspec.Raw(b"null")


class CallFacts(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """What of one recorded call decides whether it trains."""

    purpose: Any = None
    system_prompt: Any = None
    user_prompt: Any = None
    response: Any = None


class ServedCall(CallFacts, frozen=True, gc=False, kw_only=True, rename="camel"):
    """A call that holds a purpose of the contract, a prompt and a response, as nearly all do."""

    purpose: Literal["action", "reasoning", "evaluation", "response", "other"]
    user_prompt: Annotated[str, msgspec.Meta(min_length=1)]
    response: Annotated[str, msgspec.Meta(min_length=1)]


class Call(CallFacts, frozen=True, gc=False, rename="camel"):
    """One recorded call with all that a training sequence is made of."""

    model: Any = None
    model_version: Any = None
    call_id: Any = None
    messages: Any = None
    response_format: Any = None
    logprobs: Any = None


class StepFacts(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """One step in numbers."""

    environment_state: EnvironmentState
    action: ActionFacts
    llm_calls: Sequence[CallFacts] | None = None
    step_number: Any = None
    timestamp: Any = None

    @property
    def began_ms(self) -> float | None:
        """Milliseconds since the epoch where a number was recorded."""
        return as_number(self.timestamp)


class ServedStep(StepFacts, frozen=True, gc=False, rename="camel"):
    """One step in numbers whose calls all hold what trains."""

    llm_calls: Sequence[ServedCall] = ()


class Step(StepFacts, frozen=True, gc=False, rename="camel"):
    """One step with the texts of its calls; ``step_number`` is a whole number once ``decode_steps`` has made it one."""

    environment_state: EnvironmentState
    action: Action
    llm_calls: Sequence[Call] | None = None

    @property
    def number(self) -> int:
        """stepNumber, else the step's place in stepsJson."""
        return whole_number(self.step_number, 0)


def whole_number(recorded: Any, otherwise: int) -> int:
    """A recorded whole number, else ``otherwise``."""
    whole = recorded.__class__ is int or (recorded.__class__ is float and recorded.is_integer())
    return int(recorded) if whole else otherwise


def as_number(value: Any) -> float | None:
    """A recorded number as a float; None for anything else, booleans and what no float can hold included."""
    if value.__class__ is float:
        return float(value)
    if value.__class__ is not int:
        return None
    try:
        return float(value)
    except OverflowError:
        return None
