"""Routes of the admin page.

It changes nothing itself: its script calls the operations of the admin API, with the login's cookie.
A page of another site can neither read it nor use the login: the cookie is SameSite=Strict, the operations take JSON alone, ``Door``
refuses what other sites send, and the policy of the page lets nobody frame it. Texts of agents are escaped, and no inline script would run.
"""

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from urllib.parse import parse_qs

import anyio
import psycopg
from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route as RoutedPath

from babylon_rl.api_errors import ApiError
from babylon_rl.errors import BabylonError, first_line
from babylon_rl.http_server import BODY_TIMEOUT_S, json_response, read_body
from babylon_rl.reporting.pages import TEMPLATES, render
from babylon_rl.serving.access import Access, Client
from babylon_rl.serving.admin_page.views import TEXT_CHARACTERS, agent_view, page_view, training_view
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.windows import utc_now

PATH = "/admin"
LONGEST_LOGIN = 2000
COOKIE = "babylon_rl_admin"
LOGIN_LASTS_S = 12 * 3600.0
MOST_LOGINS = 1000
_HERE = Path(__file__).parent
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # without a referrer a form would be sent with the origin null
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Logins:
    """Logins of browsers, which cannot send a key by themselves: bearer keys by random cookie, in memory alone.

    Every request asks whether its key is still valid, so a revoked key ends its logins.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._keys: dict[str, tuple[str, float]] = {}

    def open(self, key: str) -> str:
        """Return the cookie of a new login; the oldest ends beyond MOST_LOGINS."""
        while len(self._keys) >= MOST_LOGINS:
            del self._keys[next(iter(self._keys))]
        cookie = secrets.token_urlsafe(32)
        self._keys[cookie] = (key, self._clock() + LOGIN_LASTS_S)
        return cookie

    def close(self, headers: Mapping[str, str]) -> None:
        self._keys.pop(_cookie(headers), None)

    def has_ended(self, headers: Mapping[str, str]) -> bool:
        """True for the cookie of a login that is too old, closed, or unknown."""
        return _cookie(headers) != "" and "authorization" not in self.with_key(headers)

    def with_key(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers of a request, with the key of its login where they bring none."""
        key, until = self._keys.get(_cookie(headers), ("", 0.0))
        if "authorization" in headers or self._clock() >= until:
            return headers
        return {**headers, "authorization": f"Bearer {key}"}


def _cookie(headers: Mapping[str, str]) -> str:
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")


class AdminPage:
    """The page of one process; ``admit`` decides on a request as the admin API does."""

    def __init__(self, settings: Settings, database: Database, access: Access, logins: Logins, admit: Callable[[Request], Client]) -> None:
        self._settings, self._database, self._access, self._logins, self._admit = settings, database, access, logins, admit

    def routes(self) -> list[RoutedPath]:
        kept = {"x-content-type-options": "nosniff", "cache-control": "no-cache"}
        style = (TEMPLATES / "style.css").read_text("utf-8") + (_HERE / "page.css").read_text("utf-8")
        script = (_HERE / "page.js").read_text("utf-8")
        return [
            RoutedPath(PATH, self._shown(self._page)),
            RoutedPath(f"{PATH}/agent", self._shown(self._agent)),
            RoutedPath(f"{PATH}/live.json", self._shown(self._live)),
            RoutedPath(f"{PATH}/login", self._login, methods=["POST"]),
            RoutedPath(f"{PATH}/logout", self._logout, methods=["POST"]),
            RoutedPath(f"{PATH}/page.css", Response(style, 200, kept, "text/css"), methods=["GET"]),
            RoutedPath(f"{PATH}/page.js", Response(script, 200, kept, "text/javascript"), methods=["GET"]),
        ]

    def _page(self, connection: Connection, request: Request, client: Client) -> Response:
        view = page_view(connection, self._settings, utc_now())
        return _html("page.html.j2", view=view, client=client, dagster_url=self._settings.dagster_url)

    def _agent(self, connection: Connection, request: Request, client: Client) -> Response:
        # Postgres takes no NUL in a text.
        agent_id = request.query_params.get("id", "").replace("\0", "")[:200]
        hours = agent_view(connection, agent_id, self._settings)
        return _html("agent.html.j2", agent_id=agent_id, hours=hours, client=client, characters=TEXT_CHARACTERS)

    def _live(self, connection: Connection, request: Request, client: Client) -> Response:
        """State of the running training as HTML in JSON, and the page's version."""
        training = training_view(connection, self._settings, utc_now())
        html = render(_HERE / "training.html.j2", training=training)
        state = "" if training is None else f"{training.batch.batch_id} {training.batch.state}"
        return json_response({"training": html, "state": state}, headers=_HEADERS)

    def _shown(self, show: Callable[[Connection, Request, Client], Response]) -> Callable[[Request], object]:
        async def answer(request: Request) -> Response:
            try:
                client = self._admit(request)
            except ApiError as refused:
                asks = refused.status == 401
                ended = asks and ("ended" in request.query_params or self._logins.has_ended(request.headers))
                words = "Your login has ended: log in again." if ended else refused.message
                return _html("login.html.j2", refused.status, refused.headers, words=words, asks=asks)

            def shown() -> Response:
                with self._database.connect() as connection:
                    return show(connection, request, client)

            try:
                # In a thread, so that other visitors are answered while the database works.
                return await anyio.to_thread.run_sync(shown)
            except (BabylonError, psycopg.Error) as failed:
                words = str(failed) if isinstance(failed, BabylonError) else f"The database does not answer: {first_line(failed)}."
                return _html("login.html.j2", 503, words=words, asks=False)

        return answer

    async def _login(self, request: Request) -> Response:
        form = parse_qs((await read_body(request.receive, LONGEST_LOGIN, BODY_TIMEOUT_S)).decode("ascii", "replace"))
        key = form.get("key", [""])[0].strip()
        try:
            # Without an address: here the key decides, on this machine too.
            client = self._access.admit(None, {"authorization": f"Bearer {key}"})
        except ApiError as refused:
            return _html("login.html.j2", refused.status, words=refused.message, asks=True)
        if not client.admin:
            words = f"The key {client.name} opens the gateway only: `babylon-rl keys create NAME --admin` makes one for this page."
            return _html("login.html.j2", 403, words=words, asks=True)
        answer = RedirectResponse(PATH, 303)
        # A proxy before this server may end TLS. Over plain HTTP a browser would not send a secure cookie back.
        secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
        answer.set_cookie(
            COOKIE, self._logins.open(key), max_age=int(LOGIN_LASTS_S), path="/", httponly=True, samesite="strict", secure=secure
        )  # fmt: skip
        return answer

    async def _logout(self, request: Request) -> Response:
        self._logins.close(request.headers)
        answer = RedirectResponse(PATH, 303)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer


def _html(template: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: object) -> Response:
    return Response(render(_HERE / template, **values), status, {**(headers or {}), **_HEADERS}, "text/html")
