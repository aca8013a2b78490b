"""Freezing a batch out of ten million trajectories: `python benchmarks/freezing.py [--rows N] [--keep DIR]` prints seconds as JSON.

On the rows and the embedded server of ten_million_rows.py, found again under DIR. Each batch is frozen several times and taken back.
Measured are batches of a maximum; everything that a week holds; and the week of a running game, of which earlier trainings have used
all but the newest hour. The bound is 1 s a batch; a whole week at once, for which there is none, takes as long as writing its rows.
"""

import json
import statistics
import sys
import time
from datetime import timedelta

from ten_million_rows import END, asked_rows, read_hours, say

from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.training.batches import fail_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.windows import HOUR, window_of, window_range, window_start

TURNS = 5
BOUND_S = 1.0
_TAKE_BACK = ("babylon_rl.dropped_episodes", "babylon_rl.batch_episodes", "babylon_rl.batch_items")


def take_back(connection: Connection, batch_id: str, settings: Settings) -> None:
    """Leave the database as it was before the batch."""
    fail_batch(connection, batch_id, "measured", END)
    for table in _TAKE_BACK:
        connection.execute(f'DELETE FROM {table} WHERE "batchId" = %s', [batch_id])
    connection.execute("VACUUM (ANALYZE) babylon_rl.batch_items, babylon_rl.dropped_episodes, babylon_rl.batch_episodes")


def seconds_of(database: Database, settings: Settings, most: int | None, turns: int) -> dict[str, float]:
    """The median of some freezings of at most ``most`` trajectories, and what the batch held."""
    seconds, found = [], None
    now = END + timedelta(minutes=10)
    with database.connect(autocommit=True) as connection:
        for _ in range(turns):
            started = time.perf_counter()
            found = freeze(connection, settings, now, max_trajectories=most).batch
            seconds.append(time.perf_counter() - started)
            if found is None:
                raise SystemExit("Nothing was frozen.")
            take_back(connection, found.batch_id, settings)
    assert found is not None
    return {"s": round(statistics.median(seconds), 3), "worst_s": round(max(seconds), 3), "trajectories": found.trajectories}


def use_up(database: Database, windows: list[str]) -> None:
    """What earlier trainings and the next reading of their hours leave behind."""
    with database.connect(autocommit=True) as connection:
        connection.execute(
            """
            UPDATE public.trajectories t SET "usedInTraining" = TRUE
            FROM babylon_rl.episodes e CROSS JOIN LATERAL unnest(e."trajectoryIds") AS i ("trajectoryId")
            WHERE e."window" = ANY(%s) AND t."trajectoryId" = i."trajectoryId"
            """,
            [windows],
        )
        connection.execute('UPDATE babylon_rl.episodes SET "usedIds" = "trajectoryIds" WHERE "window" = ANY(%s)', [windows])
        connection.execute("VACUUM (ANALYZE) babylon_rl.episodes")


def give_all_back(database: Database) -> None:
    """Forget what an earlier run of this benchmark used up."""
    with database.connect(autocommit=True) as connection:
        connection.execute('UPDATE public.trajectories SET "usedInTraining" = FALSE WHERE "isTrainingData" AND "usedInTraining"')
        connection.execute('UPDATE babylon_rl.episodes SET "usedIds" = \'{}\' WHERE cardinality("usedIds") > 0')


def measure(database: Database, settings: Settings) -> dict[str, dict[str, float]]:
    """Seconds by situation."""
    week = list(window_range(window_of(END - settings.lookback_hours * HOUR), window_of(END)))
    with database.connect(autocommit=True) as connection:
        read = connection.execute('SELECT count(*) FROM babylon_rl.windows WHERE "window" = ANY(%s)', [week]).fetchone()
    if read != (len(week),):
        read_hours(database, settings, week, END + timedelta(minutes=10))
    give_all_back(database)
    found = {f"at most {most:,}": seconds_of(database, settings, most, TURNS) for most in (1_000, 10_000)}
    found["all of a week"] = seconds_of(database, settings, None, 2)
    use_up(database, [window for window in week if window_start(window) < END - HOUR])
    found["all that is new in a week"] = seconds_of(database, settings, None, TURNS)
    return found


def main() -> int:
    """Print the figures; 1 when a batch that the bound is for takes longer."""
    with asked_rows(__doc__) as (url, home, many):
        settings = Settings(_env_file=None, babylon_rl_home=home, train_rl_local=True, local_base_model="dry")
        found = measure(Database(url, url), settings)
    say(json.dumps({"rows": many.rows, "bound_s": BOUND_S} | found, indent=2))
    return int(any(one["s"] > BOUND_S for name, one in found.items() if name != "all of a week"))


if __name__ == "__main__":
    sys.exit(main())
