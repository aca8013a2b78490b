"""Database, upstream, writer and gateway fail under load: every answered call is in the database once."""

import http.client
import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

import psutil
import pytest

from babylon_rl.serving import call_writer
from babylon_rl.serving.call_writer import CallWriter
from babylon_rl.serving.spool import read_status
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.serving.gateways import Clients, gateway_process, rows, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import ModelStandIn
from babylon_rl_tests.store.proxy import Proxy

CLIENTS = 6


class Load(Clients):
    """Clients that call as fast as they are answered; ``answered`` are the markers in the prompts of complete answers."""

    def __init__(self, port: int, name: str = "call") -> None:
        super().__init__(CLIENTS)
        self.port, self.name = port, name
        self.answered: list[str] = []
        self.failed = 0
        self._numbers = [0] * CLIENTS

    def more(self, calls: int) -> None:
        """Wait until that many further calls are answered."""
        target = len(self.answered) + calls
        wait_for(lambda: len(self.answered) >= target, f"{calls} more answers")

    def ask(self, client: int) -> None:
        self._numbers[client] += 1
        marker, stream = f"{self.name} {client}/{self._numbers[client]}", self._numbers[client] % 2 == 0
        body = {"model": "babylon-agent", "messages": [{"role": "user", "content": marker}], "stream": stream}
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        try:
            request = urllib.request.Request(url, json.dumps(body).encode(), {"x-babylon-agent": f"agent-{client}"})
            with urllib.request.urlopen(request, timeout=20) as response:
                answer = response.read()
        except (OSError, http.client.HTTPException) as failure:
            if isinstance(failure, urllib.error.HTTPError):
                failure.close()
            self.failed += 1
            time.sleep(0.05)
            return
        complete = b"[DONE]" in answer if stream else b'"choices"' in answer
        if complete:
            self.answered.append(marker)
        else:
            self.failed += 1


def require_each_once(database: Database, answered: list[str]) -> None:
    """Every answered call has one row with its texts; no call has two."""

    def missing() -> set[str]:
        return set(answered) - {row["userPrompt"] for row in rows(database, 'SELECT "userPrompt" FROM llm_call_logs')}

    wait_for(lambda: not missing(), "all answered calls to be written")
    recorded = [row["userPrompt"] for row in rows(database, 'SELECT "userPrompt" FROM llm_call_logs')]
    assert sorted(set(recorded)) == sorted(recorded)
    calls = rows(database, 'SELECT count(*) AS n, count(DISTINCT "callId") AS ids FROM babylon_rl.gateway_calls WHERE status = 200')[0]
    assert calls["n"] == calls["ids"] == len(recorded)
    assert rows(database, 'SELECT "totalInferences" AS n FROM trained_models')[0]["n"] <= len(recorded)


def test_a_database_that_is_cut_off_and_stays_away_delays_no_answer_and_loses_no_call(recording: Settings, database: Database) -> None:
    proxy = Proxy(database.url)
    with running_gateway(recording, Database(proxy.url, proxy.url), writes=True) as gateway:
        with Load(gateway.port) as load:
            load.more(40)
            proxy.away = True
            proxy.cut()
            load.more(40)
            ready = json.load(urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/ready"))
            proxy.away = False
            load.more(20)
            # The answer to a commit is lost: the rows may be there already.
            proxy.after(200)
            load.more(40)
        assert load.failed == 0 and ready["ready"]
        require_each_once(database, load.answered)


def test_a_database_that_goes_silent_is_left_after_a_bound_and_gets_each_call_once(
    recording: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_writer, "ANSWER_S", 0.5)
    with Proxy(database.url) as proxy, running_gateway(recording, database) as gateway:
        closing = threading.Event()
        thread = threading.Thread(target=CallWriter(recording, closing).run, args=(Database(proxy.url, proxy.url),), daemon=True)
        with Load(gateway.port) as load:
            load.more(20)
            thread.start()
            wait_for(lambda: rows(database, "SELECT 1 FROM llm_call_logs LIMIT 1"), "the first call to be written")
            proxy.deaf = True
            load.more(20)
            wait_for(
                lambda: "did not answer within 0.5 s" in (read_status(recording.home / "gateway" / "spool").problem or ""),
                "the silence to be noticed",
            )
            proxy.deaf = False
            load.more(20)
        require_each_once(database, load.answered)
        closing.set()
        thread.join(10)


def test_a_gateway_that_is_killed_loses_no_call_that_it_answered(recording: Settings, database: Database, upstream: ModelStandIn) -> None:
    with gateway_process(recording, database) as (process, port), Load(port) as load:
        load.more(60)
        process.kill()
        process.wait()
    with gateway_process(recording, database) as (_, port), Load(port, "again") as again:
        again.more(10)
        answered = [*load.answered, *again.answered]
    require_each_once(database, answered)


def test_a_writer_that_is_killed_is_started_again_and_writes_nothing_twice(recording: Settings, database: Database) -> None:
    with gateway_process(recording, database) as (process, port):
        with Load(port) as load:
            kill_writer(process, load)
        require_each_once(database, load.answered)


def kill_writer(process: subprocess.Popen[str], load: Load) -> None:
    load.more(40)
    killed = {child.pid for child in psutil.Process(process.pid).children()}
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    load.more(40)
    wait_for(lambda: {child.pid for child in psutil.Process(process.pid).children()} - killed, "a new writer")
    load.more(10)


def test_an_upstream_that_dies_fails_calls_and_is_used_again(recording: Settings, database: Database, upstream: ModelStandIn) -> None:
    with running_gateway(recording, database, writes=True) as gateway:
        with Load(gateway.port) as load:
            load.more(30)
            upstream.behaviour |= {"v1.0.0": "hangs up", "base": "hangs up"}
            wait_for(lambda: load.failed > 10, "calls to fail")
            upstream.behaviour.clear()
            load.more(10)
        require_each_once(database, load.answered)
        assert {row["status"] for row in rows(database, "SELECT DISTINCT status FROM babylon_rl.gateway_calls")} <= {200, 502, 503}
