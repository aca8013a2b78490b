"""Access to servers: bearer keys with budgets per minute; loopback only until a key exists."""

import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

from babylon_rl.api_errors import ApiError
from babylon_rl.http_server import why_not_local
from babylon_rl.store.client_keys import ClientKey

_MINUTE_S = 60.0
MOST_OPEN = 512  # calls of one key that a process has open: each may hold a body, an answer and a connection to a model


def new_key() -> str:
    """Return a fresh key with 256 random bits."""
    return "brl-" + secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """Return the hash under which a random key is stored, without salt."""
    return hashlib.sha256(key.encode()).hexdigest()


def bearer_token(headers: Mapping[str, str]) -> str:
    """The bearer token of a request, empty without one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


class MinuteBudget:
    """Token bucket: ``limit`` a minute, and at most that many at once."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self.limit = limit
        self._clock, self._left, self._at = clock, float(limit), clock()

    def wait_s(self) -> float:
        """Seconds until one is there; 0 if it is."""
        now = self._clock()
        self._left = min(float(self.limit), self._left + (now - self._at) * self.limit / _MINUTE_S)
        self._at = now
        return max(0.0, (1.0 - self._left) * _MINUTE_S / self.limit)

    def take(self, used: float) -> None:
        """Take from the budget, even below zero: answers are counted at their end."""
        self._left -= used


@dataclass(eq=False)
class Client:
    """An admitted client; one without a name came from this machine while there were no keys, and may do everything."""

    name: str | None = None
    sha256: str | None = None
    requests: MinuteBudget | None = None
    tokens: MinuteBudget | None = None
    admin: bool = False
    agents: Sequence[str] = ()

    def agent(self, named: str | None) -> str | None:
        """The agent of a call that names one, or none. Raises ApiError: the client's key is bound to others."""
        if not self.agents or named in self.agents:
            return named
        if named is None and len(self.agents) == 1 and "*" not in self.agents[0]:
            return self.agents[0]
        if named is None:
            raise ApiError(403, f"The key {self.name} is bound to agents: name one of them in x-babylon-agent.", "other_agent")
        if not any(re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), named) for pattern in self.agents):
            raise ApiError(403, f"The key {self.name} does not speak for the agent {named}.", "other_agent")
        return named

    def spend(self, tokens: int) -> None:
        if self.tokens is not None:
            self.tokens.take(tokens)


class Access:
    """The clients of one process, by the keys of ``update``; before that only loopback. ``own_key`` admits the process itself."""

    def __init__(self, clock: Callable[[], float] = monotonic, own_key: str | None = None) -> None:
        self._clock = clock
        self._own = None if own_key is None else key_hash(own_key)
        self._clients: dict[str, Client] | None = None
        self._any_key = False
        self._open: Counter[str] = Counter()

    def update(self, keys: Sequence[ClientKey]) -> None:
        """Take over the stored keys; a client whose limits did not change keeps its budget."""
        known, clients = self._clients or {}, dict[str, Client]()
        for key in keys:
            if key.revoked_at is None:
                old = known.get(key.sha256, Client())
                requests = self._budget(key.requests_per_minute, old.requests)
                tokens = self._budget(key.tokens_per_minute, old.tokens)
                clients[key.sha256] = Client(key.name, key.sha256, requests, tokens, key.admin, key.agents)
        # Revoked keys count: revoking the last one must not open the server again.
        self._clients, self._any_key = clients, bool(keys)

    @property
    def keyed(self) -> bool:
        """False while it is known that there are no keys, so that only this machine is served."""
        return self._any_key or self._clients is None

    def admit(self, scope: Mapping[str, Any] | None, headers: Mapping[str, str]) -> Client:
        """Identify the client of a request, and take it from its budget; without ASGI's ``scope`` the key alone decides.

        Raises:
            ApiError: no valid key, or a budget that is used up.
        """
        key = bearer_token(headers)
        sha256 = key_hash(key) if key and (self._own is not None or self._any_key) else None
        if sha256 is not None and sha256 == self._own:
            return Client()
        if not self._any_key:
            return self._without_keys(scope)
        client = (self._clients or {}).get(sha256) if sha256 is not None else None
        if client is None:
            message = "The key is not valid, or was revoked." if key else "Send a key: Authorization: Bearer KEY. No other header is read."
            raise ApiError(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})
        # One token is enough to be admitted: what the call takes is known after its answer, and ``Client.spend`` takes it then.
        for budget, noun in ((client.requests, "requests"), (client.tokens, "tokens")):
            if budget is not None and (wait_s := budget.wait_s()) > 0:
                message = f"The key {client.name} has used up its {budget.limit} {noun} a minute."
                raise ApiError(429, message, "rate_limit_exceeded", headers={"retry-after": str(int(wait_s) + 1)})
        # After both checks, so that a refused request costs nothing.
        if client.requests is not None:
            client.requests.take(1)
        return client

    @contextmanager
    def open_call(self, client: Client) -> Iterator[None]:
        """Count a call of a key as open until the block ends. Raises ApiError: the key has MOST_OPEN open calls already."""
        key = client.sha256
        if key is None:
            yield
            return
        if self._open[key] >= MOST_OPEN:
            message = f"The key {client.name} has {MOST_OPEN} open calls: wait until one of them has ended."
            raise ApiError(429, message, "rate_limit_exceeded", headers={"retry-after": "1"})
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1

    def _without_keys(self, scope: Mapping[str, Any] | None) -> Client:
        why = "brings none" if scope is None else why_not_local(scope)
        if not why:
            return Client()
        if self._clients is None:
            raise ApiError(503, "Keys cannot be checked before the database has answered once.", "keys_unknown")
        message = f"Without keys only this machine is served, and this request {why}: create a key with `babylon-rl keys create NAME`."
        raise ApiError(403, message, "no_keys")

    def _budget(self, limit: int | None, old: MinuteBudget | None) -> MinuteBudget | None:
        if limit is None:
            return None
        return old if old is not None and old.limit == limit else MinuteBudget(limit, self._clock)
