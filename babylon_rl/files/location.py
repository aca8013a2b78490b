"""Locations of files: a local directory or any fsspec URL, with the same operations.

A directory of this machine is written durably: files are flushed, and a move replaces a file at once.
"""

import asyncio
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from babylon_rl.errors import BabylonError, UsageError, first_line
from babylon_rl.files.durable import fsync
from babylon_rl.reporting.numbers import shortened

_BLOCK = 4 * 1024 * 1024
# Stores of objects have no folders, and making one there would make the bucket of a mistyped name.
_WITHOUT_FOLDERS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss"}
# Their drivers can write a file on the condition that nothing has its name.
_CONDITIONAL = _WITHOUT_FOLDERS - {"oss"}
# A file system without hard links, a store that does not know the condition or calls it an invalid argument.
_UNABLE = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
# A store that goes silent is given up after about four minutes (s3fs asks five times), and not after the driver's half hour.
_TIME_LIMITS: dict[str, Any] = {"connect_timeout": 5, "read_timeout": 20, "retries": {"mode": "standard", "total_max_attempts": 2}}
_LEAST_BYTES_S = 100_000  # of a request's body, before the store counts as silent
# Older servers refuse checksums that they do not need, and what is written is read back anyway.
_CHECKSUMS = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
# Exceptions of drivers of remote file systems beside OSError: they have no base class in common. Looked up where they are loaded.
_DRIVER_ERRORS = {
    "aiohttp": ("ClientError",),
    "azure.core.exceptions": ("AzureError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "paramiko.ssh_exception": ("SSHException",),
}


class Location:
    """A directory, by its path or URL; ``shown`` is its address without secrets.

    Raises UsageError: no file system has that scheme, or the package that knows it is not installed.
    """

    def __init__(self, target: str) -> None:
        self.local = local_path(target)
        self.shown = shown_address(target)
        self._fs: Any = None
        self._root = str(self.local)
        if self.local is None:
            self._fs, root = _file_system(target, self.shown)
            self._root = root.rstrip("/")
            protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
            self._has_folders, self._conditional = not protocols & _WITHOUT_FOLDERS, bool(protocols & _CONDITIONAL)
            # fsspec keeps one object for all locations of a process, with what it has listed before.
            self._fs.invalidate_cache()

    def path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def exists(self, name: str) -> bool:
        """True if anything has this name, a broken link included."""
        return os.path.lexists(self.path(name)) if self.local is not None else bool(self._fs.exists(self.path(name)))

    def size(self, name: str) -> int | None:
        """Size of a file in bytes, or None."""
        try:
            return os.stat(self.path(name)).st_size if self.local is not None else int(self._fs.info(self.path(name))["size"])
        except FileNotFoundError:
            return None

    def sha256(self, name: str) -> str | None:
        """Hash of a file's content, read back, or None where there is no file."""
        digest = hashlib.sha256()
        try:
            with open(self.path(name), "rb") if self.local is not None else self._fs.open(self.path(name), "rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        return digest.hexdigest()

    def read(self, name: str) -> bytes | None:
        """Content of a small file, or None where there is no file."""
        try:
            return Path(self.path(name)).read_bytes() if self.local is not None else bytes(self._fs.cat_file(self.path(name)))
        except FileNotFoundError:
            return None

    def names(self) -> set[str]:
        """Names of the entries at the top."""
        if self.local is not None:
            return set(os.listdir(self.local))
        try:
            entries = [entry.rstrip("/") for entry in self._fs.ls(self._root, detail=False)]
        except FileNotFoundError:
            return set()
        return {entry.rpartition("/")[2] for entry in entries if entry != self._root}

    def below(self, folder: str) -> set[str]:
        """Names of all files below a folder, relative to it."""
        top = self.path(folder)
        if self.local is not None:
            return {path.relative_to(top).as_posix() for path in Path(top).rglob("*") if path.is_file()}
        return {path.removeprefix(f"{top}/") for path in self._fs.find(top)}

    def put(self, source: Path, name: str) -> None:
        """Write a copy of a file of this machine."""
        if self.local is None:
            self._make_folder_of(name)
            self._fs.put_file(str(source), self.path(name))
            return
        place = Path(self.path(name))
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
        fsync(place)

    def get(self, name: str, target: Path) -> None:
        """Write a copy of a file to a path of this machine; after a failure a part of it may lie there."""
        if self.local is None:
            self._fs.get_file(self.path(name), str(target))
        else:
            shutil.copyfile(self.path(name), target)

    def move(self, name: str, final: str) -> None:
        """Move a file, replacing one in its place."""
        if self.local is None:
            if self._has_folders:
                self._make_folder_of(final)
                self._fs.mv(self.path(name), self.path(final))
            else:
                self._fs.cp_file(self.path(name), self.path(final))
                self._fs.rm_file(self.path(name))
            return
        Path(self.path(final)).parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.path(name), self.path(final))

    def place_new(self, name: str, final: str) -> None:
        """Copy a small file to its final name, whole, unless something has that name.

        Of several processes that do so at once one succeeds, in a directory with hard links, at S3, Google and Azure. Elsewhere each looks
        before it renames its file.
        """
        try:
            if self.local is not None:
                os.link(self.path(name), self.path(final))
            elif self._conditional:
                # Also looked for, as a store may not know the condition, and say nothing.
                if self.size(final) is None:
                    self._fs.pipe_file(self.path(final), self._fs.cat_file(self.path(name)), mode="create")
            else:
                self._place_if_missing(name, final)
        # Not FileExistsError alone: s3fs knows S3's answer by a detail that other stores leave out.
        except OSError as refused:
            if self.size(final) is None:
                if refused.errno not in _UNABLE:
                    raise
                self._place_if_missing(name, final)
        self.flush_folders([final])

    def _place_if_missing(self, name: str, final: str) -> None:
        if self.size(final) is not None:
            return
        part = f"{final}.{secrets.token_hex(4)}.part"
        if self.local is not None:
            self.put(Path(self.path(name)), part)
        else:
            self._fs.pipe_file(self.path(part), self._fs.cat_file(self.path(name)))
        self.move(part, final)

    def _make_folder_of(self, name: str) -> None:
        if self._has_folders:
            self._fs.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)

    def flush_folders(self, names: Iterable[str]) -> None:
        """Flush the folders of some files, where the file system is of this machine."""
        if self.local is not None:
            for folder in {Path(self.path(name)).parent for name in names}:
                fsync(folder)

    def remove(self, name: str) -> None:
        """Delete a file, and folders of this machine that it leaves empty."""
        if self.local is None:
            self._fs.rm_file(self.path(name))
            return
        path = Path(self.path(name))
        path.unlink()
        for folder in path.parents:
            if folder == self.local or any(folder.iterdir()):
                return
            folder.rmdir()

    def clear(self, folder: str) -> None:
        """Delete a folder with everything in it, if it is there."""
        if self.local is not None:
            shutil.rmtree(self.path(folder), ignore_errors=True)
        elif not self._has_folders:
            # One by one: a deletion of many needs a checksum, of which older servers know another than the driver's.
            for name in self.below(folder):
                self.remove(f"{folder}/{name}")
        elif self._fs.exists(self.path(folder)):
            self._fs.rm(self.path(folder), recursive=True)


