"""Calls that wait on a machine that does not come back: they are at the storage, and another machine writes them."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from babylon_rl.serving import call_writer, shared_spool
from babylon_rl.serving.spool import read_status, spool_directory, stored_bytes
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.object_store import SECRET, ObjectStore
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.serving.gateways import rows, wait_for
from babylon_rl_tests.serving.test_call_log_faults import call_ids, spool_segment, writer
from babylon_rl_tests.store.servers import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_spool, "AWAY_S", 0.0)
    monkeypatch.setattr(call_writer, "_SHARE_S", 0.05)


@pytest.fixture
def machine(recording: Settings, object_store: ObjectStore) -> Settings:
    return recording.model_copy(update={"model_storage_url": object_store.bucket()})


@pytest.fixture
def nowhere() -> Database:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/babylon"
    return Database(url, url)


def on_another(machine: Settings, home: Path) -> Settings:
    return machine.model_copy(update={"babylon_rl_home": home})


def stored(store: ObjectStore, machine: Settings) -> list[str]:
    """Segments at the storage."""
    return [path.rpartition("/")[2] for path in store.files().find(f"{machine.model_storage_url}/spool")]


@contextmanager
def three_calls_uploaded(machine: Settings, store: ObjectStore, database: Database) -> Iterator[None]:
    """A writer that cannot reach ``database``, with two segments that are at the storage."""
    spool_segment(spool_directory(machine), "call-1", "call-2")
    spool_segment(spool_directory(machine), "call-3")
    with writer(machine, database):
        wait_for(lambda: len(stored(store, machine)) == 2, "the segments to be uploaded")
        yield


def test_calls_of_a_lost_machine_are_written_by_the_next_gateway(
    machine: Settings, object_store: ObjectStore, database: Database, nowhere: Database, tmp_path: Path
) -> None:
    with three_calls_uploaded(machine, object_store, nowhere):
        shutil.rmtree(spool_directory(machine))
        spool_directory(machine).mkdir()
    left = stored(object_store, machine)
    assert len(left) == 2
    other = on_another(machine, tmp_path / "other")
    spool_segment(spool_directory(other), "call-4")
    with writer(other, database) as spool:
        wait_for(lambda: not stored(object_store, machine), "the storage to be empty")
        assert call_ids(database) == ["call-1", "call-2", "call-3", "call-4"]
        assert stored_bytes(spool) == 0
    assert rows(database, 'SELECT "totalInferences" AS n FROM trained_models') == [{"n": 4}]


def test_a_machine_that_comes_through_writes_its_own_once_and_removes_them_there(
    machine: Settings, object_store: ObjectStore, database: Database, tmp_path: Path
) -> None:
    proxy = Proxy(database.url)
    proxy.away = True
    with three_calls_uploaded(machine, object_store, Database(proxy.url, proxy.url)):
        # Another gateway starts meanwhile and reaches the database.
        other = on_another(machine, tmp_path / "other")
        spool_directory(other).mkdir(parents=True)
        with writer(other, database):
            wait_for(lambda: not stored(object_store, machine), "the storage to be empty")
        proxy.away = False
        wait_for(lambda: stored_bytes(spool_directory(machine)) == 0, "the own segments to be written")
    assert call_ids(database) == ["call-1", "call-2", "call-3"]
    assert rows(database, 'SELECT "totalInferences" AS n FROM trained_models') == [{"n": 3}]
    assert stored(object_store, machine) == []


def test_a_gateway_that_is_stopped_uploads_what_waits_at_once(
    machine: Settings, object_store: ObjectStore, nowhere: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_spool, "AWAY_S", 3600.0)
    spool_segment(spool_directory(machine), "call-1")
    with writer(machine, nowhere) as spool:
        wait_for(lambda: read_status(spool).problem is not None, "the database to be missed")
        assert stored(object_store, machine) == []
    assert len(stored(object_store, machine)) == 1 and stored_bytes(spool)


def test_a_storage_that_fails_holds_up_nothing_and_is_said_once(
    machine: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = Proxy(database.url)
    proxy.away = True
    broken = machine.model_copy(update={"model_storage_url": "s3://no-such-bucket/models"})
    spool_segment(spool_directory(broken), "call-1")
    with caplog.at_level(logging.WARNING), writer(broken, Database(proxy.url, proxy.url)) as spool:
        wait_for(lambda: "no-such-bucket" in caplog.text, "the storage's failure to be said")
        proxy.away = False
        wait_for(lambda: stored_bytes(spool) == 0, "the call to be written")
    assert call_ids(database) == ["call-1"]
    assert caplog.text.count("cannot be exchanged with s3://no-such-bucket/models") == 1
    assert SECRET not in caplog.text


def test_private_fields_stay_on_the_machine(machine: Settings, object_store: ObjectStore, nowhere: Database) -> None:
    private = machine.model_copy(update={"record_private_fields": "prompts"})
    spool_segment(spool_directory(private), "call-1")
    with writer(private, nowhere) as spool:
        wait_for(lambda: read_status(spool).problem is not None, "the database to be missed")
    assert stored(object_store, machine) == [] and stored_bytes(spool)
