"""Runs in the database: whole, marked as evaluation, there once, and refused by everything that trains."""

from pathlib import Path

from babylon_rl.evaluation.play import run_benchmark
from babylon_rl.evaluation.run_files import record_runs
from babylon_rl.evaluation.snapshots import Snapshot
from babylon_rl.store.database import Database
from babylon_rl_tests.evaluation.endpoint import always_buy, endpoint
from babylon_rl_tests.evaluation.runs import model, roster, small_markets


def test_a_run_is_recorded_once_with_its_prompts_and_never_as_training_data(database: Database, tmp_path: Path) -> None:
    markets: tuple[Snapshot, ...] = small_markets(1)
    with endpoint(m=always_buy) as served, model(served.url) as one:
        runs = run_benchmark([one, *roster("oracle")], markets, tmp_path)
    with database.connect() as connection:
        assert (record_runs(connection, runs.files), record_runs(connection, runs.files)) == (2, 0)
        rows = connection.execute(
            'SELECT "agentId", "scenarioId", "windowId", "isEvaluation", "isTrainingData", "episodeLength", "finalPnL",'
            ' jsonb_array_length("stepsJson"::jsonb) FROM trajectories ORDER BY "agentId"'
        ).fetchall()
        calls = connection.execute("SELECT count(*) FROM llm_call_logs").fetchone()
    name = f"benchmark-{markets[0].id}"
    pnls = [round(result.metrics.total_pnl, 6) for result in runs.results]
    assert [(*row[:6], round(row[6], 6), row[7]) for row in rows] == [
        ("benchmark-m", name, name, True, False, 12, pnls[0], 12),
        ("benchmark-oracle", name, name, True, False, 12, pnls[1], 12),
    ]
    assert calls == (12,)
