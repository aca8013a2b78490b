"""Metrics of several processes, and a database that goes silent."""

import http.client
import json
import re
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from pydantic import SecretStr

from babylon_rl.serving import live_state
from babylon_rl.serving.access import Access, key_hash
from babylon_rl.serving.metrics import PROCESSES_DIRECTORY, GatewayMetrics
from babylon_rl.settings import Settings
from babylon_rl.store.client_keys import ClientKey, create_key
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.serving.gateways import MESSAGES, NOW, RunningGateway, add_version, gateway_process, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import ModelStandIn


def sampled(port: int, name: str) -> float | None:
    samples = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    found = re.search(rf"^babylon_gateway_{re.escape(name)} (.+)$", samples, re.MULTILINE)
    return None if found is None else float(found[1])


def test_a_file_that_another_process_has_just_opened_is_read_once_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROCESSES_DIRECTORY, str(tmp_path))
    opened = tmp_path / "counter_1.db"
    opened.touch()
    sized = threading.Timer(0.015, lambda: opened.write_bytes((8).to_bytes(4, sys.byteorder) + bytes(60)))
    sized.start()
    assert b"babylon_gateway_spool" in GatewayMetrics(lambda: {"bytes": 0}).text()
    sized.join()


@pytest.mark.long
def test_each_of_several_processes_shows_the_numbers_of_all_also_of_one_that_ended(
    settings: Settings, database: Database, upstream: ModelStandIn
) -> None:
    add_version(database, "v1.0.0")
    body = json.dumps({"model": "auto", "messages": MESSAGES}).encode()
    answered = 'requests_total{arm="deployed",status="200",version="v1.0.0"}'
    with gateway_process(settings.model_copy(update={"local_endpoint": upstream.url}), database, workers=2) as (gateway, port):
        (metrics,) = (settings.home / "gateway").glob("metrics-*")

        def processes() -> set[int]:
            return {int(file.stem.rpartition("_")[2]) for file in metrics.glob("gauge_live*.db")}

        wait_for(lambda: len(processes()) == 2, "both processes to start")
        for _ in range(12):
            urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, {"content-type": "application/json"})
            ).read()
        assert [sampled(port, answered) for _ in range(6)] == [12] * 6
        upstream.behaviour["v1.0.0"] = "hangs"
        hanging = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, {"content-type": "application/json"})
        asking = threading.Thread(target=lambda: suppress_errors(hanging))
        asking.start()
        wait_for(lambda: sampled(port, "open_requests") == 1, "a request under way")
        before = processes()
        for pid in before:
            assert psutil.Process(pid).ppid() == gateway.pid
            psutil.Process(pid).kill()
        wait_for(lambda: len(processes()) == 2 and not processes() & before, "other processes to start")
        assert {sampled(port, answered) for _ in range(6)} == {12} and sampled(port, "open_requests") == 0
        asking.join()
        assert (sampled(port, "database_answers"), sampled(port, 'spool{state="written"}')) != (None, None)
    assert not metrics.exists()


def suppress_errors(request: urllib.request.Request) -> None:
    with suppress(OSError, http.client.HTTPException):
        urllib.request.urlopen(request).read()


