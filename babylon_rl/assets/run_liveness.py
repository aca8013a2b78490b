"""Liveness of runs: the process of a run renews a heartbeat row in the database.

Dagster does not notice that the code server of a run died: the run stays STARTED, and keeps its pool and its place in the queue. The end
of a process on the same machine is seen at once; a process elsewhere counts as dead after SILENT_S without a heartbeat. A run that has not
begun has no process yet: Dagster's own monitoring handles it (run_monitoring in dagster.yaml).
"""

import _thread
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import psycopg

from babylon_rl.errors import BabylonError, BatchConflict
from babylon_rl.processes import described, is_running, own_name
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.run_heartbeats import Heartbeat, beat, lock_heartbeats

BEAT_EVERY_S, SILENT_S = 15.0, 90.0
PARTITION_TAG = "dagster/partition"


@contextmanager
def heartbeats(database: Database, run_id: str) -> Iterator[None]:
    """Renew a run's heartbeat until the block ends; interrupt a run that was reported dead.

    The interrupt is that of Ctrl-C. A database that does not answer, or is not migrated, is no reason to stop: the run itself will report
    it.
    """
    ended = threading.Event()

    def renew() -> None:
        holder = own_name()
        while True:
            try:
                with database.connect(autocommit=True) as connection:
                    lives = beat(connection, run_id, holder)
            # A database error says nothing about the run: it goes on.
            except (psycopg.Error, BabylonError):
                lives = True
            if not lives and not ended.is_set():
                logging.getLogger(__name__).error("Run %s was reported dead, and another may go on with its work: it stops.", run_id)
                # This thread cannot stop the run itself; the main thread raises KeyboardInterrupt.
                _thread.interrupt_main()
                return
            if ended.wait(BEAT_EVERY_S):
                return

    thread = threading.Thread(target=renew, name=f"heartbeat of {run_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def why_dead(heartbeat: Heartbeat) -> str | None:
    """A sentence that says why the run counts as dead.

    None while it may be alive.
    """
    silent = heartbeat.silent_s > SILENT_S
    if not heartbeat.holder:
        return f"It ended before its first heartbeat: nothing was heard of it for {heartbeat.silent_s:.0f} s." if silent else None
    # True or False for a process of this machine; None elsewhere, where only silence counts.
    running = is_running(heartbeat.holder)
    if running is False or (running is None and silent):
        end = "is gone" if running is False else f"has been silent for {heartbeat.silent_s:.0f} s"
        return f"What ran it {end}: {described(heartbeat.holder)}, last heard of at {heartbeat.seen_at:%Y-%m-%d %H:%M:%S} UTC."
    return None


def refuse_second_run(context: dg.AssetExecutionContext, connection: Connection, batch_id: str) -> None:
    """Refuse this run if an earlier run of the same batch is alive.

    Raises:
        BatchConflict: another run of the batch began before this one, and is alive.
    """
    filters = dg.RunsFilter(tags={PARTITION_TAG: batch_id}, statuses=[dg.DagsterRunStatus.STARTED])
    records = context.instance.get_run_records(filters)
    began = {record.dagster_run.run_id: (record.start_time or 0.0, record.storage_id) for record in records}
    # Ties are broken by storage id: of two runs, exactly one is the earlier.
    own = began.get(context.run.run_id, (math.inf, 0))
    earlier = [run_id for run_id, start in began.items() if start < own]
    with connection.transaction():
        alive = [heartbeat for heartbeat in lock_heartbeats(connection, earlier) if why_dead(heartbeat) is None]
    if alive:
        who = described(alive[0].holder) if alive[0].holder else "a process that is about to begin"
        raise BatchConflict(
            f"Another run trains these hours: {batch_id} is being trained by {who} (run {alive[0].run_id}). Wait until that "
            f"has ended, or end it; `babylon-rl batches show {batch_id}` says how far it is."
        )