def local_path(target: str) -> Path | None:
    """Directory of a path or a ``file://`` URL; None for any other URL."""
    if "://" not in target:
        return Path(target).expanduser().absolute()
    parts = urlsplit(target)
    return Path(unquote(parts.path)).absolute() if parts.scheme in ("file", "local") and "::" not in target else None


def shown_address(target: str) -> str:
    """Address for display: a local path, or a URL without secrets."""
    local = local_path(target)
    return str(local) if local is not None else shown_url(target)


def shown_url(url: str) -> str:
    """URL for display: without user, password, query and fragment, in every part of a chained one."""
    shown = [f"{part.scheme}://{part.netloc.rpartition('@')[2]}{part.path}" if part.scheme else part.path for part in _chained(url)]
    return "::".join(shown).rstrip("/")


def _chained(url: str) -> list[SplitResult]:
    """Parts of a URL of fsspec such as ``blockcache::sftp://host/x``; the ``::`` of an IPv6 address divides nothing."""
    return [urlsplit(part) for part in re.split(r"::(?=(?:[\w+.-]+::)*[\w+.-]+://)", url)]


@contextmanager
def describing_failures(target: str, describe: Callable[[str, int | None], BabylonError]) -> Iterator[None]:
    """Convert failures at ``target``; ``describe`` takes the reason and the system's error number."""
    try:
        yield
    # Some are OSErrors as well, and say already what to do.
    except BabylonError:
        raise
    except _failures() as failed:
        raise describe(_reason(failed, target), getattr(failed, "errno", None)) from None


