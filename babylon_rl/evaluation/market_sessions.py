"""Sessions of a served market: each start is a run with one outside agent, taken step by step.

A session goes as `babylon_rl.market.simulation.run.play` would take it: one decision a tick, filled at the quotes that the agent saw, then
a tick of time; only who calls whom is turned around. It is known by its token, ended when nobody touches it, and its result is kept.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from babylon_rl.errors import UsageError
from babylon_rl.evaluation.play import PLAYER_ID
from babylon_rl.evaluation.snapshots import Snapshot
from babylon_rl.market.simulation.actions import Action, Hold, Invalid
from babylon_rl.market.simulation.agents import FREE, Answer, Mandate
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.fills import Fill
from babylon_rl.market.simulation.observation import Newsroom, Observation
from babylon_rl.market.simulation.record import Call, Outcome
from babylon_rl.market.simulation.run import Run, Seat, Timed

Clock = Callable[[], float]


class Outsider(msgspec.Struct, frozen=True):
    """Stand-in for an agent that decides elsewhere: a name and a mandate."""

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

    def __init__(self, market: Snapshot, agent: Outsider, attempt: int, clock: Clock) -> None:
        self.agent = agent
        self.attempt = attempt
        self.touched = self._asked = clock()
        self._clock = clock
        self._exchange = Exchange(market.scenario, [PLAYER_ID], market.start_balance)
        self._newsroom = Newsroom(market.scenario)
        self._seat = Seat(agent, PLAYER_ID, self._exchange)
        self.run = Run(market.scenario, attempt, self._exchange, {PLAYER_ID: self._seat.record})
        self.seen = self._seat.look(self._exchange, self._newsroom)

    @property
    def over(self) -> bool:
        """True when there is nothing left to decide."""
        return self._exchange.over or self.run.stopped is not None

    @property
    def acted(self) -> bool:
        """True when this tick's decision was made."""
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


MOST_SESSIONS = 64  # that play at once
MOST_ENDED = 32  # whose results are kept
Finish = Callable[[Session], bytes]


class Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a start request: the agent's name in its result, and its mandate."""

    name: str = "outside"
    mandate: Mandate = FREE


class RequestFault(Exception):
    """A request that cannot be served; becomes ``{"error": {"code", "message"}}`` with that status."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Lobby:
    """All sessions of one server.

    Args:
        finish: makes a session's result once it is over.
        attempts: how often an agent is known to have started before, on an earlier server.
        new_token: a fresh secret; clock: seconds that only go forward.
    """

    def __init__(
        self,
        market: Snapshot,
        finish: Finish,
        attempts: Callable[[Outsider], int],
        *,
        idle_s: float,
        new_token: Callable[[], str],
        clock: Clock,
    ) -> None:
        self._attempts = attempts
        self._starts = Counter[Outsider]()
        self._market = market
        self._finish = finish
        self._idle_s = idle_s
        self._new_token = new_token
        self._clock = clock
        self._playing: dict[str, Session] = {}
        self._ended: dict[str, bytes] = {}

    def start(self, asked: Start) -> tuple[str, Session]:
        """A new session and its token.

        Raises:
            RequestFault: as many play as may.
        """
        self.sweep()
        if len(self._playing) >= MOST_SESSIONS:
            raise RequestFault(503, "full", f"{MOST_SESSIONS} sessions play already. End one with POST /stop, or try again later.")
        agent = Outsider(asked.name, asked.mandate)
        self._starts[agent] = max(self._starts[agent], self._attempts(agent)) + 1
        token = self._new_token()
        session = self._playing[token] = Session(self._market, agent, self._starts[agent], self._clock)
        return token, session

    def playing(self, token: str) -> Session:
        """A session that is not over.

        Raises:
            RequestFault: there is none of this token, or it is over.
        """
        self.sweep()
        if token in self._ended:
            raise RequestFault(409, "over", "The market is over. GET /result has what came of it.")
        if token not in self._playing:
            raise RequestFault(
                401, "no_session", "There is no such session. POST /start gives a token; send it as `Authorization: Bearer TOKEN`."
            )
        session = self._playing[token]
        if session.over:
            raise RequestFault(409, "over", "The market is over. GET /result has what came of it.")
        session.touched = self._clock()
        return session

    def result(self, token: str) -> bytes:
        """The result of a session that is over.

        Raises:
            RequestFault: there is no such session, or it still plays.
        """
        self.sweep()
        if token in self._ended:
            return self._ended[token]
        if token in self._playing and self._playing[token].over:  # it could not be put aside when it ended
            return self.end(token)
        seen = self.playing(token).seen
        raise RequestFault(
            409, "not_over", f"The market is at tick {seen.tick} of {self._market.scenario.ticks}. POST /advance to its end, or POST /stop."
        )

    def end(self, token: str) -> bytes:
        """Put a session that is over aside with its result."""
        result = self._ended[token] = self._finish(self._playing[token])
        del self._playing[token]
        while len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        return result

    def sweep(self, idle_s: float | None = None) -> None:
        """End the sessions that nobody has touched for too long."""
        limit = self._idle_s if idle_s is None else idle_s
        now = self._clock()
        for token, session in list(self._playing.items()):
            if now - session.touched >= limit:
                session.stop(
                    f"{session.agent.name} did nothing for {now - session.touched:.0f} s" if idle_s is None else "the server ended"
                )
                self.end(token)
