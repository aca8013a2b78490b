"""Calls that wait on a machine that does not come back: they are at the storage, and another machine writes them."""

import logging
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from babylon_rl.serving import call_writer, shared_spool
from babylon_rl.serving import spool as spool_module
from babylon_rl.serving.spool import Spool, SpoolReader, read_status, spool_directory, stored_bytes
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.object_store import SECRET, ObjectStore
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.serving.gateways import rows, wait_for
from babylon_rl_tests.serving.test_call_log_faults import call_ids, spool_segment, writer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_spool, "AWAY_S", 0.0)
    monkeypatch.setattr(shared_spool, "LIST_S", 0.2)
    monkeypatch.setattr(shared_spool, "_PAUSE_S", 0.1)
    monkeypatch.setattr(call_writer, "_SHARE_S", 0.05)


@pytest.fixture
def machine(recording: Settings, object_store: ObjectStore, database: Database) -> Settings:
    spool_directory(recording).mkdir(parents=True)
    return recording.model_copy(update={"model_storage_url": object_store.bucket(), "database_url": SecretStr(database.url)})


@pytest.fixture
def line(database: Database) -> Iterator[Proxy]:
    """The machine's line to the database."""
    with Proxy(database.url) as proxy:
        yield proxy


def another(machine: Settings, home: Path) -> Settings:
    other = machine.model_copy(update={"babylon_rl_home": home})
    spool_directory(other).mkdir(parents=True)
    return other


def stored(store: ObjectStore, machine: Settings) -> list[str]:
    """Segments at the storage."""
    return list(store.files().find(f"{machine.model_storage_url}/spool"))


@contextmanager
def cut_off(machine: Settings, line: Proxy) -> Iterator[Path]:
    """A writer that has known the database and has lost it, with two segments of three calls; the value is its spool."""
    with writer(machine, Database(line.url, line.url)) as spool:
        wait_for((spool.parent / "database.json").exists, "the database to be known")
        line.cut(away=True)
        spool_segment(spool, "call-1", "call-2")
        spool_segment(spool, "call-3")
        yield spool


def test_calls_of_a_lost_machine_are_written_by_another_gateway(
    machine: Settings, object_store: ObjectStore, database: Database, line: Proxy, tmp_path: Path
) -> None:
    other = another(machine, tmp_path / "other")
    with writer(other, database) as spool:
        with cut_off(machine, line) as lost:
            wait_for(lambda: call_ids(database) == ["call-1", "call-2", "call-3"], "the other one to write them")
            shutil.rmtree(lost)
            lost.mkdir()
        wait_for(lambda: not stored(object_store, machine), "the storage to be empty")
        assert stored_bytes(spool) == 0
    assert rows(database, 'SELECT "totalInferences" AS n FROM trained_models') == [{"n": 3}]


def test_a_machine_that_comes_through_writes_its_own_once_and_removes_them_there(
    machine: Settings, object_store: ObjectStore, database: Database, line: Proxy
) -> None:
    with cut_off(machine, line) as spool:
        wait_for(lambda: len(stored(object_store, machine)) == 2, "the segments to be uploaded")
        line.away = False
        wait_for(lambda: not stored(object_store, machine), "the storage to be empty")
        assert stored_bytes(spool) == 0
    assert call_ids(database) == ["call-1", "call-2", "call-3"]
    assert rows(database, 'SELECT "totalInferences" AS n FROM trained_models') == [{"n": 3}]


def test_a_gateway_that_is_stopped_or_starts_while_the_database_is_away_uploads_what_waits(
    machine: Settings, object_store: ObjectStore, line: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_spool, "AWAY_S", 3600.0)
    with cut_off(machine, line) as spool:
        wait_for(lambda: read_status(spool).problem is not None, "the database to be missed")
        assert stored(object_store, machine) == []
    assert len(stored(object_store, machine)) == 2
    with writer(machine, Database(line.url, line.url)):
        spool_segment(spool, "call-4")
        wait_for(lambda: read_status(spool).problem is not None, "the database to be missed")
    assert len(stored(object_store, machine)) == 3


@pytest.mark.long
def test_a_database_that_is_silent_does_not_keep_a_stopped_gateway_from_uploading(
    machine: Settings, object_store: ObjectStore, line: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_spool, "AWAY_S", 3600.0)
    with writer(machine, Database(line.url, line.url)) as spool:
        wait_for((spool.parent / "database.json").exists, "the database to be known")
        line.deaf = True
        spool_segment(spool, "call-1")
    assert len(stored(object_store, machine)) == 1


