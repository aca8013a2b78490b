"""Routing table and keys of the database, refreshed in a thread.

By notifications, and by polling in case one is lost. The last ones stay in a file, for a start while the database is away.
"""

import asyncio
import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue

import msgspec
import psycopg

from babylon_rl.errors import BabylonError, first_line
from babylon_rl.files.durable import write_atomically
from babylon_rl.serving.access import Access
from babylon_rl.serving.recorded_privacy import agent_hash
from babylon_rl.settings import Settings
from babylon_rl.store import client_keys, releases
from babylon_rl.store.client_keys import ClientKey
from babylon_rl.store.connection import Connection, address
from babylon_rl.store.database import open_database
from babylon_rl.store.live_usage import agents_of_trajectory
from babylon_rl.store.releases import RoutingTable, read_routing

POLL_S = 5.0
_SLICE_S = 0.1
ANSWER_S = 5.0
FIRST_READ_S = 3.0
_RETRY_S = 1.0
_OWNER_S = 1.0
_MOST_OWNERS = 65_536
_NEVER_ANSWERED = "the database has not answered yet"
_LOG = logging.getLogger("babylon_rl.gateway")


class LastState(msgspec.Struct):
    """State that ``database`` gave last, as it stands in the file."""

    database: str
    table: RoutingTable
    keys: list[ClientKey]


class LiveState:
    """State of one gateway process. ``table`` is replaced as a whole, so that a request sees one moment's.

    While the database is away the last state stays, also that of an earlier process (``restored``); before the first one it is empty:
    the base, for loopback alone.
    """

    def __init__(self, settings: Settings, access: Access) -> None:
        self.table = RoutingTable()
        self.problem: str | None = _NEVER_ANSWERED
        self.reads = 0
        self._settings, self._access = settings, access
        url = settings.database_url
        self._database = "embedded" if url is None else address(url.get_secret_value())
        self._file = settings.home / "gateway" / "state.json"
        self._last = self._restore()
        self.restored = self._last is not None
        self._owners = OrderedDict[str, str]()  # agents of the newest trajectories, whose calls may not be written yet
        self._looked_up = SimpleQueue[tuple[str, Future[set[str]]]]()
        self._closing, self._first = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="babylon-routing", daemon=True)

    def start(self) -> None:
        """Start reading; returns after the first read, or when that takes too long."""
        self._thread.start()
        self._first.wait(FIRST_READ_S)

    def close(self) -> None:
        self._closing.set()
        self._thread.join(POLL_S)

    def own(self, trajectory: str, agent: str) -> bool:
        """Note whose a trajectory is, unless it is known; False if it is another agent's."""
        owner = self._owners.setdefault(trajectory, agent)
        if len(self._owners) > _MOST_OWNERS:
            self._owners.popitem(last=False)
        return owner == agent

    async def may_write(self, trajectory: str, agent: str) -> bool:
        """False if a trajectory is known as another agent's, here or in a database that answers."""
        if trajectory not in self._owners and self.problem is None:
            asked = Future[set[str]]()
            self._looked_up.put((trajectory, asked))
            with suppress(TimeoutError):
                agents = await asyncio.wait_for(asyncio.wrap_future(asked), _OWNER_S)
                hashed = agent_hash(self._settings)
                # The trajectory itself names the agent, its calls the agent's hash.
                if agents - {agent, agent if hashed is None else hashed(agent)}:
                    return False
        return self.own(trajectory, agent)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                # Past any pooler: a pooled session would not get notifications.
                with open_database(self._settings, prepare=False) as database, database.connect_directly() as connection:
                    self._follow(connection)
            except (psycopg.Error, BabylonError, OSError) as broken:
                # Once for each time that it goes away: it is tried again every second.
                if self.problem in (None, _NEVER_ANSWERED):
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
                keys = client_keys.read_keys(connection)
                table = read_routing(connection)
            self._access.update(keys)
            self.table = table
            # Without lastUsedAt, which calls change all the time: the file is written anew for each difference.
            self._keep(LastState(self._database, table, [replace(key, last_used_at=None) for key in keys]))
            self.problem, self.reads = None, self.reads + 1
            self._first.set()
            # Ends after one notification, or after POLL_S; slices, so that close() hardly waits.
            for _ in range(int(POLL_S / _SLICE_S)):
                if self._closing.is_set() or any(True for _ in connection.notifies(timeout=_SLICE_S, stop_after=1)):
                    break
                self._look_up(connection)

    def _look_up(self, connection: Connection) -> None:
        """Answer who owns the trajectories that calls ask for."""
        with suppress(Empty):
            while True:
                trajectory, asked = self._looked_up.get_nowait()
                with connection.answering_within(ANSWER_S):
                    agents = agents_of_trajectory(connection, trajectory)
                if asked.set_running_or_notify_cancel():  # else nobody waits any more
                    asked.set_result(agents)

    def _restore(self) -> LastState | None:
        """Take over the state that an earlier process kept."""
        try:
            last = msgspec.json.decode(self._file.read_bytes(), type=LastState)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as unreadable:
            _LOG.warning("%s cannot be read (%s); it is written anew once the database answers.", self._file, first_line(unreadable))
            return None
        # Keys of another database open nothing here.
        if last.database != self._database:
            return None
        self._access.update(last.keys)
        self.table = last.table
        return last

    def _keep(self, state: LastState) -> None:
        if state == self._last:
            return
        self._last = state
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self._file, msgspec.json.encode(state), private=True)
        # Routing goes on; only a start without the database would serve what was kept before.
        except OSError as full:
            _LOG.warning("%s cannot be written: %s.", self._file, first_line(full))
