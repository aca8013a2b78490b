"""Recording of calls behind their answers: into a spool on disk at once, and from there into the database.

A database that is away delays nothing: calls wait on disk and are written when it is back. A call is written once, as its id is unique.
"""

import hashlib
import hmac
import logging
import random
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from babylon_rl.errors import BabylonError, SettingsError
from babylon_rl.serving.call_entry import CallEntry
from babylon_rl.serving.spool import SEGMENT_S, Spool, read_segment
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.gateway_calls import GatewayRows, record_key_use, write_calls

PRIVATE_FIELDS = ("agent", "prompts", "response", "reasoning", "provider_accesses")
_PRIVATE_COLUMNS = (
    ("systemPrompt", "prompts"), ("userPrompt", "prompts"), ("messagesJson", "prompts"), ("response", "response"),
    ("reasoning", "reasoning"),
)  # fmt: skip
# Tokens and tool calls spell the answer out.
_PRIVATE_METADATA = (
    ("tools", "prompts"), ("logprobs", "response"), ("toolCalls", "response"), ("otherChoices", "response"),
    ("providerAccesses", "provider_accesses"),
)  # fmt: skip
_LOG = logging.getLogger("babylon_rl.gateway")
_EVERY_S, _SYNC_S = 0.25, 0.25
_LONGEST_PAUSE_S = 5.0
_MAX_RECORDS, _MAX_BYTES = 256, 4 * 1024**2
# Faults of one row; anything else is a fault of the connection or the server.
_ROW_FAULTS = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded)
_ENTRY_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


@dataclass(frozen=True)
class RecordedPrivacy:
    """Treatment of personal fields in recorded calls: RECORD_PRIVATE_FIELDS."""

    fields: dict[str, str]
    secret: bytes

    @classmethod
    def of(cls, settings: Settings) -> "RecordedPrivacy":
        """Parse the setting; hashes are keyed with a secret in the state directory.

        Raises:
            SettingsError: a name or a treatment that does not exist.
        """
        fields = {}
        for entry in filter(None, (part.strip() for part in settings.record_private_fields.split(","))):
            name, _, how = entry.partition("=")
            if name not in PRIVATE_FIELDS or how not in (("", "hash") if name == "agent" else ("",)):
                raise SettingsError(f"RECORD_PRIVATE_FIELDS holds {entry!r}: choose of agent, agent=hash, {', '.join(PRIVATE_FIELDS[1:])}.")
            fields[name] = how
        return cls(fields, _secret(settings.home / "gateway" / "secret") if "hash" in fields.values() else b"")

    def apply(self, call: dict[str, Any], log: dict[str, Any] | None) -> None:
        """Drop or hash the private fields of a call's rows; a call without its prompts or its answer does not train."""
        if not self.fields:
            return
        agent = call["agentId"] = self._agent(call["agentId"])
        if log is None:
            return
        metadata = {**msgspec.json.decode(log["metadata"]), "agentId": agent}
        for column, name in _PRIVATE_COLUMNS:
            if name in self.fields:
                log[column] = "" if column in ("systemPrompt", "userPrompt", "response") else None
        for key, name in _PRIVATE_METADATA:
            if name in self.fields:
                metadata.pop(key, None)
        log["metadata"] = msgspec.json.encode(metadata).decode()

    def _agent(self, value: str | None) -> str | None:
        how = self.fields.get("agent")
        if how is None or not value:
            return value
        return f"#{hmac.new(self.secret, value.encode(), hashlib.sha256).hexdigest()[:16]}" if how == "hash" else None


