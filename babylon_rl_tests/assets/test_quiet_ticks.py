"""Ticks of the sensors when nothing was written: they read next to nothing, and never miss what was."""

import contextlib
import random
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import dagster as dg
import psycopg
import pytest

from babylon_rl.assets.sources import observe
from babylon_rl.automation.sensors import observe_changes, start_training
from babylon_rl.episodes.reading import sync_windows
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.training.readiness import not_ready
from babylon_rl.windows import HOUR
from babylon_rl_tests.assets.conftest import COUNTED, NOW, Bench
from babylon_rl_tests.plans import RecordedDatabase

pytestmark = pytest.mark.slow

HOURS = [f"2025-10-29T{hour:02}:00" for hour in (13, 14, 15, 16, 17)]
WAITING = {"train_rl_local": True, "local_base_model": "dry", "training_min_trajectories": 100_000}


def tick(bench: Bench, sensor: dg.SensorDefinition, cursor: str | None) -> tuple[dg.SensorResult | dg.SkipReason, str | None]:
    """One evaluation, as the daemon does it; and the cursor of the next."""
    context = dg.build_sensor_context(instance=bench.instance, cursor=cursor, resources={"babylon": bench.babylon})
    result = sensor(context)
    return result, (result.cursor if isinstance(result, dg.SensorResult) else None) or context.cursor


def test_a_quiet_tick_reads_no_row_of_the_game_and_no_episode(make_bench: Callable[..., Bench], sample_database: Database):
    database = RecordedDatabase(sample_database.url)
    bench = make_bench(database, **WAITING)
    with database.connect(autocommit=True) as connection:
        sync_windows(connection, HOURS, bench.babylon.settings, NOW)
        connection.execute(COUNTED)
    for sensor in (observe_changes, start_training):
        first, cursor = tick(bench, sensor, None)
        del database.sent[:]
        second, again = tick(bench, sensor, cursor)
        assert isinstance(second, dg.SkipReason) and again == cursor
        text = " ".join(statement.text for statement in database.sent)
        read = {table.replace('"', "").rpartition(".")[2] for table in re.findall(r'(?:FROM|JOIN)\s+([\w."]+)', text, re.IGNORECASE)}
        assert read and read.isdisjoint({"trajectories", "llm_call_logs", "episodes"}), read
        assert sensor is observe_changes or second == first


EDITS = (
    """UPDATE trajectories SET "updatedAt" = "updatedAt" + interval '1 minute' WHERE {row}""",
    """UPDATE trajectories SET "windowId" = '2025-10-29T12:00', "updatedAt" = "updatedAt" + interval '1 minute' WHERE {row}""",
    """UPDATE trajectories SET "aiJudgeReward" = 0.5 WHERE {row}""",
    """DELETE FROM trajectories WHERE {row}""",
    """DELETE FROM "User" WHERE id = (SELECT "agentId" FROM trajectories WHERE {row})""",
    """INSERT INTO llm_call_logs SELECT (l.g).* FROM (SELECT jsonb_populate_record(g, jsonb_build_object('id', gen_random_uuid())) AS g
        FROM llm_call_logs g ORDER BY md5(id || '{n}') LIMIT 1) l""",
    """UPDATE llm_call_logs SET response = response || '!' WHERE id = (SELECT id FROM llm_call_logs ORDER BY md5(id || '{n}') LIMIT 1)""",
    """UPDATE "StockPrice" SET price = price + 1 WHERE id = (SELECT id FROM "StockPrice" ORDER BY md5(id || '{n}') LIMIT 1)""",
    """DELETE FROM "WorldEvent" WHERE id = (SELECT id FROM "WorldEvent" ORDER BY md5(id || '{n}') LIMIT 1)""",
    """UPDATE "Question" SET "resolvedOutcome" = NOT COALESCE("resolvedOutcome", false)
        WHERE id = (SELECT id FROM "Question" ORDER BY md5(id || '{n}') LIMIT 1)""",
    """UPDATE "Organization" SET name = name || '!'
        WHERE id = (SELECT "organizationId" FROM "StockPrice" ORDER BY md5(id || '{n}') LIMIT 1)""",
    """DELETE FROM "PredictionPriceHistory" WHERE id = (SELECT id FROM "PredictionPriceHistory" ORDER BY md5(id || '{n}') LIMIT 1)""",
    """SELECT 1""",
    """INSERT INTO "Market" SELECT * FROM "Market\"""",  # refused
)
A_ROW = """id = (SELECT id FROM trajectories WHERE "windowId" > '2025-10-25' ORDER BY md5(id || '{n}') LIMIT 1)"""


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_ticks_report_after_whatever_is_written_what_a_look_without_a_watermark_finds(bench: Bench, seed: int):
    rng = random.Random(seed)
    _, cursor = tick(bench, observe_changes, None)
    quiet = 0
    for n in range(25):
        number = f"{seed}/{n}"
        with contextlib.suppress(psycopg.errors.UniqueViolation):
            bench.execute(rng.choice(EDITS).format(n=number, row=A_ROW.format(n=number)))
        if rng.random() < 0.1:
            later = bench.babylon.now() + HOUR
            bench = Bench(bench.instance, replace(bench.babylon, now=lambda later=later: later))
        found = observe(bench.instance, bench.babylon, full=False)
        before = cursor
        new, cursor, _ = bench.look(cursor)
        events = {(event.asset_key.to_user_string(), event.partition): event for event in new}
        reported = {key: event.tags["dagster/data_version"] for key, event in events.items()}
        assert reported == {(change.source.to_user_string(), change.window): change.after for change in found.changes}
        quiet += cursor == before
    assert quiet


