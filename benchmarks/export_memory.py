"""Peak memory of an export and of a conversion: `python benchmarks/export_memory.py [--rows 10000]`.

One hour of rows of 25 KB (8 calls of 3 KB, a tenth of them with a logged call instead), on an embedded server of its own; every format, and
the conversion of all of its episodes, in a process of its own. The exit code is 1 when one holds more than the bound.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

from babylon_rl.episodes.reading import read_window
from babylon_rl.settings import Settings
from babylon_rl.store.batches import BatchEpisode
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl.training.conversion import convert
from babylon_rl.training.export import FORMATS, export_windows
from babylon_rl.training.export.hours import Selection, Splits
from babylon_rl.windows import window_of
from babylon_rl_tests.many_rows import ManyRows, insert_many

START = datetime(2025, 10, 1, 12)
BOUND_MB = 250
CONVERSION = "conversion"


def work(what: str, url: str, home: Path) -> int:
    """Export or convert the hour; how many LLM calls that were."""
    settings, window = Settings(_env_file=None, babylon_rl_home=home), window_of(START)
    with connect(url) as connection:
        if what != CONVERSION:
            target = str(home / what)
            return export_windows(connection, [window], target, what, settings, splits=Splits(), selection=Selection()).records
        found = read_window(connection, window, settings, texts=False).episodes
        episodes = [BatchEpisode(window, one.agent_id, one.trajectory_ids, 0.5, 1, 1.5, None, None) for one in found]
        return len(convert(connection, episodes, settings).sequences)


def main() -> int:
    """Fill, and measure each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        started = time.perf_counter()
        calls = work(given.work[0], given.work[1], Path(given.work[2]))
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{given.work[0]:10} {calls} calls, {peak_mb:.0f} MB, {time.perf_counter() - started:.1f} s", flush=True)
        return int(peak_mb > BOUND_MB)
    with tempfile.TemporaryDirectory(prefix="babylon-rl-export-") as home, use_server(Path(home)) as url:
        migrate(Database(url, url))
        with connect(url, autocommit=True) as connection:
            insert_many(connection, ManyRows(given.rows, START, START + timedelta(hours=1), steps=8, prompt_characters=2900))
            connection.execute("VACUUM ANALYZE")
        words = [sys.executable, __file__, "--work"]
        return max(subprocess.run([*words, what, url, home], check=False).returncode for what in (*FORMATS, CONVERSION))


if __name__ == "__main__":
    sys.exit(main())