class CallLog:
    """Log of the calls of one gateway process. ``record`` is called on the event loop and never waits for the database.

    Args:
        database: None until it is known; opened in the writer's thread.
    """

    def __init__(self, settings: Settings, open_database: Callable[[], Database]) -> None:
        self._settings, self._open_database = settings, open_database
        self._privacy = RecordedPrivacy.of(settings)
        self._spool = Spool(settings.home / "gateway" / "spool", settings.gateway_spool_mb * 1024**2)
        self._connection: Connection | None = None
        self._offsets: dict[Path, int] = {}
        self._keys_used: dict[str, datetime] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="babylon-call-log", daemon=True)
        self.written = self.rejected = 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes on disk that are not in the database yet."""
        return self._spool.waiting_bytes

    @property
    def refused(self) -> int:
        """Calls that were not recorded, because the spool had no room."""
        return self._spool.refused

    def start(self) -> None:
        """Start the writer."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Write what can be written within the time; the rest stays on disk for the next process."""
        self._closing.set()
        self._thread.join(timeout_s)
        self._spool.close()

    def records_texts(self, identity: str) -> bool:
        """Return True if the texts of a call are recorded; a trajectory is recorded whole or not at all, as the recorder decides."""
        rate = self._settings.trajectory_sampling_rate if self._settings.record_agent_trajectories else 0.0
        return rate >= 1 or (rate > 0 and random.Random(identity).random() < rate)

    def record(self, entry: CallEntry) -> None:
        """Take a call; once this returns, the end of this process does not lose it."""
        if not self._spool.append(entry.encoded()) and self._spool.refused in (1, 1000, 1_000_000):
            _LOG.error("%d calls were not recorded: the spool in %s is full.", self._spool.refused, self._settings.home / "gateway")

    def saw_key(self, name: str, at: datetime) -> None:
        """Note that a client used its key."""
        self._keys_used[name] = at

    def _run(self) -> None:
        failures, looked_for_orphans = 0, False
        while True:
            closing = self._closing.is_set()
            try:
                self._spool.sync()
                if not looked_for_orphans:
                    looked_for_orphans = self._write_orphans()
                busy = self._write_some()
                self._write_key_use()
                if failures > 1:
                    _LOG.warning("The database takes recorded calls again.")
                failures = 0
            except (psycopg.Error, BabylonError, OSError) as broken:
                busy, failures = False, failures + 1
                self._drop_connection()
                if failures == 2:
                    line = (str(broken).strip().splitlines() or [type(broken).__name__])[0]
                    _LOG.warning("The database does not take recorded calls (%s); they wait on disk.", line)
            if closing and not busy:
                break
            if not busy:
                pause_s = _EVERY_S if not failures else min(_EVERY_S * 2**failures, _LONGEST_PAUSE_S)
                self._pause(pause_s)
        self._drop_connection()

    def _pause(self, pause_s: float) -> None:
        """Wait, and go on making records durable meanwhile."""
        while pause_s > 0 and not self._closing.wait(min(pause_s, _SYNC_S)):
            pause_s -= _SYNC_S
            self._spool.sync()

    def _write_some(self) -> bool:
        """Write the next records of this process; False when none are left."""
        for segment in self._spool.segments():
            at = self._offsets.get(segment, 0)
            # Whether it is open is asked first: records may follow until then.
            is_open = self._spool.is_open(segment)
            end, more = self._write_part(segment, at)
            self._offsets[segment] = end
            if more:
                return True
            if is_open:
                self._spool.rotate(end, SEGMENT_S)
            else:
                self._finish(segment, end)
        return False

    def _write_orphans(self) -> bool:
        for segment in self._spool.orphans():
            end, more = 0, True
            while more and not self._closing.is_set():
                end, more = self._write_part(segment, end)
            if not more:
                self._finish(segment, end)
        return True

    def _finish(self, segment: Path, end: int) -> None:
        left = segment.stat().st_size - end
        if left:
            _LOG.error("%s ends with %d bytes that are no call: a write was cut off.", segment, left)
        self._spool.remove(segment)
        self._offsets.pop(segment, None)

    def _write_part(self, segment: Path, at: int) -> tuple[int, bool]:
        """Write records of a segment from an offset on; return the offset behind them, and whether there were any."""
        part = read_segment(segment, at, _MAX_RECORDS, _MAX_BYTES)
        if part.records:
            self._write([entry for record in part.records if (entry := self._rows(record)) is not None])
        return part.end, bool(part.records)

    def _rows(self, record: bytes) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        try:
            entry = CallEntry.decoded(record)
            call = entry.call_row()
        except _ENTRY_FAULTS as fault:
            self._reject(f"A record of the spool is no call: {fault}")
            return None
        try:
            log = entry.log_row()
        except _ENTRY_FAULTS as fault:
            self._reject(f"The texts of call {entry.call_id} cannot be recorded: {fault}")
            log = None
        self._privacy.apply(call, log)
        return call, log

    def _write(self, rows: list[tuple[dict[str, Any], dict[str, Any] | None]]) -> None:
        """Write rows in one transaction; if the database refuses one, halves until it is alone."""
        if not rows:
            return
        try:
            logs = [log for _, log in rows if log is not None]
            self.written += write_calls(self._connected(), GatewayRows([call for call, _ in rows], logs))
        except _ROW_FAULTS as fault:
            if len(rows) == 1:
                self._reject(f"The database refuses call {rows[0][0]['callId']}: {str(fault).splitlines()[0]}")
                return
            middle = len(rows) // 2
            self._write(rows[:middle])
            self._write(rows[middle:])

    def _reject(self, reason: str) -> None:
        self.rejected += 1
        _LOG.error(reason)

    def _write_key_use(self) -> None:
        if self._keys_used:
            used, self._keys_used = self._keys_used, {}
            record_key_use(self._connected(), used)

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._open_database().connect(autocommit=True)
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def _secret(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        partial.write_bytes(secrets.token_bytes(32))
        partial.chmod(0o600)
        partial.replace(path)
    return path.read_bytes()