def test_a_storage_that_fails_holds_up_nothing_and_is_said_once(
    machine: Settings, database: Database, line: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    broken = machine.model_copy(update={"model_storage_url": "s3://no-such-bucket/models"})
    with caplog.at_level(logging.WARNING), cut_off(broken, line) as spool:
        wait_for(lambda: "no-such-bucket" in caplog.text, "the storage's failure to be said")
        line.away = False
        wait_for(lambda: stored_bytes(spool) == 0, "the calls to be written")
    assert call_ids(database) == ["call-1", "call-2", "call-3"]
    assert caplog.text.count("cannot be exchanged with s3://no-such-bucket/models") == 1
    assert SECRET not in caplog.text


def test_private_fields_leave_no_machine_and_what_is_there_already_is_written(
    machine: Settings, object_store: ObjectStore, database: Database, line: Proxy
) -> None:
    private = machine.model_copy(update={"record_private_fields": "prompts"})
    with cut_off(private, line) as spool:
        wait_for(lambda: read_status(spool).problem is not None, "the database to be missed")
    assert stored(object_store, machine) == [] and stored_bytes(spool)
    with writer(machine, Database(line.url, line.url)):
        wait_for(lambda: len(stored(object_store, machine)) == 2, "the segments to be uploaded")
    shutil.rmtree(spool)
    spool.mkdir()
    with writer(private, database):
        wait_for(lambda: not stored(object_store, machine), "the storage to be empty")
    assert call_ids(database) == ["call-1", "call-2", "call-3"]


@pytest.mark.parametrize("embedded", [False, True])
def test_the_calls_of_another_database_stay_where_they_are(
    machine: Settings, object_store: ObjectStore, line: Proxy, copy_of: Callable[[str], Database], tmp_path: Path, embedded: bool
) -> None:
    with cut_off(machine, line):
        wait_for(lambda: len(stored(object_store, machine)) == 2, "the segments to be uploaded")
    other, their = copy_of("migrated"), another(machine, tmp_path / "other")
    before = object_store.lists
    with writer(their.model_copy(update={"database_url": None}) if embedded else their, other) as spool:
        spool_segment(spool, "call-9")
        wait_for(lambda: call_ids(other) == ["call-9"], "a call of its own")
        wait_for(lambda: embedded or object_store.lists >= before + 3, "three looks at the list")
    assert call_ids(other) == ["call-9"]
    assert not embedded or object_store.lists == before
    assert len(stored(object_store, machine)) == 2


def test_names_that_are_no_segments_are_left_alone(machine: Settings, object_store: ObjectStore, database: Database, line: Proxy) -> None:
    with cut_off(machine, line):
        wait_for(lambda: len(stored(object_store, machine)) == 2, "the segments to be uploaded")
        folder = stored(object_store, machine)[0].rpartition("/")[0]
        hostile = {f"{folder}//{machine.home}/outside", f"{folder}/../../outside", f"{folder}/status.json", f"{folder}/.lock"}
        for name in hostile:
            object_store.files().pipe_file(name, b"hostile")
        line.away = False
        wait_for(lambda: len(stored(object_store, machine)) <= len(hostile), "the segments to be removed")
    with writer(machine, database):
        before = object_store.lists
        wait_for(lambda: object_store.lists >= before + 3, "three looks at the list")
    assert not list(machine.home.rglob("outside")) and read_status(spool_directory(machine)).rejected == 0


def test_a_file_that_is_larger_than_any_of_ours_is_left_alone(
    machine: Settings, object_store: ObjectStore, database: Database, line: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cut_off(machine, line):
        wait_for(lambda: len(stored(object_store, machine)) == 2, "the segments to be uploaded")
    shutil.rmtree(spool_directory(machine))
    spool_directory(machine).mkdir()
    monkeypatch.setattr(shared_spool, "_LARGEST_BYTES", 1)
    with writer(machine, database):
        before = object_store.lists
        wait_for(lambda: object_store.lists >= before + 3, "three looks at the list")
    assert call_ids(database) == [] and len(stored(object_store, machine)) == 2


def test_a_machine_that_has_never_reached_its_database_says_so(machine: Settings, line: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    line.cut(away=True)
    spool_segment(spool_directory(machine), "call-1")
    with caplog.at_level(logging.WARNING), writer(machine, Database(line.url, line.url)):
        wait_for(lambda: "has not been reached from here yet" in caplog.text, "the reason to be said")


def test_a_segment_of_a_process_that_is_not_called_any_more_is_completed(machine: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(spool_directory(machine), 1024)
    assert spool.append(b"a call")
    [segment] = SpoolReader(spool_directory(machine)).segments()
    spool.complete()
    assert not SpoolReader(spool_directory(machine)).is_complete(segment)
    monkeypatch.setattr(spool_module, "SEGMENT_S", 0.0)
    spool.complete()
    assert SpoolReader(spool_directory(machine)).is_complete(segment)


def test_in_a_directory_they_are_readable_by_their_owner_alone(machine: Settings, line: Proxy, tmp_path: Path) -> None:
    with cut_off(machine.model_copy(update={"model_storage_url": f"file://{tmp_path}/shared"}), line):
        wait_for(lambda: len(list((tmp_path / "shared").rglob("*.calls"))) == 2, "the segments to be copied")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "shared").rglob("*.calls")} == {0o600}
