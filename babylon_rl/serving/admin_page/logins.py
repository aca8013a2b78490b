"""Logins of browsers: a random cookie stands for a bearer key.

A browser cannot send the key by itself. Cookies end with this process.
"""

import secrets
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from time import monotonic

COOKIE = "babylon_rl_admin"
LASTS_S = 12 * 3600.0
MOST = 1000


class Logins:
    """Keys by cookie, in memory alone.

    Every request asks whether its key is still valid, so a revoked key ends its logins.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._keys: dict[str, tuple[str, float]] = {}

    def open(self, key: str) -> str:
        """Return the cookie of a new login; the oldest ends beyond MOST."""
        while len(self._keys) >= MOST:
            del self._keys[next(iter(self._keys))]
        cookie = secrets.token_urlsafe(32)
        self._keys[cookie] = (key, self._clock() + LASTS_S)
        return cookie

    def close(self, headers: Mapping[str, str]) -> None:
        """End the login of a request."""
        self._keys.pop(_cookie(headers), None)

    def has_ended(self, headers: Mapping[str, str]) -> bool:
        """True for a request with the cookie of a login that is over: too old, closed, or of a server that was stopped since."""
        return _cookie(headers) != "" and "authorization" not in self.with_key(headers)

    def with_key(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers of a request, with the key of its login where they bring none."""
        key, until = self._keys.get(_cookie(headers), ("", 0.0))
        if "authorization" in headers or self._clock() >= until:
            return headers
        return {**headers, "authorization": f"Bearer {key}"}


def _cookie(headers: Mapping[str, str]) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value
