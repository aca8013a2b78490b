"""Database, upstream, writer and gateway fail under load: every answered call is in the database once."""

import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from msgspec import msgpack
from pydantic import SecretStr

from babylon_rl.serving import call_writer
from babylon_rl.serving.call_entry import CallEntry
from babylon_rl.serving.call_writer import CallWriter
from babylon_rl.serving.spool import Spool, SpoolReader, read_status, stored_bytes
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.full_disk import no_free_descriptor
from babylon_rl_tests.memory import quick_directory
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.serving.gateways import Clients, add_version, gateway_process, rows, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import ModelStandIn
from babylon_rl_tests.store.servers import ROOT

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
            request = urllib.request.Request(
                url, json.dumps(body).encode(), {"x-babylon-agent": f"agent-{client}", "content-type": "application/json"}
            )
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
    answered_by = "SELECT count(*) AS n FROM babylon_rl.gateway_calls WHERE status = 200 AND version = 'v1.0.0'"
    assert rows(database, 'SELECT "totalInferences" AS n FROM trained_models') == rows(database, answered_by)


@pytest.mark.slow
def test_a_database_that_is_cut_off_and_stays_away_delays_no_answer_and_loses_no_call(recording: Settings, database: Database) -> None:
    proxy = Proxy(database.url)
    with running_gateway(recording, Database(proxy.url, proxy.url), writes=True) as gateway:
        with Load(gateway.port) as load:
            load.more(40)
            proxy.cut(away=True)
            load.more(40)
            ready = json.load(urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/ready"))
            proxy.away = False
            load.more(20)
            # The answer to a commit is lost: the rows may be there already.
            proxy.after(200)
            load.more(40)
        assert load.failed == 0 and ready["ready"]
        require_each_once(database, load.answered)


@pytest.mark.slow
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


@pytest.mark.long
def test_a_gateway_that_is_killed_loses_no_call_that_it_answered(recording: Settings, database: Database, upstream: ModelStandIn) -> None:
    with gateway_process(recording, database) as (process, port), Load(port) as load:
        load.more(60)
        process.kill()
        process.wait()
    with gateway_process(recording, database) as (_, port), Load(port, "again") as again:
        again.more(10)
        answered = [*load.answered, *again.answered]
    require_each_once(database, answered)


@pytest.mark.long
def test_a_writer_that_is_killed_is_started_again_and_writes_nothing_twice(recording: Settings, database: Database) -> None:
    with gateway_process(recording, database) as (process, port):
        with Load(port) as load:
            kill_writer(process, load)
        require_each_once(database, load.answered)


@pytest.mark.slow
def test_a_writer_is_started_again_once_there_are_free_files_and_leaves_none_open(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_writer, "_RESTART_S", 0.2)
    settings = settings.model_copy(update={"database_url": SecretStr(database.url)})
    this = psutil.Process()
    known = {child.pid for child in this.children()}

    def writers() -> set[int]:
        return {child.pid for child in this.children() if child.status() != psutil.STATUS_ZOMBIE} - known

    with call_writer.call_writer(settings):
        (first,), files = writers(), this.num_fds()
        os.kill(first, signal.SIGKILL)
        with no_free_descriptor():
            time.sleep(1)
        wait_for(lambda: writers() - {first}, "a new writer")
        wait_for(lambda: this.num_fds() <= files, "the files of its start to be closed")
    assert writers() == set()


def kill_writer(process: subprocess.Popen[str], load: Load) -> None:
    load.more(40)
    killed = {child.pid for child in psutil.Process(process.pid).children()}
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    load.more(40)
    wait_for(lambda: {child.pid for child in psutil.Process(process.pid).children()} - killed, "a new writer")
    load.more(10)


@pytest.mark.long
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


@contextmanager
def upstream_process(port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The stand-in as a process of its own, and its port."""
    command = [sys.executable, "-m", "babylon_rl_tests.serving.model_stand_in", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A Postgres that the test may kill."""
    with quick_directory(tmp_path) as home:
        cluster = Cluster(home)
        cluster.create()
        yield cluster
        cluster.stop()


@pytest.mark.long
def test_database_upstream_and_gateway_killed_in_turn_under_load_lose_no_answered_call_and_count_none_twice(
    settings: Settings, cluster: Cluster
) -> None:
    url = cluster.url(cluster.start())
    database = Database(url, url)
    migrate(database)
    add_version(database, "v1.0.0")
    with ExitStack() as stack:
        upstream, upstream_port = stack.enter_context(upstream_process())
        settings = settings.model_copy(update={"local_endpoint": f"http://127.0.0.1:{upstream_port}"})
        gateway, port = stack.enter_context(gateway_process(settings, database))
        with Load(port) as load:
            load.more(100)
            os.kill(int((cluster.directory / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
            load.more(100)
            upstream.kill()
            upstream.wait()
            seen = load.failed
            wait_for(lambda: load.failed > seen + 10, "calls to fail")
            stack.enter_context(upstream_process(upstream_port))
            load.more(100)
            # The database is away still: the next gateway serves as last known.
            gateway.kill()
            gateway.wait()
            seen = load.failed
            wait_for(lambda: load.failed > seen, "calls to fail")
            stack.enter_context(gateway_process(settings, database, port=port))
            load.more(100)
            wait_for(lambda: cluster.running_port() is None, "the killed server's processes to end")
            assert cluster.url(cluster.start()) == url
            load.more(100)
        require_each_once(database, load.answered)


FULL = Path("/dev/full")  # refuses each write as a full disk does


@contextmanager
def writer(settings: Settings, database: Database) -> Iterator[Path]:
    """A writer in a thread; the value is its spool. It must still run when the block ends."""
    closing = threading.Event()
    thread = threading.Thread(target=CallWriter(settings, closing).run, args=(database,), daemon=True)
    thread.start()
    yield settings.home / "gateway" / "spool"
    assert thread.is_alive() and any(other.name == "babylon-spool-sync" for other in threading.enumerate())
    closing.set()
    thread.join(10)


def spool_segment(directory: Path, *call_ids: str, request: bytes | None = None, answer: bytes = b"{}", latency_ms: float = 1.0) -> None:
    """A complete segment of calls; one named NO_CALL is none."""
    spool = Spool(directory, 1024**2)
    for name in call_ids:
        entry = CallEntry(
            name, name, 0, "a1", None, None, None, "action", None, [], "v1.0.0", "v1.0.0", "deployed", "deployed", "auto", None, 200,
            latency_ms, None, 1, 1, request, None if request is None else answer,
        )  # fmt: skip
        assert spool.append(NO_CALL.encode() if name == NO_CALL else msgpack.encode(entry))
    spool.close()


def call_ids(database: Database) -> list[str]:
    return [row["callId"] for row in rows(database, 'SELECT "callId" FROM babylon_rl.gateway_calls ORDER BY 1')]


NO_CALL = "no call"


def test_a_full_disk_is_freed_of_the_calls_that_wait_on_it(recording: Settings, database: Database) -> None:
    directory = recording.home / "gateway" / "spool"
    spool_segment(directory, *(f"call-{number:03}" for number in range(300)))
    (directory / ".status.json").symlink_to(FULL)
    with writer(recording, database):
        wait_for(lambda: stored_bytes(directory) == 0, "the disk to be freed")
        (directory / ".status.json").unlink()  # there is room now
        wait_for(lambda: read_status(directory).written == 300, "the status to be seen again")
    assert len(call_ids(database)) == 300
    assert rows(database, 'SELECT "totalInferences" AS n FROM trained_models') == [{"n": 300}]


def test_a_refused_row_that_cannot_be_kept_stays_in_its_segment_and_holds_up_no_other(recording: Settings, database: Database) -> None:
    directory = recording.home / "gateway" / "spool"
    kept = directory.parent / "rejected.calls.json"
    spool_segment(directory, "call-1", NO_CALL, "call-2")
    spool_segment(directory, "call-3")
    kept.symlink_to(FULL)
    with writer(recording, database):
        wait_for(lambda: "No space left on device" in (read_status(directory).problem or ""), "the problem to be said")
        assert len(list(directory.glob("*.calls"))) == 1 and call_ids(database) == ["call-1", "call-2", "call-3"]
        kept.unlink()
        wait_for(lambda: stored_bytes(directory) == 0, "the disk to be freed")
        wait_for(lambda: read_status(directory).problem is None, "the problem to be over")
    (line,) = kept.read_text().splitlines()
    assert json.loads(line)["row"] == repr(NO_CALL.encode()) and read_status(directory).rejected == 1
    assert rows(database, 'SELECT "totalInferences" AS n FROM trained_models') == [{"n": 3}]


def test_a_call_with_a_number_that_cannot_be_is_refused_and_holds_up_no_other(recording: Settings, database: Database) -> None:
    directory = recording.home / "gateway" / "spool"
    chat = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'
    said = b'{"choices": [{"message": {"role": "assistant", "content": "hi"}}]}'
    spool_segment(directory, "call-1", request=chat, answer=said, latency_ms=float("inf"))
    spool_segment(directory, "call-2", latency_ms=float("inf"))
    spool_segment(directory, "call-3")
    with writer(recording, database):
        wait_for(lambda: stored_bytes(directory) == 0, "the spool to be empty")
    assert call_ids(database) == ["call-3"] and read_status(directory).rejected >= 2


REFUSING = """
CREATE FUNCTION refuse_call() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this agent'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON babylon_rl.gateway_calls FOR EACH ROW WHEN (NEW."callId" = 'call-2') EXECUTE FUNCTION refuse_call()
"""


def test_a_row_that_a_trigger_of_the_database_refuses_holds_up_no_other(recording: Settings, database: Database) -> None:
    with database.connect(autocommit=True) as connection:
        connection.execute(REFUSING)
    directory = recording.home / "gateway" / "spool"
    spool_segment(directory, "call-1", "call-2", "call-3")
    with writer(recording, database):
        wait_for(lambda: stored_bytes(directory) == 0, "the segment to be handled")
    assert call_ids(database) == ["call-1", "call-3"] and read_status(directory).rejected == 1
    assert "not this agent" in (directory.parent / "rejected.calls.json").read_text()


def test_a_segment_that_cannot_be_read_holds_up_no_other_and_ends_no_thread(recording: Settings, database: Database) -> None:
    directory = recording.home / "gateway" / "spool"
    (directory / "0.calls").mkdir(parents=True)
    spool_segment(directory, "call-1")
    with writer(recording, database):
        wait_for(lambda: "Is a directory" in (read_status(directory).problem or ""), "the problem to be said")
        assert call_ids(database) == ["call-1"]
        (directory / "0.calls").rmdir()
        wait_for(lambda: read_status(directory).problem is None, "the problem to be over")


def test_zeros_that_a_power_failure_leaves_behind_a_call_are_no_calls(recording: Settings, database: Database) -> None:
    directory = recording.home / "gateway" / "spool"
    spool_segment(directory, "call-1")
    (segment,) = directory.glob("*.calls")
    with segment.open("ab") as file:
        file.write(bytes(4096))
    with writer(recording, database):
        wait_for(lambda: stored_bytes(directory) == 0, "the segment to be handled")
    assert call_ids(database) == ["call-1"] and read_status(directory).rejected == 0


_WITHOUT_DESCRIPTORS = """
import os, resource, sys
from pathlib import Path
from babylon_rl.serving.spool import Spool
spool = Spool(Path(sys.argv[1]), 1024**3)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
def use_all():
    try:
        while True:
            os.dup(0)
    except OSError:
        pass
for record in (b"first", b"x" * 16 * 1024**2, b"in a new segment"):
    use_all()
    print(spool.append(record))
"""


def test_a_call_is_recorded_while_connections_hold_all_descriptors(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT_DESCRIPTORS, str(tmp_path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["True"] * 3, "")
    reader = SpoolReader(tmp_path)
    records = [record for segment in reader.segments() for record in reader.read(segment, 10, 32 * 1024**2)[0]]
    assert [record[:20] for record in records] == [b"first", b"x" * 20, b"in a new segment"]


def test_a_record_that_is_not_taken_has_its_reason(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 100)
    assert spool.append(b"x" * 80) and not spool.append(b"x" * 80)
    assert spool.reason == "88 bytes wait for the database already"
    spool.close()
    away = Spool(tmp_path / "away", 100)
    (tmp_path / "away").rmdir()
    assert not away.append(b"x") and "No such file or directory" in away.reason
    full = Spool(tmp_path / "full", 100)
    with open(FULL, "wb", buffering=0) as disk:
        assert full.append(b"x") and full._file is not None
        os.dup2(disk.fileno(), full._file)
        assert not full.append(b"x") and "No space left on device" in full.reason
    assert (spool.refused, away.refused, full.refused) == (1, 1, 1)


def test_a_power_failure_takes_neither_a_segment_nor_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(stat.S_ISDIR(os.fstat(file).st_mode)), sync(file)))
    reader, spool = SpoolReader(tmp_path), Spool(tmp_path, 1024**2)
    for record, expected in ((b"one", [False, True]), (None, []), (b"two", [False])):
        if record is not None:
            assert spool.append(record)
        reader.sync()
        assert synced == expected, record
        synced.clear()
    spool.close()


@pytest.mark.parametrize(("private", "kept"), [("", True), ("prompts", False)])
def test_refused_calls_are_kept_for_their_owner_alone_and_without_private_fields(
    recording: Settings, database: Database, private: str, kept: bool
) -> None:
    directory = recording.home / "gateway" / "spool"
    spool_segment(directory, "call-1", NO_CALL, request=b'{"messages": "a secret"}')
    with writer(recording.model_copy(update={"record_private_fields": private}), database):
        wait_for(lambda: stored_bytes(directory) == 0, "the segment to be handled")
    rejected = directory.parent / "rejected.calls.json"
    lines = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert "The texts of call call-1 cannot be recorded" in lines[0]["reason"] and len(lines) == 2
    assert ("a secret" in rejected.read_text(), repr(NO_CALL.encode()) in rejected.read_text()) == (kept, kept)
    assert stat.S_IMODE(rejected.stat().st_mode) == 0o600 and call_ids(database) == ["call-1"]


class ManyPauses(threading.Event):
    """An event that is set after 1100 pauses of a writer that fails, which take no time."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def wait(self, timeout: float | None = None) -> bool:
        if timeout == call_writer._EVERY_S:  # of its other thread
            return super().wait(timeout)
        self.number += 1
        if self.number == 1100:
            self.set()
        return self.is_set()


@pytest.mark.long
def test_a_fault_that_lasts_for_hours_is_still_tried_again(recording: Settings, database: Database) -> None:
    (recording.home / "gateway" / "spool" / "0.calls").mkdir(parents=True)
    pauses = ManyPauses()
    CallWriter(recording, pauses).run(database)
    assert pauses.number == 1100


@pytest.mark.parametrize(("given", "kept"), [(-1, 0), (2**31 - 1, 2**31 - 1), (2**40, 2**31 - 1)])
def test_a_limit_of_tokens_that_the_column_cannot_hold_is_recorded_as_the_nearest_one_that_it_can(given: int, kept: int) -> None:
    entry = CallEntry(
        "call-1", "call-1", 0, "a1", None, None, None, "action", None, [], None, None, "base", "base", "auto", None, 200, 1.0, None, 1, 1,
        json.dumps({"messages": [{"role": "user", "content": "What now?"}], "max_tokens": given}).encode(),
        b'{"choices": [{"message": {"content": "hold"}}]}',
    )  # fmt: skip
    row = entry.log_row()
    assert row is not None and row["maxTokens"] == kept


def test_the_calls_of_tools_in_a_stream_are_put_together_from_their_pieces() -> None:
    begun = {"id": "t", "type": "function", "function": {"name": "trade", "arguments": ""}}
    pieces = [[{"index": 0} | begun], [{"index": 0, "id": None, "function": {"arguments": '{"usd": '}}]]
    pieces += [[{"index": 0, "function": {"arguments": "5}"}}]]
    pieces += [[{"index": 1, "id": "u", "type": "function", "function": {"name": "look", "arguments": "{}"}}, "odd", {"function": None}]]
    events = [json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": some}}]}) for some in pieces]
    entry = CallEntry(
        "call-1", "call-1", 0, "a1", None, None, None, "action", None, [], None, None, "base", "base", "auto", None, 200, 1.0, None, 1, 1,
        json.dumps({"messages": [{"role": "user", "content": "What now?"}]}).encode(),
        "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode(),
    )  # fmt: skip
    row = entry.log_row()
    assert row is not None and json.loads(row["metadata"])["toolCalls"] == [
        {"id": "t", "type": "function", "function": {"name": "trade", "arguments": '{"usd": 5}'}},
        {"id": "u", "type": "function", "function": {"name": "look", "arguments": "{}"}},
        {"function": {}},
    ]
