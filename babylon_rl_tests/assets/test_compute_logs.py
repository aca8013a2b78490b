"""Output of a run on one machine, read by a webserver on another through COMPUTE_LOGS_URL."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import dagster as dg
import fsspec
import pytest
from dagster._core.storage.cloud_storage_compute_log_manager import _upload_partial_logs
from dagster._core.storage.compute_log_manager import ComputeIOType
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from fsspec.implementations.memory import MemoryFileSystem

from babylon_rl.automation.compute_logs import BabylonComputeLogs
from babylon_rl.automation.instance import open_instance
from babylon_rl.errors import BabylonError, UsageError
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database

pytestmark = pytest.mark.slow


class UnreliableFileSystem(MemoryFileSystem):
    """A remote place in memory that fails the next ``away`` questions, and breaks off the next ``cut`` downloads half way.

    ``down``: nobody can connect to it.
    """

    protocol, cachable = "unreliable", False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    away: ClassVar[int] = 0
    cut: ClassVar[int] = 0
    down: ClassVar[bool] = False
    arrived: ClassVar[threading.Event] = threading.Event()

    def __init__(self, **given: Any) -> None:
        if self.down:
            raise ConnectionRefusedError("nobody listens")
        super().__init__(**given)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("unreliable://", "memory://")))

    def exists(self, path: str, **given: Any) -> bool:
        if type(self).away:
            type(self).away -= 1
            raise ConnectionResetError("no answer")
        return bool(super().exists(path, **given))

    def put_file(self, lpath: str, rpath: str, **given: Any) -> None:
        super().put_file(lpath, rpath, **given)
        self.arrived.set()

    def get_file(self, rpath: str, lpath: str, **given: Any) -> None:
        content = self.cat_file(rpath)
        Path(lpath).write_bytes(content[: len(content) // 2] if self.cut else content)
        if type(self).cut:
            type(self).cut -= 1
            raise ConnectionResetError("cut off")


@pytest.fixture
def unreliable() -> Iterator[type[UnreliableFileSystem]]:
    fsspec.register_implementation("unreliable", UnreliableFileSystem, clobber=True)
    UnreliableFileSystem.away = UnreliableFileSystem.cut = 0
    UnreliableFileSystem.down = False
    UnreliableFileSystem.arrived.clear()
    yield UnreliableFileSystem
    UnreliableFileSystem.store.clear()
    UnreliableFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def database(database: Database) -> Database:
    database.prepare_dagster_schema()
    return database


@dg.op
def loud() -> None:
    print("said by the step")


@dg.job
def talk() -> None:
    loud()


def output(instance: dg.DagsterInstance, run_id: str) -> tuple[list[str], str]:
    """The key of the only step's output, and what it printed."""
    (event,) = [record.event_log_entry for record in instance.get_records_for_run(run_id).records if _captured(record)]
    data: Any = event.get_dagster_event().event_specific_data
    key = [run_id, "compute_logs", data.file_key]
    printed, _ = instance.compute_log_manager.get_log_data_for_type(key, ComputeIOType.STDOUT, 0, None)
    return key, (printed or b"").decode()


def _captured(record: Any) -> bool:
    return record.event_log_entry.dagster_event_type == dg.DagsterEventType.LOGS_CAPTURED


