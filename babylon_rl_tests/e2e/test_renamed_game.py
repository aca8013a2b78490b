"""The recorded game under other names, in another season and another order says the same: no rule hangs on an id, a date or a place."""

import json
import re
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from babylon_rl.episodes.reading import read_windows
from babylon_rl.judge.scoring import judge_episode
from babylon_rl.market.outcomes import engine_ticker, read_many_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.trajectories import FIRST_POSSIBLE, LAST_POSSIBLE, windows_with_rows
from babylon_rl.windows import window_of, window_start

PREFIX = "zq9-"
SHIFT = timedelta(days=151)
QUESTIONS = 5000

# Of each table: the columns that hold ids, and those that hold moments.
TABLES = {
    '"User"': (("id",), ("createdAt", "updatedAt")),
    "trajectories": (("id", "trajectoryId", "agentId"), ("startTime", "endTime", "createdAt", "updatedAt", "judgedAt")),
    "llm_call_logs": (("id", "trajectoryId", "stepId", "callId"), ("timestamp", "createdAt")),
    '"Organization"': (("id",), ("createdAt", "updatedAt")),
    '"StockPrice"': (("id", "organizationId"), ("timestamp",)),
    '"Question"': (("id",), ("createdDate", "resolutionDate", "createdAt", "updatedAt")),
    '"Market"': (("id",), ("endDate", "createdAt", "updatedAt")),
    '"PredictionPriceHistory"': (("id", "marketId"), ("createdAt",)),
    '"WorldEvent"': (("id",), ("timestamp", "createdAt")),
}
CANONICAL = r"^\d{4}-\d\d-\d\dT\d\d:00$"


def rename(connection: Connection) -> None:
    """Prefix every id, move every moment, and lay the rows of every table out in another order."""
    connection.execute("SET session_replication_role = replica")
    moved = """to_char(replace({0}, 'T', ' ')::timestamp + %s, 'YYYY-MM-DD"T"HH24:MI')"""
    for column in ('"windowId"', '"scenarioId"'):
        connection.execute(f"UPDATE trajectories SET {column} = {moved.format(column)} WHERE {column} ~ %s", (SHIFT, CANONICAL))
    connection.execute(f'UPDATE "Question" SET "questionNumber" = "questionNumber" + {QUESTIONS}')
    connection.execute(f'UPDATE "WorldEvent" SET "relatedQuestion" = "relatedQuestion" + {QUESTIONS}')
    recorded = connection.execute('SELECT id, "stepsJson" FROM trajectories').fetchall()
    with connection.cursor() as cursor:
        cursor.executemany('UPDATE trajectories SET "stepsJson" = %s WHERE id = %s', [(later(text), row) for row, text in recorded])
    for table, (ids, moments) in TABLES.items():
        changes = [f'"{name}" = \'{PREFIX}\' || "{name}"' for name in ids] + [f'"{name}" = "{name}" + %(shift)s' for name in moments]
        connection.execute(f"UPDATE {table} SET {', '.join(changes)}", {"shift": SHIFT})
        connection.execute(f"CREATE TEMP TABLE laid_out ON COMMIT DROP AS SELECT * FROM {table}")
        connection.execute(f"DELETE FROM {table}")
        connection.execute(f"INSERT INTO {table} SELECT * FROM laid_out ORDER BY md5(id)")
        connection.execute("DROP TABLE laid_out")
    connection.execute("SET session_replication_role = DEFAULT")


def later(steps_json: str, shift: timedelta = SHIFT) -> str:
    """The text with the moments of its steps moved."""
    moved_ms = shift // timedelta(milliseconds=1)
    return re.sub(r'("timestamp": ?)(\d{13})\b', lambda found: f"{found[1]}{int(found[2]) + moved_ms}", steps_json)


def results(connection: Connection, settings: Settings) -> dict[str, Any]:
    """Everything read of every hour, by hour, but for hashes of the recorded bytes."""
    windows = windows_with_rows(connection, FIRST_POSSIBLE, LAST_POSSIBLE)
    outcomes = read_many_outcomes(connection, windows, settings)
    found = {}
    for window, reading in read_windows(connection, windows, settings, texts=True).items():
        episodes = [msgspec.structs.asdict(episode) | {"content": None, "score": judge_episode(episode)} for episode in reading.episodes]
        market = outcomes[window]
        stocks = [asdict(stock) | {"ticker": stock.ticker == engine_ticker(stock.organization_id)} for stock in market.stocks]
        predictions = [asdict(prediction) for prediction in market.predictions]
        whole = (market.mean_change, market.volatility, reading.rows, reading.ready, reading.quality)
        found[window] = [episodes, [msgspec.structs.asdict(rejection) for rejection in reading.rejections], stocks, predictions, whole]
    return found


def comparable(found: Any) -> Any:
    """As JSON, with structs as objects and moments as texts."""
    return json.loads(json.dumps(found, default=_plain))


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else msgspec.structs.asdict(value)


def renamed_back(found: Any) -> Any:
    """Results of the renamed game under the names of the original."""
    if isinstance(found, dict):
        return {renamed_back(name): back_number(name, value) for name, value in found.items()}
    if isinstance(found, list):
        return [renamed_back(value) for value in found]
    if not isinstance(found, str):
        return found
    if re.fullmatch(CANONICAL[1:-1], found):
        return window_of(window_start(found) - SHIFT)
    moment = re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?", found)
    return (datetime.fromisoformat(found) - SHIFT).isoformat() if moment else later(found.replace(PREFIX, ""), -SHIFT)


def back_number(name: str, value: Any) -> Any:
    return value - QUESTIONS if name == "question_number" and value is not None else renamed_back(value)


@pytest.mark.slow
def test_names_dates_and_order_decide_nothing(sample_database: Database, settings: Settings) -> None:
    with sample_database.connect() as connection:
        before = comparable(results(connection, settings))
        rename(connection)
        after = comparable(results(connection, settings))
    assert len(before) == 12 and set(before) & set(after) == set()
    again = renamed_back(after)
    assert sorted(again) == sorted(before)
    for window, answer in before.items():
        for ours, theirs in zip(again[window], answer, strict=True):
            assert ours == theirs