def is_failure(error: BaseException) -> bool:
    """True for a failure of the system or of a driver, False for a bug."""
    return isinstance(error, _failures()) and not isinstance(error, BabylonError)


def _failures() -> tuple[type[Exception], ...]:
    """Exception types of the system and loaded drivers; evaluated after a failure."""
    loaded = [getattr(sys.modules[module], name) for module, names in _DRIVER_ERRORS.items() if module in sys.modules for name in names]
    return (OSError, NotImplementedError, *loaded)


def _reason(failed: Exception, target: str) -> str:
    """First line of a failure, without the secrets of the address, which some drivers repeat."""
    reason = getattr(failed, "strerror", None) or first_line(failed)
    file = getattr(failed, "filename", None)
    reason = f"{reason} ({file})" if file and str(file) != shown_address(target) else reason
    if local_path(target) is None:
        reason = reason.replace(target, shown_address(target))
        for part in _chained(target):
            for secret in filter(None, (part.netloc.rpartition("@")[0], part.password, unquote(part.password or ""), part.query)):
                reason = reason.replace(secret, "...")
    return shortened(reason, 300).rstrip(".")


def _file_system(target: str, shown: str) -> tuple[Any, str]:
    import fsspec

    of_s3 = urlsplit(target).scheme in ("s3", "s3a")
    checksums = {} if "AWS_REQUEST_CHECKSUM_CALCULATION" in os.environ else _CHECKSUMS
    try:
        options = {"config_kwargs": _TIME_LIMITS | checksums | {"http_session_cls": _limited_session()}} if of_s3 else {}
        fs, root = fsspec.core.url_to_fs(target, **options)
    except ImportError as missing:
        extra = "pip install 'babylon-rl[s3]'" if of_s3 else "pip"
        raise UsageError(
            f"{shown} needs a package that is not installed here: {str(missing).rstrip('.')}. Install it here with {extra}."
        ) from None
    except ValueError:
        raise UsageError(f"{shown} cannot be opened: no file system of that kind is known; file, s3, gs, abfs and sftp are some.") from None
    return fs, str(root)


@cache
def _limited_session() -> type:
    """The S3 driver's HTTP session, which gives up a request whose answer does not begin in time.

    The driver's own limit of reading begins once a body is sent: a store that takes no body, or never asks for it, would be waited for
    without end.
    """
    from aiobotocore.httpsession import AIOHTTPSession
    from botocore.exceptions import ReadTimeoutError

    class LimitedSession(AIOHTTPSession):  # type: ignore[misc, unused-ignore]
        async def send(self, request: Any) -> Any:
            # The second is of a body in chunks with checksums, which have no length.
            size = max(int(request.headers.get(name, 0)) for name in ("Content-Length", "X-Amz-Decoded-Content-Length"))
            sending_s = size / _LEAST_BYTES_S
            try:
                async with asyncio.timeout(_TIME_LIMITS["connect_timeout"] + _TIME_LIMITS["read_timeout"] + sending_s):
                    return await super().send(request)
            except TimeoutError as silent:
                raise ReadTimeoutError(endpoint_url=request.url) from silent

    return LimitedSession