def test_the_output_of_a_run_is_read_on_another_machine_and_deleted_there(
    database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPUTE_LOGS_URL", f"file://{tmp_path}/logs")
    with open_instance(database, settings) as instance:
        ended = talk.execute_in_process(instance=instance)
    assert list((settings.home / "dagster" / "storage" / ended.run_id).rglob("*.out")) == []  # uploaded, and no longer needed
    with open_instance(database, settings.model_copy(update={"babylon_rl_home": tmp_path / "elsewhere"})) as instance:
        key, printed = output(instance, ended.run_id)
        assert printed == "said by the step\n"
        assert instance.compute_log_manager.is_capture_complete(key)
        assert instance.compute_log_manager.get_log_metadata(key).stdout_location == f"{tmp_path}/logs/{'/'.join(key)}.out"
        instance.compute_log_manager.delete_logs(log_key=key)
    assert [path for path in (tmp_path / "logs").rglob("*") if path.is_file()] == []


def test_a_place_that_takes_no_output_fails_no_run_and_it_stays_here(
    database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("COMPUTE_LOGS_URL", f"file://{tmp_path}/file/logs")
    (tmp_path / "file").write_text("in the way")
    with open_instance(database, settings) as instance:
        ended = talk.execute_in_process(instance=instance)
        assert ended.success
        manager = instance.compute_log_manager
        assert isinstance(manager, BabylonComputeLogs)
        manager.on_progress([ended.run_id, "compute_logs", "running"])  # Dagster's thread would end by an error
    assert "file/logs) cannot be used: " in caplog.text and "tried again in 30 s" in caplog.text
    logs = (settings.home / "dagster" / "storage" / ended.run_id / "compute_logs").glob("*.out")
    (kept,) = (path for path in logs if path.stem != "running")  # the step's file has a random name
    assert kept.read_text() == "said by the step\n"


def test_a_place_that_is_away_for_a_moment_gets_the_output_of_a_running_step_after_it(
    unreliable: type[UnreliableFileSystem], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = BabylonComputeLogs("unreliable://logs", LocalComputeLogManager(str(tmp_path)))
    key = ["run", "compute_logs", "step"]
    written = Path(manager.local_manager.get_captured_local_path(key, "out"))
    written.parent.mkdir(parents=True)
    written.write_text("said so far\n")
    unreliable.away = 1
    ended = threading.Event()
    poller = threading.Thread(target=_upload_partial_logs, args=(manager, key, ended, 0.01))
    poller.start()
    arrived = unreliable.arrived.wait(10)
    ended.set()
    poller.join()
    assert arrived and unreliable.store["/logs/run/compute_logs/step.out.partial"].getvalue() == b"said so far\n"
    assert "unreliable://logs) cannot be used: no answer" in caplog.text


def test_a_place_that_is_down_at_the_start_is_connected_to_later(
    unreliable: type[UnreliableFileSystem], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unreliable.down = True
    manager, key = BabylonComputeLogs("unreliable://logs", LocalComputeLogManager(str(tmp_path))), ["run", "compute_logs", "step"]
    assert "unreliable://logs) cannot be used: nobody listens. It is tried again when a step has output." in caplog.text
    for used in (manager.on_progress, manager.is_capture_complete):
        used(key)
    with pytest.raises(BabylonError, match="nobody listens"):
        manager.delete_logs(log_key=key)
    unreliable.down = False
    manager.on_progress(key)
    assert unreliable.arrived.is_set()
    with pytest.raises(UsageError, match="no file system of that kind"):
        BabylonComputeLogs("unheard-of://logs", LocalComputeLogManager(str(tmp_path)))


def test_a_failure_of_this_machine_ends_no_uploads(
    unreliable: type[UnreliableFileSystem], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = BabylonComputeLogs("unreliable://logs", LocalComputeLogManager(str(tmp_path)))
    (tmp_path / "run").write_text("in the way")
    manager.on_progress(["run", "compute_logs", "step"])
    assert "It is tried again in 30 s" in caplog.text and not unreliable.arrived.is_set()


def test_a_download_that_breaks_off_leaves_no_half_output_here(unreliable: type[UnreliableFileSystem], tmp_path: Path) -> None:
    manager = BabylonComputeLogs("unreliable://logs", LocalComputeLogManager(str(tmp_path)))
    key = ["run", "compute_logs", "step"]
    fsspec.filesystem("unreliable").pipe_file("/logs/run/compute_logs/step.out", b"said by the step\n")
    unreliable.cut = 1
    with pytest.raises(BabylonError, match="cut off"):
        manager.get_log_data_for_type(key, ComputeIOType.STDOUT, 0, None)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert manager.get_log_data_for_type(key, ComputeIOType.STDOUT, 0, None)[0] == b"said by the step\n"


def test_without_the_setting_dagster_keeps_it_as_ever(database: Database, settings: Settings) -> None:
    with open_instance(database, settings) as instance:
        assert type(instance.compute_log_manager) is LocalComputeLogManager
        assert instance.compute_log_manager.get_captured_local_path(["run", "x"], "out") == str(
            (settings.home / "dagster" / "storage" / "run" / "x.out").resolve()
        )