OURS = (
    """UPDATE babylon_rl.windows SET state = 'quarantined' WHERE "window" = '2025-10-29T{hour}:00'""",
    """UPDATE babylon_rl.windows SET state = 'ready' WHERE "window" = '2025-10-29T{hour}:00'""",
    """DELETE FROM babylon_rl.windows WHERE "window" = '2025-10-29T{hour}:00'""",
    """UPDATE babylon_rl.episodes SET usable = NOT usable WHERE "window" = '2025-10-29T{hour}:00' AND "agentId" LIKE '%{n}'""",
    """UPDATE trajectories SET "usedInTraining" = NOT "usedInTraining" WHERE "windowId" = '2025-10-29T{hour}:00' AND id LIKE '%{n}'""",
    """DELETE FROM trajectories WHERE "windowId" = '2025-10-29T{hour}:00' AND id LIKE '%{n}'""",
    """INSERT INTO babylon_rl.leaks SELECT e."window", e."trajectoryIds"[1], 0, 'outcome', 'c', 'd' FROM babylon_rl.episodes e
        WHERE e."window" = '2025-10-29T{hour}:00' ON CONFLICT DO NOTHING""",
    """UPDATE llm_call_logs SET "systemPrompt" = '' WHERE id LIKE '%{n}'""",
    """SELECT 1""",
)
LEAST: list[dict[str, object]] = [
    {"training_min_trajectories": 100_000},
    {"training_min_trajectories": 20, "training_min_groups": 99},
    {"training_min_trajectories": 20, "training_min_groups": 1, "data_quality_threshold": 1.0},
]


@pytest.mark.long
def test_what_is_remembered_of_readiness_is_what_a_count_would_say(sample_database: Database, settings: Settings):
    rng = random.Random(0)
    waiting = settings.model_copy(update=WAITING)
    with sample_database.connect(autocommit=True) as connection:
        sync_windows(connection, HOURS, waiting, NOW)
        connection.execute(COUNTED)
    remembered, now, kept = None, NOW, 0
    for _ in range(60):
        statement = rng.choice(OURS).format(hour=rng.choice((13, 14, 15)), n=rng.choice("0123456789"))
        with sample_database.connect(autocommit=True) as connection:
            connection.execute(statement.encode())
            connection.execute(COUNTED)
        now += timedelta(hours=rng.random() < 0.05)
        asked = settings.model_copy(update=WAITING | (LEAST[2] if rng.random() < 0.8 else rng.choice(LEAST)))
        with sample_database.connect(autocommit=True) as connection:
            counted, _ = not_ready(connection, asked, now)
            before = remembered
            said, remembered = not_ready(connection, asked, now, remembered)
        assert said == counted
        kept += remembered is not None and remembered == before
    assert kept
