"""Routing table and keys of the database, refreshed in a thread.

By notifications, and by polling in case one is lost.
"""

import logging
import threading

import psycopg

from babylon_rl.errors import BabylonError, first_line
from babylon_rl.serving.access import Access
from babylon_rl.settings import Settings
from babylon_rl.store import client_keys, releases
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import open_database
from babylon_rl.store.releases import RoutingTable, read_routing

POLL_S = 5.0
ANSWER_S = 5.0
FIRST_READ_S = 3.0
_RETRY_S = 1.0
_LOG = logging.getLogger("babylon_rl.gateway")


class LiveState:
    """State of one gateway process.

    ``table`` is replaced as a whole, so that a request sees one moment's.

    While the database is away the last state stays; before the first one it is empty: the base for everybody.
    """

    def __init__(self, settings: Settings, access: Access) -> None:
        self.table = RoutingTable()
        self.problem: str | None = "the database has not answered yet"
        self.reads = 0
        self._settings, self._access = settings, access
        self._closing, self._first = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="babylon-routing", daemon=True)

    def start(self) -> None:
        """Start reading; returns after the first read, or when that takes too long."""
        self._thread.start()
        self._first.wait(FIRST_READ_S)

    def close(self) -> None:
        """Stop reading."""
        self._closing.set()
        self._thread.join(POLL_S)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                # Past any pooler: a pooled session would not get notifications.
                with open_database(self._settings, prepare=False) as database, database.connect_directly(autocommit=True) as connection:
                    self._follow(connection)
            except (psycopg.Error, BabylonError, OSError) as broken:
                if self.problem is None or self.reads == 0:
                    _LOG.warning("The database does not answer; routing and keys stay as they are.")
                self.problem = f"the database does not answer: {first_line(broken)}"
                self._first.set()
                self._closing.wait(_RETRY_S)

    def _follow(self, connection: Connection) -> None:
        # Listening begins before the first read, so that no change falls between them.
        with connection.answering_within(ANSWER_S):
            for channel in (releases.CHANNEL, client_keys.CHANNEL):
                connection.execute(f"LISTEN {channel}")
        while not self._closing.is_set():
            with connection.answering_within(ANSWER_S):
                self._access.update(client_keys.read_keys(connection))
                self.table = read_routing(connection)
            self.problem, self.reads = None, self.reads + 1
            self._first.set()
            # Ends after one notification, or after POLL_S; slices, so that close() does not wait.
            for _ in range(int(POLL_S / 0.5)):
                if self._closing.is_set() or any(True for _ in connection.notifies(timeout=0.5, stop_after=1)):
                    break
