"""Output of Dagster's runs: under DAGSTER_HOME, or at COMPUTE_LOGS_URL for a webserver on another machine.

Captured here as Dagster does, and uploaded through files.location when a step ends and every UPLOAD_EVERY_S while it runs. An upload that
fails fails no run: of a step that runs it is logged and tried again at the next turn; of one that ended Dagster notes it among the run's
events, and the output stays on the machine that made it.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from dagster import DagsterInstance

# Not in the public API; managers of Dagster's own integrations are made of the same classes.
from dagster._core.storage.cloud_storage_compute_log_manager import TruncatingCloudStorageComputeLogManager
from dagster._core.storage.compute_log_manager import ComputeIOType
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from babylon_rl.errors import BabylonError, UsageError
from babylon_rl.files.location import Location, describing_failures, shown_address
from babylon_rl.settings import load_settings

UPLOAD_EVERY_S = 30
_LOG = logging.getLogger(__name__)


class BabylonComputeLogs(TruncatingCloudStorageComputeLogManager[DagsterInstance], ConfigurableClass):
    """Output of steps at a location, as ``<run>/compute_logs/<step>.out`` and ``.err``."""

    def __init__(self, url: str, local: LocalComputeLogManager) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._url, self._local = url, local
        try:
            self._location  # noqa: B018 # a URL that cannot be is refused at once
        except UsageError:
            raise
        except BabylonError as away:
            _LOG.warning("%s It is tried again when a step has output.", away)

    @cached_property
    def _location(self) -> Location:
        with self._described():  # some drivers connect here
            return Location(self._url)

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """The entry of dagster.yaml."""
        return self._local.inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """An empty configuration: dagster.yaml sets nothing."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Any:
        """A manager of COMPUTE_LOGS_URL, else Dagster's default of local files."""
        settings = load_settings()
        home = os.environ.get("DAGSTER_HOME") or settings.home / "dagster"
        local = LocalComputeLogManager(str(Path(home) / "storage"), inst_data=inst_data)
        return local if settings.compute_logs_url is None else cls(settings.compute_logs_url, local)

    @property
    def local_manager(self) -> LocalComputeLogManager:
        """Manager of the files that a running step writes."""
        return self._local

    @property
    def upload_interval(self) -> int | None:
        """Seconds between uploads of a step that runs."""
        return UPLOAD_EVERY_S

    def delete_logs(self, log_key: Sequence[str] | None = None, prefix: Sequence[str] | None = None) -> None:
        """Delete the output of a step, or of all below a prefix, here and there."""
        self._local.delete_logs(log_key=log_key, prefix=prefix)
        with self._described():
            if prefix:
                self._location.clear("/".join(prefix))
                return
            for io_type in ComputeIOType:
                for partial in (False, True):
                    if log_key and self._location.exists(_name(log_key, io_type, partial)):
                        self._location.remove(_name(log_key, io_type, partial))

    def download_url_for_type(self, log_key: Sequence[str], io_type: ComputeIOType) -> None:
        """None: the webserver hands it out."""

    def display_path_for_type(self, log_key: Sequence[str], io_type: ComputeIOType) -> str:
        """Address for display, without secrets."""
        return f"{shown_address(self._url)}/{_name(log_key, io_type)}"

    def cloud_storage_has_logs(self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False) -> bool:
        """True when output of that kind was uploaded."""
        with self._described():
            return self._location.exists(_name(log_key, io_type, partial))

    def is_capture_complete(self, log_key: Sequence[str]) -> bool:
        """True when a step's output is whole, here or there; False while the place cannot be asked."""
        # Dagster's uploading thread asks before each turn, and would end by an error.
        try:
            return super().is_capture_complete(log_key)
        except BabylonError as failed:
            _LOG.warning("%s The output of %s counts as incomplete.", failed, "/".join(log_key))
            return False

    def on_progress(self, log_key: Sequence[str]) -> None:
        """Upload a running step's output so far; a failure is only logged."""
        try:
            super().on_progress(log_key)  # type: ignore[no-untyped-call]
        except (BabylonError, OSError) as failed:  # the latter of this machine, whose disk may be full
            _LOG.warning("%s It is tried again in %d s.", failed, UPLOAD_EVERY_S)

    def download_from_cloud_storage(self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False) -> None:
        """Download output for the webserver."""
        place = Path(self._local.get_captured_local_path(log_key, IO_TYPE_EXTENSION[io_type], partial=partial))
        place.parent.mkdir(parents=True, exist_ok=True)
        with self._described():
            self._location.get(_name(log_key, io_type, partial), place)

    def _upload_file_obj(self, data: IO[bytes], log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False) -> None:
        with self._described():
            self._location.put(Path(data.name), _name(log_key, io_type, partial))

    @contextmanager
    def _described(self) -> Iterator[None]:
        # Drivers repeat the secrets of an address, and Dagster stores what is raised.
        sentence = f"COMPUTE_LOGS_URL ({shown_address(self._url)}) cannot be used"
        with describing_failures(self._url, lambda reason, _: BabylonError(f"{sentence}: {reason}.")):
            yield


def _name(log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False) -> str:
    return f"{'/'.join(log_key)}.{IO_TYPE_EXTENSION[io_type]}{'.partial' if partial else ''}"