@pytest.mark.slow
def test_a_silent_database_is_noticed_and_the_gateway_goes_on_when_it_speaks_again(
    settings: Settings, database: Database, upstream: ModelStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_state, "POLL_S", 0.5)
    monkeypatch.setattr(live_state, "ANSWER_S", 0.5)
    add_version(database, "v1.0.0")
    with (
        Proxy(database.url) as proxy,
        running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), Database(proxy.url, proxy.url)) as gateway,
    ):

        def said() -> str:
            return str(json.load(urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/ready"))["database"])

        wait_for(lambda: said() == "ok", "the database")
        proxy.deaf = True
        wait_for(lambda: "does not answer" in said(), "the silence to be noticed")
        raw = gateway.client().chat.completions.with_raw_response.create(model="auto", messages=MESSAGES)
        assert raw.headers["x-babylon-version"] == "v1.0.0"
        proxy.deaf = False
        wait_for(lambda: said() == "ok", "the database")


NO_DATABASE = Database("postgresql://nobody@127.0.0.1:1/nothing", "postgresql://nobody@127.0.0.1:1/nothing")


def test_a_database_that_never_answers_is_logged_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live_state, "_RETRY_S", 0.01)
    away = live_state.LiveState(settings.model_copy(update={"database_url": SecretStr(NO_DATABASE.url)}), Access())
    away.start()
    time.sleep(0.5)
    away.close()
    assert [record.message for record in caplog.records].count("The database does not answer; routing and keys stay as they are.") == 1


PROXIED = {"x-forwarded-for": "203.0.113.9"}  # another machine's request


def routed(gateway: RunningGateway, model: str, key: str = "none", headers: dict[str, str] | None = None) -> tuple[str, str]:
    raw = gateway.client(key).chat.completions.with_raw_response.create(model=model, messages=MESSAGES, extra_headers=headers)
    return raw.headers["x-babylon-version"], raw.headers["x-babylon-reason"]


def readiness(gateway: RunningGateway) -> dict[str, Any]:
    found: dict[str, Any] = json.load(urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/ready"))
    return found


@pytest.mark.parametrize("pinned", [None, "v1.0.3"])
def test_a_gateway_that_never_saw_its_database_serves_the_base_to_this_machine_whatever_is_named(
    settings: Settings, upstream: ModelStandIn, pinned: str | None
) -> None:
    changed = settings.model_copy(update={"local_endpoint": upstream.url, "rl_model_version": pinned})
    with running_gateway(changed, NO_DATABASE) as gateway:
        for model in ("babylon-agent", "v1.0.3", "auto"):
            assert routed(gateway, model)[0] == "base"
        ready = readiness(gateway)
        with pytest.raises(openai.InternalServerError, match="before the database has answered"):
            routed(gateway, "auto", "brl-game", PROXIED)
    assert ready["serving"] == "base, to this machine alone" and "does not answer" in ready["database"]
    assert ready["recording"]["waitingBytes"] > 0


def test_without_a_fallback_a_version_that_nobody_can_look_up_is_refused(settings: Settings, upstream: ModelStandIn) -> None:
    changed = settings.model_copy(update={"local_endpoint": upstream.url, "rl_fallback_to_base": False})
    with running_gateway(changed, NO_DATABASE) as gateway, pytest.raises(openai.NotFoundError):
        routed(gateway, "v1.0.3")


@pytest.mark.slow
def test_a_gateway_started_while_its_database_is_away_serves_releases_and_keys_as_last_known(
    settings: Settings, database: Database, upstream: ModelStandIn
) -> None:
    add_version(database, "v1.0.0")
    with connect(database.url) as connection:
        create_key(connection, ClientKey("game", key_hash("brl-game"), None, None, NOW))
        create_key(connection, ClientKey("old", key_hash("brl-old"), None, None, NOW, revoked_at=NOW))
        connection.execute('UPDATE babylon_rl.client_keys SET "revokedAt" = "createdAt" WHERE name = \'old\'')
    settings = settings.model_copy(update={"local_endpoint": upstream.url})
    kept = settings.home / "gateway" / "state.json"
    proxy = Proxy(database.url)
    behind = Database(proxy.url, proxy.url)
    with running_gateway(settings, behind) as gateway:
        wait_for(kept.exists, "the state to be kept")
    assert kept.stat().st_mode & 0o777 == 0o600 and b"brl-game" not in kept.read_bytes()
    proxy.away = True
    with running_gateway(settings, behind) as gateway:
        assert routed(gateway, "auto", "brl-game", PROXIED) == ("v1.0.0", "v1.0.0 is deployed")
        assert routed(gateway, "v1.0.9", "brl-game") == ("base", "the registry does not answer")
        for key in ("brl-old", "none"):
            with pytest.raises(openai.AuthenticationError):
                routed(gateway, "auto", key)
        assert readiness(gateway)["serving"] == "as last known"
    with running_gateway(settings, NO_DATABASE) as gateway:  # another one, whose keys nobody knows
        assert routed(gateway, "auto")[0] == "base" and readiness(gateway)["serving"] == "base, to this machine alone"
    kept.write_text("{")
    with running_gateway(settings, behind) as gateway:
        assert routed(gateway, "auto")[0] == "base" and readiness(gateway)["serving"] == "base, to this machine alone"
