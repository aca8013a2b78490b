"""The admin page over real HTTP: who sees it, what it may run, and that its parts say what the database holds."""

import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from html import unescape
from typing import Any

import pytest

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.serving.access import key_hash
from babylon_rl.serving.admin_page.app import LOGIN_LASTS_S, Logins
from babylon_rl.serving.admin_page.views import MOST_HOURS, hour_strip
from babylon_rl.settings import Settings
from babylon_rl.store.alerts import see
from babylon_rl.store.client_keys import ClientKey, create_key, revoke_key
from babylon_rl.store.database import Database
from babylon_rl.store.write_ahead import note_optimizer_steps
from babylon_rl.windows import HOUR, utc_now, window_of, window_start
from babylon_rl_tests.rows import AFTER, WINDOW, insert, make_trajectory
from babylon_rl_tests.serving.admin_rows import BATCH, HOSTILE_ID, HOSTILE_TEXT, MEASURED, fill, note_step, trade
from babylon_rl_tests.serving.admin_server import AdminServer, running_admin
from babylon_rl_tests.serving.gateways import rows, wait_for

KEY = "brl-" + "k" * 43


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def asked(url: str, form: dict[str, str] | None = None, **headers: str) -> tuple[int, Any, str]:
    """Status, headers and text of an answer, redirects not followed."""
    body = None if form is None else urllib.parse.urlencode(form).encode()
    request = urllib.request.Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.headers, refused.read().decode()


@pytest.fixture
def admin(settings: Settings, database: Database) -> Iterator[AdminServer]:
    fill(database, settings, hours=60)
    with running_admin(settings, database) as server:
        yield server


def test_a_visitor_who_leaves_while_logging_in_is_no_fault_of_the_server(
    settings: Settings, database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    with running_admin(settings, database) as server:
        address = urllib.parse.urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port)) as visitor:
            visitor.sendall(b"POST /admin/login HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nkey=")
            assert server.get("/").status == 200
    assert "Traceback" not in capfd.readouterr().err


def with_key(server: AdminServer, database: Database, *, admin: bool = True) -> None:
    """Make a key, and wait until the server knows of it."""
    with database.connect(autocommit=True) as connection:
        create_key(connection, ClientKey("operator", key_hash(KEY), None, None, utc_now(), admin=admin))
    wait_for(lambda: server.get("/api/admin/training/models").status == 401, "the key to be known")


def test_every_part_is_there_and_nothing_of_an_agent_is_markup(admin: AdminServer) -> None:
    status, headers, page = asked(f"{admin.url}/admin")
    assert status == 200
    for words in ("6 of 1,000", "too few agents", "Current training", BATCH, "v1.0.3", "+$268", "rolling", "spring"):
        assert words in page, words
    assert "HOLD" not in page and page.count("<script") == 1 and 'src="/admin/page.js"' in page
    assert HOSTILE_ID not in page and "&lt;img src=x" in page
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "form-action 'self'" in policy
    assert not re.search(r"\s(style|on\w+)=", re.sub(r"&[^;]+;", "", page).replace("onerror", "")), "the policy forbids them"


