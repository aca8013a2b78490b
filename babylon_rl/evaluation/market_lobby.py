"""Who plays a served market: every start is a session of its own, known by its token, ended when nobody touches it, its result kept."""

from collections import Counter
from collections.abc import Callable

import msgspec

from babylon_rl.evaluation.market_session import Clock, Outsider, Session
from babylon_rl.evaluation.result_building import Market
from babylon_rl.market.simulation.agents import FREE, Mandate

MOST_SESSIONS = 64  # that play at once
MOST_ENDED = 32  # whose results are kept
Finish = Callable[[Session], bytes]


class Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a start may say: how the agent is called in its result, and its mandate."""

    name: str = "outside"
    mandate: Mandate = FREE


class Fault(Exception):
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
        market: Market,
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
            Fault: as many play as may.
        """
        self.sweep()
        if len(self._playing) >= MOST_SESSIONS:
            raise Fault(503, "full", f"{MOST_SESSIONS} sessions play already. End one with POST /stop, or try again later.")
        agent = Outsider(asked.name, asked.mandate)
        self._starts[agent] = max(self._starts[agent], self._attempts(agent)) + 1
        token = self._new_token()
        session = self._playing[token] = Session(self._market, agent, self._starts[agent], self._clock)
        return token, session

    def playing(self, token: str) -> Session:
        """A session that is not over.

        Raises:
            Fault: there is none of this token, or it is over.
        """
        self.sweep()
        if token in self._ended:
            raise Fault(409, "over", "The market is over. GET /result has what came of it.")
        if token not in self._playing:
            raise Fault(401, "no_session", "There is no such session. POST /start gives a token; send it as `Authorization: Bearer TOKEN`.")
        session = self._playing[token]
        if session.over:
            raise Fault(409, "over", "The market is over. GET /result has what came of it.")
        session.touched = self._clock()
        return session

    def result(self, token: str) -> bytes:
        """The result of a session that is over.

        Raises:
            Fault: there is no such session, or it still plays.
        """
        self.sweep()
        if token in self._ended:
            return self._ended[token]
        if token in self._playing and self._playing[token].over:  # it could not be put aside when it ended
            return self.end(token)
        seen = self.playing(token).seen
        raise Fault(
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
