"""One outside agent in one market, taken through it step by step: what ``serve market`` keeps for each of its players.

A session is a run with one seat, and goes as `babylon_rl.market.simulation.run.play` would take it: one decision a tick, filled at the
quotes that the agent saw, then a tick of time. Only who calls whom is turned around.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from babylon_rl.errors import UsageError
from babylon_rl.evaluation.result_building import Market
from babylon_rl.evaluation.runner import SEAT
from babylon_rl.market.simulation.actions import Action, Hold, Invalid
from babylon_rl.market.simulation.agents import Answer, Mandate
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.fills import Fill
from babylon_rl.market.simulation.observation import Newsroom, Observation
from babylon_rl.market.simulation.record import Call, Outcome
from babylon_rl.market.simulation.run import Run, Seat, Timed

Clock = Callable[[], float]


class Outsider(msgspec.Struct, frozen=True):
    """Whoever decides elsewhere; the seat only needs a name and a mandate."""

    name: str
    mandate: Mandate

    def decide(self, seen: Observation) -> Invalid:
        """Nothing is asked of it here."""
        return Invalid(f"{self.name} decides at tick {seen.tick} by itself")


class Session:
    """An agent's way through a market.

    Attributes:
        attempt: which start of this agent it is, from 1: a market that was seen before is no test any more.
        seen: what there is to decide on; touched: when the agent last did something, by ``clock``, in seconds.
        run: complete once the market is over; ``run.stopped`` says why it ended before.
    """

    def __init__(self, market: Market, agent: Outsider, attempt: int, clock: Clock) -> None:
        self.agent = agent
        self.attempt = attempt
        self.touched = self._asked = clock()
        self._clock = clock
        self._exchange = Exchange(market.scenario, [SEAT], market.start_balance)
        self._newsroom = Newsroom(market.scenario)
        self._seat = Seat(agent, SEAT, self._exchange)
        self.run = Run(market.scenario, attempt, self._exchange, {SEAT: self._seat.record})
        self.seen = self._seat.look(self._exchange, self._newsroom)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to decide."""
        return self._exchange.over or self.run.stopped is not None

    @property
    def acted(self) -> bool:
        """Whether this tick's decision was made."""
        return self._seat.record.decisions > self._exchange.tick

    def act(self, action: Action | Invalid, text: str = "") -> Outcome:
        """This tick's decision, filled or refused at once; an ``Invalid`` one costs the turn. ``text`` is what the agent wrote.

        Raises:
            UsageError: the market is over, or the decision of this tick was made.
        """
        if self.over:
            raise UsageError(f"The market is over{f': {self.run.stopped}' if self.run.stopped else ''}. GET /result has what came of it.")
        if self.acted:
            raise UsageError(f"Tick {self._exchange.tick} has its action: one a tick. POST /advance brings the next tick.")
        latency_ms = 1000.0 * (self._clock() - self._asked)
        call = Call(f"outside/{self.agent.name}", [], text, "", latency_ms=latency_ms)
        self._seat.act(self._exchange, self._newsroom, self.seen, Timed(Answer(action, call), latency_ms))
        return self._seat.record.outcomes[-1]

    def advance(self) -> dict[str, Any]:
        """Let a tick pass; an agent that did not act holds. Returns what time and the mandate did to positions, as JSON values.

        Raises:
            UsageError: the market is over.
        """
        if self.over or not self.acted:
            self.act(Hold())
        record, before = self._seat.record, self._exchange.tick
        settlements = self._exchange.advance()
        for settlement in settlements:
            record.settle(settlement)
        self._seat.keep_mandate(self._exchange)
        self.run.ticks_played += 1
        self.seen = self._seat.look(self._exchange, self._newsroom)
        self._asked = self._clock()
        closed: list[Fill] = record.closed.get(before, [])
        return {"settlements": msgspec.to_builtins(settlements), "closed": msgspec.to_builtins(closed)}

    def stop(self, reason: str) -> None:
        """End the run here, with what was played so far; the tick of a decision that was made still passes."""
        if not self.over and self.acted:
            self.advance()
        if not self.over:
            self.run.stopped = f"Stopped at tick {self._exchange.tick} of {self.run.scenario.ticks}: {reason}"
