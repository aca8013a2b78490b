"""``babylon-rl dev`` alone, on the recorded game, with a tiny model: nobody touches anything, and a version is decided on."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from babylon_rl_tests.e2e.dev import running_dev
from babylon_rl_tests.tiny_model import make_base

pytestmark = [pytest.mark.long, pytest.mark.timeout(3000)]

# Many times the processor seconds of the whole way. A machine that is busy with other things is no failure.
ENOUGH_S = 600.0
# The batch is small, too few trajectories are left for a second one.
SMALL = {
    "TRAIN_RL_LOCAL": "true", "FIRST_WINDOW": "2025-10-29T00:00", "TRAINING_MIN_TRAJECTORIES": "300",
    "TRAINING_MAX_TRAJECTORIES": "100", "TRAINING_MIN_GROUPS": "2", "DATA_QUALITY_THRESHOLD": "0", "ITERATIONS": "1",
    "BENCHMARK_MARKETS": "2",
}  # fmt: skip
DECIDED = """
    SELECT b."batchId", b."state", (SELECT count(*) FROM babylon_rl.batch_items i WHERE i."batchId" = b."batchId"),
        m.version, m."evalMetrics"->'benchmark'->>'decision'
    FROM babylon_rl.batches b JOIN public.trained_models m ON m."trainingBatch" = b."batchId" WHERE m."evalMetrics" ? 'benchmark'
"""
RELEASED = """
    SELECT partition FROM babylon_dagster.event_logs
    WHERE dagster_event_type = 'ASSET_MATERIALIZATION' AND asset_key = '["released_model"]'
"""
HOURS = """
    SELECT count(*) FILTER (WHERE w."state" IN ('scored', 'trained')), count(*) FILTER (WHERE g."window" IS NOT NULL), count(*)
    FROM babylon_rl.windows w LEFT JOIN babylon_rl.group_scores g USING ("window") WHERE w."usableEpisodes" >= 5
"""


def test_nobody_touches_it_and_hours_are_scored_a_batch_trained_and_its_version_decided_on(
    server: str, template: Callable[[str], str], packaged_base: Path, tmp_path: Path
):
    from transformers import AutoTokenizer

    base = make_base(tmp_path / "base", tokenizer=AutoTokenizer.from_pretrained(packaged_base), positions=2048)
    with psycopg.connect(server, autocommit=True) as administrator:
        administrator.execute(f"CREATE DATABASE alone TEMPLATE {template('sample')}")
    url = f"{server.rpartition('/')[0]}/alone"
    with (
        running_dev(tmp_path / "home", DATABASE_URL=url, LOCAL_BASE_MODEL=str(base), **SMALL) as dev,
        psycopg.connect(url, autocommit=True) as connection,
    ):

        def when(query: str, over: Callable[[list[Any]], bool]) -> list[Any]:
            """The rows of a query, once ``over`` holds for them."""
            while not over(rows := connection.execute(query).fetchall()):
                lives = dev.process.poll() is None and dev.processor_s() < ENOUGH_S
                assert lives, f"{rows} {dev.log.read_text()[-5000:]}"
                time.sleep(1)
            return rows

        batch_id, state, trajectories, version, decision = when(DECIDED, bool)[0]
        # What a model of random weights earns in two markets decides nothing, or that it loses.
        assert state == "completed" and decision in ("inconclusive", "fail") and 50 < trajectories <= 100
        # The asset says so, and a version that passed has its rollout.
        assert when(RELEASED, bool) == [(batch_id,)]
        rollouts = connection.execute('SELECT count(*) FROM babylon_rl.rollouts WHERE "version" = %s', [version]).fetchone()
        assert rollouts == (int(decision == "pass"),)
        # The batch is of the newest hours; the others may be judged after it.
        when(HOURS, lambda rows: rows == [(7, 7, 7)])
        used = connection.execute('SELECT count(*) FROM trajectories WHERE "trainedInBatch" = %s', [batch_id]).fetchone()
        assert used is not None and 0 < used[0] <= trajectories
        kept = connection.execute("SELECT count(*) FROM babylon_dagster.runs WHERE status = %s", ["FAILURE"]).fetchone()
        assert kept == (0,) and (tmp_path / "home" / "checkpoints" / version).is_dir()
