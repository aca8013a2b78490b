"""Copies of waiting segments at MODEL_STORAGE_URL, for the case that their machine is lost.

Only complete segments go there, while the database is away, and what is written is removed there. A gateway takes what it has seen there
in two looks at the list: its machine is lost, or cut off from the database. Two writers may have a segment at the same time: a call is
written once, as its id is unique.
"""

import logging
import re
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import psycopg

from babylon_rl.errors import BabylonError, DatabaseUnreachable, first_line
from babylon_rl.files.durable import write_atomically
from babylon_rl.files.location import Location, describing_failures, shown_url
from babylon_rl.serving.spool import SEGMENT_BYTES, SpoolReader
from babylon_rl.store.database import Database

AWAY_S = 10.0  # how long the database is away before segments are uploaded
LIST_S = 60.0  # between two looks at the list
_LARGEST_BYTES = 4 * SEGMENT_BYTES  # the last call of a segment may be large
_ANSWER_S = 10.0
_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
# Whoever may write to the storage must not choose where a file of this machine is written.
_SEGMENT = re.compile(r"\d+-\d+-\d+\.calls", re.ASCII)
_LOG = logging.getLogger("babylon_rl.gateway")


class _Known(msgspec.Struct):
    """The database at an address, and the folder of its calls."""

    address: str
    folder: str


class SharedSpool:
    """Exchange of a spool's complete segments with ``url``, for one thread beside the writer's.

    The calls that wait for a database have a folder of its own there, by what it says of itself: several may share the storage. With
    ``uploads`` False nothing leaves this machine; what is there already is written and removed.
    """

    def __init__(self, spool: SpoolReader, url: str, database: Database, *, uploads: bool = True) -> None:
        self._spool, self._url, self._database, self._uploads = spool, url, database, uploads
        self._note = spool.directory.parent / "database.json"  # of the database, for a start while it is away
        self._folder = ""
        self._both = set[str]()  # segments that are here and there
        self._written = set[str]()
        self._seen = set[str]()  # at the last look at the list
        self._left: list[str] = []  # to take
        self._away_since: float | None = None
        self._list_at = self._pause_until = 0.0
        self._failures = 0

    def written(self, segment: Path) -> None:
        """Note that all calls of a segment are in the database; for the writer's thread."""
        self._written.add(segment.name)

    def look(self, *, away: bool, last: bool = False) -> None:
        """Upload what waits; or remove there what is written, and take a segment that another machine left.

        A failure is logged once, and tried again after a pause that doubles up to a minute.

        Args:
            away: the database takes no calls.
            last: this process ends; what waits is uploaded at once, and nothing is taken.
        """
        now = time.monotonic()
        if not away and self._away_since is not None:
            # It may be another database by now, as after a restored backup.
            self._folder, self._left, self._seen, self._list_at = "", [], set(), 0.0
        self._away_since = (self._away_since or now) if away else None
        if now < self._pause_until and not last:
            return
        upload = self._uploads and self._away_since is not None and (last or now - self._away_since >= AWAY_S)
        try:
            self._folder = self._folder or self._database_folder(away)
            if not self._folder and upload:
                raise BabylonError(f"{self._database.address} has not been reached from here yet, which says where its calls belong")
            if self._folder:
                with describing_failures(self._url, lambda reason, number: BabylonError(reason)):
                    self._exchange(now, upload, take=not away and not last)
            self._failures = 0
        except Exception as failed:  # of whatever driver: the next look must come
            reason = first_line(failed) if isinstance(failed, (BabylonError, psycopg.Error)) else type(failed).__name__
            self._failures += 1
            self._pause_until = now + min(_PAUSE_S * 2 ** min(self._failures, 10), _LONGEST_PAUSE_S)
            if self._failures == 1:
                _LOG.warning("Waiting calls cannot be exchanged with %s: %s. It is tried again.", shown_url(self._url), reason.rstrip("."))

    def _database_folder(self, away: bool) -> str:
        """Folder of the database's calls; empty while nobody knows."""
        if away:
            try:
                known = msgspec.json.decode(self._note.read_bytes(), type=_Known)
            except (FileNotFoundError, msgspec.MsgspecError):
                return ""
            return known.folder if known.address == self._database.address else ""
        try:
            with self._database.connect(autocommit=True) as connection, connection.answering_within(_ANSWER_S):
                server, number = connection.identity()
        except DatabaseUnreachable:
            self._pause_until = time.monotonic() + _PAUSE_S
            return ""
        folder = f"spool/{server}-{number}"
        write_atomically(self._note, msgspec.json.encode(_Known(self._database.address, folder)), private=True)
        return folder

    def _exchange(self, now: float, upload: bool, take: bool) -> None:
        # First, so that what is written from here on counts for the next look. Of the others nothing is there.
        self._written &= self._both
        written = set(self._written)
        here = {segment.name: segment for segment in self._spool.segments()}
        new = [segment for name, segment in here.items() if name not in self._both] if upload else []
        lists, takes = take and now >= self._list_at, take and not here.keys() & self._both
        # A quiet look does not ask the storage.
        if not (written or new or lists or (takes and self._left)):
            return
        location = Location(self._url)
        for name in written:
            with suppress(FileNotFoundError):  # another machine has written it, too
                location.remove(f"{self._folder}/{name}")
            self._both.discard(name)
        for segment in new:
            try:
                if self._spool.is_complete(segment):
                    location.put(segment, f"{self._folder}/{segment.name}", private=True)
                    self._both.add(segment.name)
            except FileNotFoundError:
                if segment.exists():
                    raise
                # It was written in this moment.
        if lists:
            self._list_at = now + LIST_S
            for part in self._spool.directory.glob("*.part"):  # of a writer that was killed
                part.unlink(missing_ok=True)
            there = {name for name in location.below(self._folder) if _SEGMENT.fullmatch(name)}
            self._both |= there & here.keys()
            others = there - here.keys() - self._both
            self._left, self._seen = sorted(others & self._seen), others
        # One at a time, so that they leave room for this machine's own.
        if takes and self._left:
            name = self._left.pop(0)
            size = location.size(f"{self._folder}/{name}")
            # None: another machine has written it. Larger ones are none of ours, and would fill the disk.
            if size is not None and size <= _LARGEST_BYTES:
                location.get(f"{self._folder}/{name}", self._spool.directory / name)
                self._both.add(name)
