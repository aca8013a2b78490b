"""Record of one agent in one run, in columns by tick. Compact enough for a week of minutes; the agent's memory reads it."""

from array import array
from collections import Counter
from typing import Any

import msgspec

from babylon_rl.market.simulation.actions import Action, Hold, Invalid
from babylon_rl.market.simulation.ledger import Account, Fill, Refusal, Settlement

Outcome = Fill | Refusal | Invalid
HOLD = Hold()


class Call(msgspec.Struct, frozen=True):
    """One request to a model and its answer.

    A script's, with the request that it would have had, is named ``scripted/<strategy>``. ``logprobs`` and ``finish_reason`` are the
    endpoint's, or None.
    """

    model: str
    messages: list[dict[str, str]]
    response: str
    prompt_version: str
    response_format: dict[str, Any] | None = None
    logprobs: list[dict[str, Any]] | None = None
    latency_ms: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    temperature: float = 1.0
    max_tokens: int = 0
    finish_reason: str | None = None


class Remembered(msgspec.Struct, frozen=True):
    """A decision of the agent's own with its result. And the change of its equity in dollars until the next decision."""

    tick: int
    action: Action
    outcome: Outcome
    brought_usd: float


class Turn(msgspec.Struct, frozen=True):
    """One decision with its action, outcome and money.

    Attributes:
        action: what was carried out or refused; hold when the answer was ``Invalid``.
        balance, equity: dollars when the agent decided; equity_after: when its next decision was due, or at the end.
        latency_ms: how long the decision took; call: the request behind it, None for an agent that asks nobody.
        closed: what the mandate closed for the agent before its next decision.
        held: how many positions were open when the agent decided.
    """

    tick: int
    action: Action
    outcome: Outcome
    balance: float
    equity: float
    equity_after: float
    latency_ms: float
    call: Call | None
    closed: tuple[Fill, ...]
    held: int = 0


class AgentRecord:
    """Columns by tick: ``actions``, ``outcomes`` and ``latency_ms`` of decisions.

    ``balance``, ``equity`` and ``held``, the number of open positions, are at moments, one more. ``calls`` are by tick; ``closed`` is what
    the mandate closed, ``settled`` what time did to positions, in order.
    """

    def __init__(self, agent_id: str, name: str, mandate: str, account: Account) -> None:
        self.agent_id = agent_id
        self.name = name
        self.mandate = mandate
        self.account = account
        self.actions: list[Action] = []
        self.outcomes: list[Outcome] = []
        self.calls: dict[int, Call] = {}
        self.closed: dict[int, list[Fill]] = {}
        self.settled: list[Settlement] = []
        self.balance, self.equity, self.latency_ms = array("d"), array("d"), array("d")
        self.held = array("I")
        self.last_profit: float | None = None

    def acted(self, action: Action, outcome: Outcome) -> None:
        self.actions.append(action)
        self.outcomes.append(outcome)
        if isinstance(outcome, Fill) and outcome.profit is not None:
            self.last_profit = outcome.profit

    def mandated(self, fill: Fill) -> None:
        """Keep the closings of the mandate. They belong to the decision of the tick before."""
        self.closed.setdefault(fill.tick - 1, []).append(fill)
        self.last_profit = fill.profit

    def settle(self, settlement: Settlement) -> None:
        self.settled.append(settlement)
        if settlement.profit is not None:
            self.last_profit = settlement.profit

    @property
    def decisions(self) -> int:
        return len(self.actions)

    @property
    def pnl_usd(self) -> float:
        """Dollars won from first to last moment, positions at their value when closed."""
        return self.equity[-1] - self.account.start if self.equity else 0.0

    @property
    def invalid(self) -> Counter[str]:
        """How often an answer could not be used, by reason."""
        return Counter(outcome.reason for outcome in self.outcomes if isinstance(outcome, Invalid))

    @property
    def refused(self) -> Counter[str]:
        """How often the exchange refused an order, by its code."""
        return Counter(outcome.code for outcome in self.outcomes if isinstance(outcome, Refusal))

    def turn(self, tick: int) -> Turn:
        """The decision of a tick; IndexError when it was not made."""
        closed = tuple(self.closed.get(tick, ()))
        return Turn(
            tick, self.actions[tick], self.outcomes[tick], self.balance[tick], self.equity[tick], self.equity[tick + 1],
            self.latency_ms[tick], self.calls.get(tick), closed, self.held[tick],
        )  # fmt: skip

    def remembered(self, since: int, until: int) -> tuple[Remembered, ...]:
        """The decisions of the ticks ``since`` to before ``until``, oldest first."""
        return tuple(
            Remembered(tick, self.actions[tick], self.outcomes[tick], self.equity[tick + 1] - self.equity[tick])
            for tick in range(max(0, since), min(until, len(self.actions)))
        )
