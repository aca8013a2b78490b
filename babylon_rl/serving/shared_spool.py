"""Segments of a spool at MODEL_STORAGE_URL while the database is away: a machine that is lost then loses no answered call.

Only complete segments go there, and what is written is removed there. A writer that starts takes what other machines have left. Two
writers may have a segment at the same time: a call is written once, as its id is unique.
"""

import logging
import time
from pathlib import Path

from babylon_rl.errors import BabylonError
from babylon_rl.files.file_sets import INCOMING
from babylon_rl.files.location import Location, describing_failures, shown_url
from babylon_rl.serving.spool import SpoolReader

FOLDER = "spool"
AWAY_S = 30.0  # how long the database is away before a segment is uploaded
_LOG = logging.getLogger("babylon_rl.gateway")


class SharedSpool:
    """Exchange of a spool's complete segments with ``url``, for one thread beside the writer's."""

    def __init__(self, spool: SpoolReader, url: str) -> None:
        self._spool, self._url = spool, url
        self._both = set[str]()  # segments that are here and there
        self._written = set[str]()
        self._left: list[str] | None = None  # segments that another machine left there; None until they are listed
        self._away_since: float | None = None
        self._broken = False

    def written(self, segment: Path) -> None:
        """Note that all calls of a segment are in the database; for the writer's thread."""
        self._written.add(segment.name)

    def look(self, *, away: bool, last: bool = False) -> None:
        """Upload what waits; or remove there what is written, and take one segment that another machine left.

        A failure is logged once, and the next look tries again.

        Args:
            away: the database takes no calls.
            last: this process ends; what waits is uploaded at once, and nothing is taken.
        """
        now = time.monotonic()
        self._away_since = (self._away_since or now) if away else None
        upload = self._away_since is not None and (last or now - self._away_since >= AWAY_S)
        try:
            with describing_failures(self._url, lambda reason, number: BabylonError(f"{reason}.")):
                self._exchange(upload, take=not away and not last)
            self._broken = False
        except BabylonError as failed:
            if not self._broken:
                _LOG.warning("Waiting calls cannot be exchanged with %s: %s It is tried again.", shown_url(self._url), failed)
            self._broken = True

    def _exchange(self, upload: bool, take: bool) -> None:
        # First, so that what is written from here on counts for the next look. Of the others nothing is there.
        self._written &= self._both
        written = set(self._written)
        here = {segment.name: segment for segment in self._spool.segments()}
        new = [segment for name, segment in here.items() if name not in self._both] if upload else []
        # A quiet look does not ask the storage.
        if not (written or new or (take and self._left != [])):
            return
        location = Location(self._url)
        if self._left is None:
            there = location.below(FOLDER)
            self._both, self._left = there & here.keys(), sorted(there - here.keys())
        for name in written:
            _remove(location, name)
            self._both.discard(name)
        for segment in new:
            try:
                if self._spool.is_complete(segment):
                    # Moved into place, as another machine may be looking.
                    location.put(segment, f"{INCOMING}/{segment.name}")
                    location.move(f"{INCOMING}/{segment.name}", f"{FOLDER}/{segment.name}")
                    self._both.add(segment.name)
            except FileNotFoundError:
                pass  # written in this moment
        # One at a time, so that they leave room for this machine's own.
        if take and self._left and not self._both:
            name = self._left[0]
            try:
                location.get(f"{FOLDER}/{name}", self._spool.directory / name)
                self._both.add(name)
            except FileNotFoundError:
                pass  # another machine has written it
            self._left.pop(0)


def _remove(location: Location, name: str) -> None:
    try:
        location.remove(f"{FOLDER}/{name}")
    except FileNotFoundError:
        pass  # another machine has written it, too
