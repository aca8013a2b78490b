"""What the optional indexes buy: `python -m benchmarks.indexes [--rows N] [--keep DIR]` prints a table.

On the rows of ten_million_rows.py, found again under DIR. Every read runs without the indexes (dropped in a transaction that is undone),
with each alone and with both, with the game's agents and with 20,000 users more. Printed are milliseconds in the database, the better of
two, and the pages of 8 KB that were looked at, which do not depend on what else runs on the machine.
"""

import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta

from babylon_rl.store.connection import Connection
from babylon_rl.store.indexes import INDEXES, build_indexes
from babylon_rl.store.observation import trajectory_versions
from babylon_rl.store.trajectories import newest_window_with_rows, trajectory_rows, windows_with_rows
from babylon_rl.windows import HOUR, window_of
from babylon_rl_tests.plans import RecordedDatabase, explainable
from benchmarks.ten_million_rows import END, asked_rows, say, told

WEEK, LAST, NEXT = window_of(END - timedelta(days=7)), window_of(END - HOUR), window_of(END)
_USERS = """INSERT INTO public."User" (id, "updatedAt") SELECT 'idle-' || n, now() FROM generate_series(1, 20000) n"""
READS: dict[str, Callable[[Connection], object]] = {
    "versions of a week's hours": lambda connection: trajectory_versions(connection, WEEK, NEXT),
    "version of an hour": lambda connection: trajectory_versions(connection, LAST, NEXT),
    "rows of an hour": lambda connection: list(trajectory_rows(connection, [LAST])),
    "hours of a week that hold rows": lambda connection: windows_with_rows(connection, WEEK, NEXT),
    "newest hour": lambda connection: newest_window_with_rows(connection, LAST),
}


def spent(database: RecordedDatabase, read: Callable[[Connection], object], kept: Sequence[str], *, users: bool) -> tuple[float, int]:
    """Milliseconds and pages of what a read sends, with some of the indexes."""
    with database.connect() as connection:
        try:
            if users:
                connection.execute(_USERS)
                connection.execute('ANALYZE public."User"')
            for index in INDEXES:
                if index.name not in kept:
                    connection.execute(f"DROP INDEX public.{index.name}")
            del database.sent[:]
            read(connection)
            ms, pages = 0.0, 0
            for statement in [sent for sent in database.sent if "public.trajectories" in sent.text and explainable(sent)]:
                found = []
                for _ in range(2):
                    text = f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {explainable(statement)}"
                    ((documents,),) = connection.execute(text, statement.parameters).fetchall()
                    found.append(documents[0])
                ms += min(document["Execution Time"] for document in found)
                pages += found[1]["Plan"]["Shared Hit Blocks"] + found[1]["Plan"]["Shared Read Blocks"]
            return ms, pages
        finally:
            connection.rollback()


def main() -> int:
    """Build them where they are missing, and print the table."""
    with asked_rows(__doc__) as (url, _, rows):
        database = RecordedDatabase(url)
        with told("building the indexes"):
            for built in build_indexes(database):
                say(f"{built.index.name}: {(built.size_bytes or 0) / 1e6:.0f} MB")
        names = [index.name for index in INDEXES]
        sets = {"neither": [], **{name.removeprefix("babylon_rl_trajectories_"): [name] for name in names}, "both": names}
        say(f"| read | users | {' | '.join(f'ms, pages: {kept}' for kept in sets)} |\n|---|---|{'---|' * len(sets)}")
        # Users that were undone leave dead rows behind: reads without them come first.
        for users in (False, True):
            for name, read in READS.items():
                found = [spent(database, read, kept, users=users) for kept in sets.values()]
                say(f"| {name} | {rows.agents + 20_000 * users:,} | {' | '.join(f'{ms:,.1f}, {pages:,}' for ms, pages in found)} |")
        say(f"Load average {os.getloadavg()[0]:.0f}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
