"""Recording of calls behind their answers: into a spool on disk at once.

call_writer.py takes them from there into the database.
"""

import logging
import random
from typing import Any

from babylon_rl.serving.call_entry import CallEntry
from babylon_rl.serving.spool import Spool, read_status, stored_bytes
from babylon_rl.settings import Settings

_LOG = logging.getLogger("babylon_rl.gateway")
_REPORTED = (1, 1_000, 1_000_000)


class CallLog:
    """Log of the calls of one gateway process; it never waits for the database."""

    def __init__(self, settings: Settings) -> None:
        self._directory = settings.home / "gateway" / "spool"
        self._rate = settings.trajectory_sampling_rate if settings.record_agent_trajectories else 0.0
        self._spool = Spool(self._directory, settings.gateway_spool_mb * 1024**2)

    def records_texts(self, identity: str) -> bool:
        """Return True if the texts of a call are recorded.

        A trajectory is recorded whole or not at all, as the recorder decides.
        """
        return self._rate >= 1 or (self._rate > 0 and random.Random(identity).random() < self._rate)

    def record(self, entry: CallEntry) -> bool:
        """Take a call; once this returns, the end of this process does not lose it.

        False if the spool is full.
        """
        taken = self._spool.append(entry.encoded())
        if not taken and self._spool.refused in _REPORTED:
            _LOG.error("Calls are not recorded (%d so far): the spool in %s is full.", self._spool.refused, self._directory)
        return taken

    def report(self) -> dict[str, Any]:
        """Progress of recording: bytes waiting on disk; calls written, refused and rejected."""
        status = read_status(self._directory)
        waiting = max(0, stored_bytes(self._directory) - sum(status.offsets.values()))
        counts = {"written": status.written, "refused": self._spool.refused, "rejected": status.rejected}
        return {"waitingBytes": waiting, **counts, "problem": status.problem}

    def gauge(self) -> dict[tuple[str, ...], float]:
        """The numbers of the report that all processes share, for metrics."""
        return {(name,): float(value) for name, value in self.report().items() if isinstance(value, int) and name != "refused"}

    def close(self) -> None:
        """Complete the open segment, for the writer to finish."""
        self._spool.close()
