"""The status document on ten million slim rows: `python benchmarks/status.py [--rows N] [--keep DIR] [--database URL]`.

Fills an embedded server of its own as benchmarks/ten_million_rows.py does, reads the look-back's hours, and prints the milliseconds of the
document, its best of ten, and of each of its statements; then those of training-data and of a tick of the alerts, after a write and
without one.
"""

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from babylon_rl.alerts import send_alerts
from babylon_rl.serving.admin_api import AdminApi, AdminRequest
from babylon_rl.serving.status import status_document
from babylon_rl.settings import Settings
from babylon_rl.training.readiness import keep_counts
from babylon_rl.windows import HOUR, window_of, window_range
from babylon_rl_tests.many_rows import ManyRows
from babylon_rl_tests.plans import RecordedDatabase
from benchmarks.ten_million_rows import asked_rows, read_hours, say, told

TIMES, SLOWEST = 10, 8


def measure(url: str, home: Path, many: ManyRows) -> None:
    """Print the times."""
    database = RecordedDatabase(url)
    settings = Settings(_env_file=None, babylon_rl_home=home, train_rl_local=True, local_base_model="dry")
    now = many.end + timedelta(minutes=10)
    with told(f"reading {settings.lookback_hours} hours"):
        hours = list(window_range(window_of(many.end - settings.lookback_hours * HOUR), window_of(many.end)))
        read_hours(database, settings, hours, now)
    api = AdminApi(settings, database)
    with database.connect(autocommit=True) as connection:
        print_times("status without kept counts", database, lambda: status_document(connection, settings, now))
        with told("counting what could train"):
            keep_counts(connection, settings, now)
        print_times("status", database, lambda: status_document(connection, settings, now))
        print_times("training-data", database, lambda: api.training_data(AdminRequest("benchmark", now)))
        print_times("alerts", database, lambda: send_alerts(connection, settings, now))
        looked = send_alerts(connection, settings, now).looked
        print_times("alerts, nothing written since the last tick", database, lambda: send_alerts(connection, settings, now, looked))
        counted = status_document(connection, settings, now).trajectory_stats
    say(f"{counted.count:,} trajectories ({counted.counted}) of {many.rows:,}")


def print_times(name: str, database: RecordedDatabase, build: Callable[[], object]) -> None:
    """Print the first time, the best and the median of TIMES, and the slowest statements of the last."""
    spent = []
    for _ in range(TIMES):
        del database.sent[:]
        started = time.perf_counter()
        build()
        spent.append((time.perf_counter() - started) * 1000)
    first, best, median = spent[0], min(spent), sorted(spent)[TIMES // 2]
    say(f"{name}: first {first:.0f} ms, then best {best:.0f} ms, median {median:.0f} ms; {len(database.sent)} statements")
    for statement in sorted(database.sent, key=lambda one: one.seconds, reverse=True)[:SLOWEST]:
        say(f"  {statement.seconds * 1000:7.1f} ms {' '.join(statement.text.split())[:110]}")


def main() -> int:
    """Fill where nothing is filled yet, and measure."""
    with asked_rows(__doc__) as (url, home, many):
        measure(url, home, many)
    return 0


if __name__ == "__main__":
    sys.exit(main())
