"""Late data, the whole way: an earlier state of the recorded game is made, the rest arrives, and automation brings exactly the hours
that changed up to date, until nothing tells the result from the full game made at once."""

from collections.abc import Callable, Iterable

import dagster as dg
import psycopg
import pytest

from babylon_rl.automation.jobs import HOURLY, MOST_HOURS
from babylon_rl.definitions import defs
from babylon_rl.market.outcomes import read_many_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.trajectories import FIRST_POSSIBLE, LAST_POSSIBLE, trajectory_rows, windows_with_rows
from babylon_rl.training.freezing import freeze
from babylon_rl.windows import window_stretches
from babylon_rl_tests.assets.conftest import COUNTED, NOW, Bench, make_bench
from babylon_rl_tests.late import bring_up_to_date

pytestmark = pytest.mark.long

__all__ = ["make_bench"]

DRY = {"train_rl_local": True, "local_base_model": "dry", "iterations": 1}

# Every table of ours that says something of an hour, less when it was said.
OUR_TABLES = """
    SELECT c.table_schema || '.' || c.table_name,
           string_agg(quote_ident(c.column_name), ', ' ORDER BY c.ordinal_position) FILTER (WHERE c.data_type NOT LIKE 'timestamp%')
    FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)
    WHERE t.table_type = 'BASE TABLE' AND c.table_name <> 'observed_versions'
        AND (c.table_schema = 'babylon_rl' OR c.table_name IN ('market_outcomes', 'reward_judgments'))
    GROUP BY 1 HAVING bool_or(c.column_name IN ('window', 'windowId', 'groupId')) AND NOT bool_or(c.column_name = 'batchId')
"""
JUDGED = """
    SELECT e."window", t."trajectoryId", t."aiJudgeReward", t."aiJudgeReasoning"
    FROM public.trajectories t LEFT JOIN babylon_rl.episodes e ON t."trajectoryId" = ANY(e."trajectoryIds")
"""


class Automation:
    """Sensor and conditions, again and again until they ask for nothing, and what they ask for made at once; ``made`` remembers it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.cursor: str | None = None
        self.swept: str | None = None
        self.made: dict[str, set[str]] = {}

    def settle(self) -> dict[str, set[str]]:
        """Run until all is quiet; the hours that were made, by asset."""
        self.made = {}
        while self._look() | self._follow():
            pass
        return self.made

    def _look(self) -> bool:
        reported, self.swept, _ = self.bench.look(self.swept)
        return bool(reported)

    def _follow(self) -> bool:
        result = dg.evaluate_automation_conditions(defs, self.bench.instance, cursor=self.cursor)
        self.cursor = result.cursor
        asked = {name: set(result.get_requested_partitions(dg.AssetKey(name))) for name in HOURLY}
        together: dict[frozenset[str], set[str]] = {}
        for window in set().union(*asked.values()):
            together.setdefault(frozenset(name for name in HOURLY if window in asked[name]), set()).add(window)
        for names, windows in together.items():
            self._make(names, windows)
        return bool(together)

    def _make(self, names: Iterable[str], windows: set[str]) -> None:
        for name in names:
            self.made.setdefault(name, set()).update(windows)
        for first, last in window_stretches(windows, MOST_HOURS):
            chosen = [dg.AssetKey(name) for name in names]
            self.bench.run("hours", first, None if first == last else last, asset_selection=chosen)


def content(database: Database) -> dict[str, list[str]]:
    """What the tables say, as sorted lines."""
    with database.connect() as connection:
        statements = {table: f"SELECT {columns} FROM {table}" for table, columns in connection.execute(OUR_TABLES)}
        statements["judged"] = JUDGED
        return {name: sorted(map(repr, connection.execute(text).fetchall())) for name, text in statements.items()}


def frozen(database: Database) -> list[str]:
    """Everything that is stored of the batches."""
    with database.connect() as connection:
        tables = ("babylon_rl.batches", "babylon_rl.batch_episodes", "babylon_rl.batch_items", "public.training_batches")
        return sorted(repr((table, row)) for table in tables for row in connection.execute(f"SELECT * FROM {table}"))


def recorded(database: Database, settings: Settings) -> dict[str, tuple[str, str]]:
    """What the game holds of every hour, by window: its trajectories with their calls, and its market."""
    with database.connect() as connection:
        windows = sorted({*windows_with_rows(connection, FIRST_POSSIBLE, LAST_POSSIBLE), *_market_hours(connection)})
        rows: dict[str, list[str]] = {window: [] for window in windows}
        logs = dict(connection.execute('SELECT "trajectoryId", array_agg(l::text ORDER BY id) FROM llm_call_logs l GROUP BY 1').fetchall())
        for row in trajectory_rows(connection, windows):
            rows[row.window].append(repr((row.trajectory_id, row.steps_json, row.metrics_json, row.final_pnl, logs.get(row.trajectory_id))))
        outcomes = read_many_outcomes(connection, windows, settings)
    return {window: (repr(sorted(rows[window])), repr(outcomes[window])) for window in windows}


def _market_hours(connection: psycopg.Connection[tuple[str]]) -> list[str]:
    query = """SELECT DISTINCT to_char("timestamp", 'YYYY-MM-DD"T"HH24:00') FROM (
        SELECT "timestamp" FROM "StockPrice" UNION ALL SELECT "timestamp" FROM "WorldEvent") moments"""
    return [window for (window,) in connection.execute(query)]


def test_late_rows_remake_their_hours_alone_and_end_where_a_fresh_load_ends(
    make_bench: Callable[..., Bench], early_sample_database: Database, sample_database: Database, settings: Settings
):
    bench = make_bench(early_sample_database, **DRY)
    automation = Automation(bench)
    automation.settle()
    with early_sample_database.connect() as connection:
        assert freeze(connection, bench.babylon.settings, NOW).batch is not None
    held, before, versions = frozen(early_sample_database), recorded(early_sample_database, settings), _versions(early_sample_database)

    with early_sample_database.connect(autocommit=True) as early, sample_database.connect() as full:
        touched = bring_up_to_date(early, full)
        early.execute(COUNTED)
    assert {"trajectories", "llm_call_logs", "StockPrice", "WorldEvent", "PredictionPriceHistory"} <= touched.keys()
    made = automation.settle()

    after = recorded(early_sample_database, settings)
    assert after == recorded(sample_database, settings)
    changed = [{w for w in before | after if before.get(w, ("", ""))[kind] != after.get(w, ("", ""))[kind]} for kind in (0, 1)]
    assert made["window_groups"] == changed[0]
    assert made["market_outcomes"] == changed[1]
    remade = {w for w, found in _versions(early_sample_database).items() if versions.get(w) != found}
    # Hours of a range have its version: all that were made again are looked at once more, and those unchanged stay as they were.
    assert remade <= made["scored_groups"] <= changed[0] | changed[1]
    assert frozen(early_sample_database) == held

    whole = make_bench(sample_database, **DRY)
    for first, last in window_stretches(after, MOST_HOURS):
        whole.run("hours", first, None if first == last else last)
    assert content(early_sample_database) == content(sample_database)


def _versions(database: Database) -> dict[str, tuple[str | None, str | None]]:
    with database.connect() as connection:
        query = """SELECT "window", w."dataVersion", m."dataVersion"
            FROM babylon_rl.windows w FULL JOIN babylon_rl.market_windows m USING ("window")"""
        return {window: (read, market) for window, read, market in connection.execute(query)}