def table_rows(page: str, label: str) -> list[list[str]]:
    """The cells of a table of the page, as a person reads them."""
    table = page[page.index(f'aria-label="{label}"') :].partition("<tbody>")[2].partition("</tbody>")[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in table.split("<tr>")[1:]]
    return [[unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in cells]


def test_guards_arms_reasons_links_and_alerts_are_those_of_the_database(admin: AdminServer, database: Database) -> None:
    with database.connect(autocommit=True) as connection:
        see(connection, "quality_fell", "quality_fell", "The quality is 50 %.", "Look at the rows.", utc_now() - HOUR, timedelta(0))
        see(connection, "readiness_blocked", "readiness_blocked", "Nothing comes.", "Wait.", utc_now(), timedelta(days=1))  # not due yet
        connection.execute("""UPDATE babylon_rl.model_lineage SET "trackingUrl" = 'https://wandb.test/run' WHERE "version" = 'v1.0.1'""")
    page = asked(f"{admin.url}/admin")[2]
    # Eight agents of each arm played three hours, with three calls in each.
    guards = {name: (verdict, words) for name, verdict, words in table_rows(page, "Guards of the rollout")}
    assert set(guards) == {"errors", "latency", "refused orders", "action collapse", "P&L"}
    assert guards["errors"][1].startswith("0 of 72, control 0 of 72") and guards["action collapse"][1].startswith("hold in 240 of 720 ")
    arms = table_rows(page, "Arms of the test")
    assert [arm[:4] for arm in arms] == [["v1.0.0", "50 %", "8", "3"], ["v1.0.1", "50 %", "8", "3"]]
    assert (arms[0][4:], arms[1][4]) == (["+$44", "\u2013"], "+$64") and arms[1][5].startswith("+$20 ")
    agents = table_rows(page, "Agents of the newest hour")
    assert agents[0][4].startswith("Bought before the news were priced in, and sold in time: <b>$") and len(agents) == 17
    assert re.findall(r'<a href="(https://wandb[^"]*)"[^>]*>W&amp;B</a>', page) == ["https://wandb.test/run"]
    assert re.findall(r'role="alert"><strong>(.*?)</strong> (.*?)</p>', page) == [("The quality is 50 %.", "Look at the rows.")]


def test_a_notice_is_no_alert_and_commands_are_code(admin: AdminServer, database: Database) -> None:
    advice, before = "`babylon-rl <models>` shows it.", utc_now() - HOUR
    with database.connect(autocommit=True) as connection:
        see(connection, "rollback_done", "rollback_done/v1", "v1 was rolled back.", advice, before, timedelta(0))
    page = asked(f"{admin.url}/admin")[2]
    assert '<p class="note" role="status"><strong>v1 was rolled back.</strong> <code>babylon-rl &lt;models&gt;</code> shows it.</p>' in page
    assert 'role="alert"' not in page and "`" not in page


def test_decisions_of_an_agent_are_shown_as_data(admin: AdminServer) -> None:
    status, _, page = asked(f"{admin.url}/admin/agent?id={urllib.parse.quote(HOSTILE_ID)}")
    assert status == 200 and "<script" not in page and "<img" not in page
    assert "&lt;/pre&gt;&lt;script&gt;" in page and "\u202e" not in page, "marks of direction are replaced"
    assert page.count("<details>") == 6 and "rank" in page and "system" in page
    assert HOSTILE_TEXT not in page
    assert "No hour of this agent" in asked(f"{admin.url}/admin/agent?id=nobody")[2]


def test_trades_without_prompts_are_shown_with_times_and_results(admin: AdminServer, settings: Settings, database: Database) -> None:
    steps = [trade(0, 0.0), trade(1, -5.0, success=False), trade(2, -5.0) | {"timestamp": 1e300}]
    with database.connect(autocommit=True) as connection:
        played = [make_trajectory("later", "quiet", steps=steps, minute=40), make_trajectory("early", "quiet", steps=steps[:1])]
        insert(connection, "trajectories", played)
        sync_windows(connection, [WINDOW], settings, AFTER)
    page = asked(f"{admin.url}/admin/agent?id=quiet")[2]
    lines = [" ".join(unescape(re.sub(r"<[^>]+>", "", line)).split()) for line in re.findall(r"<li>(.*?)</li>", page, re.DOTALL)]
    assert lines == [
        "10:00:00 TRADING_DECISION marketType=perp ticker=TSLAI side=long amount=100 → price=214.5 P&L before $0",
        "10:00:00 TRADING_DECISION marketType=perp ticker=TSLAI side=long amount=100 → price=214.5 P&L before $0",
        "10:00:10 TRADING_DECISION failed marketType=perp ticker=TSLAI side=short amount=150 → not enough balance P&L before −$5.00",
        "10:40:00 TRADING_DECISION marketType=perp ticker=TSLAI side=long amount=200 → price=212.5 P&L before −$5.00",
    ]
    assert "No prompt was recorded in this hour." in page and "<details>" not in page


def test_the_live_part_follows_the_training(admin: AdminServer, database: Database) -> None:
    before = admin.get("/admin/live.json").body
    assert before["state"] == f"{BATCH} training" and "40 so far; last 0.5100" in before["training"]
    assert "17 % done: iteration 1 of 4, optimizer step 40 of 60" in before["training"]
    with database.connect(autocommit=True) as connection:
        note_optimizer_steps(connection, BATCH, 1, 1, [{"loss": 0.9}] * 8, 20)
    assert "10 % done: iteration 1 of 4, optimizer step 8 of 20" in admin.get("/admin/live.json").body["training"]
    note_step(database, [0.9, 0.25])
    assert "2 so far; last 0.2500" in admin.get("/admin/live.json").body["training"]


def test_a_job_is_cancelled_with_its_reason(admin: AdminServer, database: Database) -> None:
    answer = admin.post("/api/admin/training/cancel", {"jobId": BATCH, "reason": "wrong settings"})
    assert (answer.status, answer.body["status"]) == (200, "failed")
    (batch,) = rows(database, f"SELECT error FROM training_batches WHERE \"batchId\" = '{BATCH}'")
    assert batch["error"] == "Cancelled: wrong settings (this machine)"
    assert admin.post("/api/admin/training/cancel", {"jobId": BATCH, "reason": "again"}).status == 409
    assert admin.post("/api/admin/training/cancel", {"jobId": BATCH}).status == 400


def test_a_browser_logs_in_with_an_admin_key_and_out_again(admin: AdminServer, database: Database) -> None:
    with_key(admin, database)
    status, _, page = asked(f"{admin.url}/admin")
    assert status == 401 and 'type="password"' in page and BATCH not in page
    assert asked(f"{admin.url}/admin/login", {"key": "brl-wrong"})[0] == 401
    status, headers, _ = asked(f"{admin.url}/admin/login", {"key": KEY})
    cookie = headers["set-cookie"]
    assert status == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie and KEY not in cookie
    mine = cookie.split(";")[0]
    assert "Log out operator" in asked(f"{admin.url}/admin", cookie=mine)[2]
    assert admin.get("/api/admin/training/models", cookie=mine).status == 200
    assert asked(f"{admin.url}/admin/logout", {}, cookie=mine)[0] == 303
    status, _, page = asked(f"{admin.url}/admin", cookie=mine)
    assert status == 401 and "Your login has ended: log in again." in page and 'type="password"' in page


def test_a_revoked_key_ends_its_logins(admin: AdminServer, database: Database) -> None:
    with_key(admin, database)
    mine = asked(f"{admin.url}/admin/login", {"key": KEY})[1]["set-cookie"].split(";")[0]
    assert asked(f"{admin.url}/admin", cookie=mine)[0] == 200
    with database.connect(autocommit=True) as connection:
        revoke_key(connection, "operator", utc_now())
    wait_for(lambda: asked(f"{admin.url}/admin", cookie=mine)[0] == 401, "the login to end")


def test_a_key_of_agents_opens_no_page(admin: AdminServer, database: Database) -> None:
    with_key(admin, database, admin=False)
    status, headers, page = asked(f"{admin.url}/admin/login", {"key": KEY})
    assert status == 403 and "set-cookie" not in headers and "opens the gateway only" in page


@pytest.mark.parametrize("path", ["login", "logout"])
def test_forms_of_other_sites_are_refused(admin: AdminServer, path: str) -> None:
    status, headers, _ = asked(f"{admin.url}/admin/{path}", {"key": KEY}, sec_fetch_site="cross-site")
    assert status == 403 and "set-cookie" not in headers


def test_a_login_does_not_let_other_sites_start_anything(admin: AdminServer, database: Database) -> None:
    with_key(admin, database)
    mine = asked(f"{admin.url}/admin/login", {"key": KEY})[1]["set-cookie"].split(";")[0]
    cancel = {"jobId": BATCH, "reason": "by another site"}
    assert admin.post("/api/admin/training/cancel", cancel, cookie=mine, sec_fetch_site="cross-site").status == 403
    form = {"content_type": "application/x-www-form-urlencoded"}
    assert admin.post("/api/admin/training/cancel", b"jobId=x", cookie=mine, **form).status == 415


@pytest.mark.slow
def test_without_keys_a_foreign_name_of_this_machine_is_refused(admin: AdminServer) -> None:
    for host, status in (("evil.example", 403), ("localhost:8090", 200), ("127.0.0.1", 200), ("[::1]:8090", 200)):
        assert asked(f"{admin.url}/admin", host=host)[0] == status
        assert admin.get("/api/admin/training/models", host=host).status == status


def test_a_login_ends_after_half_a_day() -> None:
    now = 0.0
    logins = Logins(lambda: now)
    headers = {"cookie": f"babylon_rl_admin={logins.open('k')}"}
    assert logins.with_key(headers)["authorization"] == "Bearer k"
    now = LOGIN_LASTS_S
    assert "authorization" not in logins.with_key(headers)
    assert logins.with_key(headers | {"authorization": "Bearer other"})["authorization"] == "Bearer other"


def test_hours_of_a_week_are_a_row_and_more_of_them_columns_of_days() -> None:
    start = window_start("2025-11-15T10:00")
    row = hour_strip({window_of(start + n * HOUR): "scored" if n else "thin" for n in range(3)})
    assert row is not None and (row.rows, row.columns, row.codes) == (1, 3, "144")
    assert row.paths == {"thin": "M0.5 0v1", "scored": "M1.5 0v1M2.5 0v1"}
    days = hour_strip({window_of(start): "ready", window_of(start + timedelta(days=8)): "trained"})
    assert days is not None and (days.rows, days.first, days.columns) == (24, "2025-11-15T00:00", 9)
    assert days.paths == {"ready": "M0.5 10v1", "trained": "M8.5 10v1"} and days.counts == {"ready": 1, "trained": 1}
    long = hour_strip({window_of(start + n * HOUR): "trained" for n in range(MOST_HOURS + 500)})
    assert long is not None and MOST_HOURS <= long.counts["trained"] <= MOST_HOURS + 23
    assert hour_strip({}) is None


def test_versions_stand_below_their_parents(admin: AdminServer) -> None:
    page = asked(f"{admin.url}/admin")[2]
    tree = page[page.index('<ul class="tree">') :]
    places = [tree.index(f"<strong>{version}</strong>") for version in ("v1.0.0", "v1.0.2", "v1.0.1", "v1.0.3")]
    assert places == sorted(places) and set(MEASURED) == {"v1.0.0", "v1.0.1", "v1.0.2", "v1.0.3"}
    assert "+$45 <small>+$12 to +$78</small> against v1.0.0" in tree
