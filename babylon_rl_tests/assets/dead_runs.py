"""Runs with a heartbeat by a process of the test's choice, whatever really holds them."""

import subprocess
import sys

from babylon_rl.processes import own_name
from babylon_rl.store.dagster_rows import beat
from babylon_rl_tests.assets.conftest import Bench


def gone() -> str:
    """The name of a process of this machine that is no more."""
    code = "from babylon_rl.processes import own_name; print(own_name())"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def elsewhere() -> str:
    """The name of a process of which nothing can be seen from here."""
    return f"another-{own_name()}"


def hold(bench: Bench, run_id: str, holder: str, *, silent_s: float = 0) -> None:
    """Have ``holder`` say that it holds a run, so long ago."""
    with bench.babylon.database.connect(autocommit=True) as connection:
        connection.execute("""UPDATE babylon_rl.run_heartbeats SET "holder" = '' WHERE "runId" = %s""", (run_id,))
        assert beat(connection, run_id, holder)
        connection.execute(
            """UPDATE babylon_rl.run_heartbeats SET "seenAt" = "seenAt" - make_interval(secs => %s) WHERE "runId" = %s""",
            (silent_s, run_id),
        )
