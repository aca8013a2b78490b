"""The status document: every field against the database, through the function, the API and the command."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from msgspec import to_builtins
from psycopg.types.json import Jsonb
from pydantic import SecretStr

from babylon_rl.cli import run
from babylon_rl.models.base_model import DIRECTORY
from babylon_rl.serving.status import status_document
from babylon_rl.settings import Settings
from babylon_rl.store import training_status
from babylon_rl.store.alerts import see
from babylon_rl.store.batches import advance_batch, claim_batch, note_waiting, read_batch
from babylon_rl.store.database import Database
from babylon_rl.store.judge_report import JudgeAgreement, write_judge_agreement
from babylon_rl.store.registry import note_tracking_refusal
from babylon_rl.store.releases import ReleaseAuthor, insert_rollout
from babylon_rl.store.scores import Quarantined, keep_pending, quarantine
from babylon_rl.store.write_ahead import note_optimizer_steps
from babylon_rl.training.backends.protocol import TRAINING_GB
from babylon_rl.training.batches import fail_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.training.lifecycle import PUBLISH, DurationFit, fit_durations
from babylon_rl.training.readiness import keep_counts
from babylon_rl.windows import moment
from babylon_rl_tests.serving.gateways import add_version, rows
from babylon_rl_tests.serving.live_rows import insert_calls
from babylon_rl_tests.serving.status_rows import JOBS, LINEAGE, MODELS, looked_up, readiness_figures, shown
from babylon_rl_tests.training.conftest import read_sample
from babylon_rl_tests.training.sample import move_batch

__all__ = ["read_sample"]
NOW = datetime(2025, 10, 30, 12)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    easy = {"train_rl_local": True, "local_base_model": "dry", "training_min_trajectories": 10, "iterations": 3, "epochs": 3}
    return settings.model_copy(update=easy | {"judge_model": "openai/x", "judge_budget_usd": 5.0, "windows_per_iteration": 1})


@pytest.fixture
def connection(read_sample: Database) -> Iterator[Any]:
    with read_sample.connect() as opened:
        yield opened


@pytest.fixture
def busy(connection: Any, settings: Settings, read_sample: Database) -> str:
    """Something in every part of the document; returns the id of the batch in training."""
    add_version(read_sample, "v1.0.0")
    add_version(read_sample, "v1.0.1", "ready")
    connection.execute("""UPDATE babylon_rl.model_lineage SET "parentVersion" = 'v1.0.0' WHERE "version" = 'v1.0.1'""")
    for number, minutes in enumerate((10, 20, 40)):
        completed(connection, f"batch-past-{number}", 100 * 2**number, minutes)
    frozen = freeze(connection, settings, NOW - HOUR, max_trajectories=200, seed=1, minimum=0, settled=False).batch
    assert frozen is not None
    attempt = move_batch(connection, frozen.batch_id, "training", NOW - 10 * MINUTE)
    for iteration, loss in ((1, 0.75), (2, None)):
        connection.execute(
            'INSERT INTO babylon_rl.training_steps ("batchId", "iteration", "attempt", "backend", "stepBefore", "windows", "sequences",'
            ' "startedAt", "finishedAt", "loss") VALUES (%s, %s, %s, \'dry\', 0, \'{}\', 1, %s, %s, %s)',
            [frozen.batch_id, iteration, attempt, NOW - 9 * MINUTE, NOW - 4 * MINUTE if loss else None, loss],
        )
    note_optimizer_steps(connection, frozen.batch_id, 2, attempt, [{"loss": 0.7}, {"loss": 0.6}], 4)
    report = [{"model": "v1.0.1", "improvement": 40.5, "improvementLow": 10.0, "improvementHigh": 71.0}, {"model": "base"}]
    connection.execute(
        'INSERT INTO babylon_rl.benchmark_reports ("batchId", "version", "reference", "decision", "reason", "markets", "minImprovement",'
        ' "rows", "tableMarkdown", "dataVersion", "createdAt")'
        " VALUES ('batch-v1.0.1', 'v1.0.1', 'v1.0.0', 'pass', '', 48, 0, %s, '', '', %s)",
        [Jsonb(report), NOW],
    )
    insert_rollout(connection, "v1.0.1", "rolling", "test", 10.0, ("ada", "bob"), "v1.0.0", ReleaseAuthor("ada", "new", NOW - DAY))
    insert_calls(connection, "v1.0.1", NOW - HOUR, ["ada", "bob"], calls=3, failed=1)
    insert_calls(connection, "v1.0.0", NOW - HOUR, ["cyd"], calls=4, latency_ms=20_000)
    keep_pending(connection, "openai/x", {"2025-10-29T14:00": "JUDGE_BUDGET_USD is 5"}, NOW)
    quarantine(connection, Quarantined("2025-10-29T13:00", "openai/x", "1", "It answers nothing.", [], NOW))
    for hour, disagreement in (("2025-10-29T15:00", 0.1), ("2025-10-29T16:00", 0.2)):
        connection.execute(
            'INSERT INTO babylon_rl.group_scores ("window", "judge", "judgeVersion", "groupSize", "mean", "spread", "disagreement",'
            " \"inputVersion\", \"dataVersion\", \"judgedAt\") VALUES (%s, 'openai/x', '1', 5, 0.5, 0.1, %s, 'x', 'x', %s)",
            [hour, disagreement, NOW],
        )
    for usd in (1.25, None):
        connection.execute(
            'INSERT INTO babylon_rl.judge_requests ("key", "window", "judge", "rubricVersion", "order", "part", "attempt", "ids", "answer",'
            ' "faults", "usd", "latencySeconds", "tries", "askedAt")'
            " VALUES (%s, '2025-10-29T15:00', 'openai/x', '1', 0, 0, 0, '[]', '', '{}', %s, 1, 1, %s)",
            [f"key-{usd}", usd, NOW - HOUR],
        )
    interval = (0.6, 0.5, 0.7)
    write_judge_agreement(
        connection, JudgeAgreement("openai/x", "1", 2, 48, 5, 1, 0, 0, 0, interval, interval, interval, interval, [], NOW - DAY)
    )
    see(connection, "quality_fell", "quality_fell", "It is low.", "Look.", NOW - HOUR, timedelta(0))
    connection.execute('UPDATE babylon_rl.alerts SET "sentAt" = %s', [NOW - MINUTE])
    see(connection, "readiness_blocked", "readiness_blocked", "Nothing comes.", "Wait.", NOW - HOUR, DAY)  # not due yet
    connection.execute("CREATE SCHEMA babylon_dagster")
    connection.execute("CREATE TABLE babylon_dagster.daemon_heartbeats (daemon_type text, body text)")
    seen = (NOW - MINUTE - datetime(1970, 1, 1)).total_seconds()
    connection.execute("INSERT INTO babylon_dagster.daemon_heartbeats VALUES ('SENSOR', %s)", [json.dumps({"timestamp": seen})])
    connection.commit()
    return frozen.batch_id


def completed(connection: Any, batch_id: str, trajectories: int, minutes: float) -> None:
    ended = NOW - 2 * DAY
    connection.execute(
        'INSERT INTO babylon_rl.batches ("batchId", "baseModel", "backend", "version", "seed", "state", "createdAt", "heartbeatAt")'
        " VALUES (%s, 'dry', 'dry', 'v0.0.1', 0, 'completed', %s, %s)",
        [batch_id, ended - DAY, ended],
    )
    connection.execute(
        'INSERT INTO training_batches (id, "batchId", "baseModel", "modelVersion", "trajectoryIds", "rewardsJson", status, "createdAt",'
        " \"startedAt\", \"completedAt\") VALUES (%s, %s, 'dry', 'v0.0.1', '[]', '[]', 'completed', %s, %s, %s)",
        [batch_id, batch_id, ended - DAY, ended - minutes * MINUTE, ended],
    )
    connection.execute(
        'INSERT INTO babylon_rl.batch_items ("batchId", "window", "agentId", "trajectoryId", "position", "live", "consumed")'
        " SELECT %s, '2025-01-01T00:00', 'a', %s || n, n, FALSE, TRUE FROM generate_series(1, %s) n",
        [batch_id, batch_id, trajectories],
    )


def test_every_field_agrees_with_the_database(busy: str, connection: Any, settings: Settings, read_sample: Database) -> None:
    found = to_builtins(status_document(connection, settings, NOW))
    jobs, models = looked_up(read_sample, JOBS), looked_up(read_sample, MODELS)
    (came,) = rows(
        read_sample,
        'SELECT COALESCE(sum("rows") FILTER (WHERE "window" > \'2025-10-29T12:00\'), 0)::int AS day, sum("rows")::int AS week,'
        ' (SELECT max("endTime") FROM trajectories WHERE "windowId" = (SELECT max("window") FROM babylon_rl.windows)) AS newest'
        " FROM babylon_rl.windows WHERE \"window\" > '2025-10-23T12:00' AND \"window\" <= '2025-10-30T12:00'",
    )
    (last,) = rows(read_sample, "SELECT max(\"completedAt\") AS at FROM training_batches WHERE status = 'completed'")
    (means,) = rows(
        read_sample,
        'SELECT count(*)::int AS n, avg("totalReward")::float8 AS r, avg("episodeLength")::float8 AS l, avg("durationMs")::float8 AS d'
        " FROM trajectories",
    )
    # One and a half of three iterations are done, a minute to begin with and 5 for them; the past runs say 6 s a trajectory, exactly.
    eta_s = (60 + 5 * 60 * 2) / 2 + 6.0 * jobs[0]["trajectories"] / 2 - 600
    health = found["automation"]["health"]
    assert health["details"].pop("storage").endswith(f" GB free at {settings.home}/checkpoints")
    # Every field of the document stands here: one that is added or left out fails.
    assert found == {
        "status": "degraded",
        "automation": {
            "dataCollection": {
                "last24h": came["day"], "last7d": came["week"], "ratePerHour": round(came["day"] / 24, 3),
                "newestAt": shown(came["newest"]), "newestAgeHours": round((NOW - came["newest"]) / HOUR, 3),
            },
            "training": {"currentJob": jobs[0], "lastCompleted": shown(last["at"]), "nextScheduled": shown(last["at"] + DAY)},
            "models": {
                # Another producer's deployed version counts, as for the game.
                "latest": "v1.0.1", "deployed": sum(model["status"] == "deployed" for model in models), "deployedVersion": "v1.0.0",
                "training": 1, "trainingVersion": jobs[0]["modelVersion"],
            },
            # An hour waits for the judge, and W&B has no key; everything else works.
            "health": {
                "database": True, "storage": True, "wandb": False, "judge": False, "trainer": True, "daemon": True,
                "details": {
                    "database": f"Postgres {connection.info.server_version // 10000} answers",
                    "judge": "1 hours wait: JUDGE_BUDGET_USD is 5",
                    "trainer": "dry, from dry",
                    "daemon": "Dagster's daemon was seen at 2025-10-30 11:59:00 UTC",
                    "wandb": "Not sent to Weights & Biases: WANDB_API_KEY is not set (WANDB_MODE=offline writes files for `wandb sync`).",
                },
            },
        },
        "readiness": readiness_figures(read_sample) | {
            "ready": False, "reason": "Need more scenario groups (3/10 minimum)", "countedAt": None,
        },
        "progress": {
            "batchId": busy, "state": "training", "activity": "iteration 2 of 3, optimizer step 2 of 4", "fraction": 0.5,
            "iteration": 1, "iterations": 3, "step": 2, "steps": 4, "losses": [0.75],
            "elapsedSeconds": 600.0, "etaSeconds": pytest.approx(eta_s, abs=0.1),
            "etaAt": shown(NOW + timedelta(seconds=round(eta_s))), "etaError": pytest.approx(0.0, abs=1e-6), "fittedTo": 3,
        },
        "judge": {
            "model": "openai/x", "hoursScored": 2, "hoursWaiting": 1, "hoursQuarantined": 1, "hoursByOtherRules": 2,
            "otherRulesUsd": None, "waitingReason": "JUDGE_BUDGET_USD is 5",
            "disagreement": pytest.approx(0.15), "spentTodayUsd": 1.25, "budgetUsd": 5.0, "unpriced": 1,
            "agreement": {"judge": "openai/x", "mean": 0.6, "low": 0.5, "high": 0.7, "hours": 48, "measuredAt": shown(NOW - DAY)},
        },
        "lineage": looked_up(read_sample, LINEAGE),
        "rollout": {
            "version": "v1.0.1", "state": "rolling", "strategy": "test", "percentage": 10.0, "agents": 2, "previousVersion": "v1.0.0",
            "stepSince": shown(NOW - DAY),
            "guards": [
                {"name": name, "verdict": "inconclusive", "words": f"{words}: too early to say"}
                for name, words in (
                    ("errors", "2 of 6, control 0 of 4"), ("latency", "0 of 6, control 4 of 4"),
                    ("refused orders", "0 of 0, control 0 of 0"),
                    ("action collapse", "hold in 0 of 0 decisions"), ("P&L", "0 agents against 0"),
                )
            ],
        },
        "alerts": [
            {
                "cause": "quality_fell", "says": "It is low.", "advice": "Look.", "notice": False, "firstSeenAt": shown(NOW - HOUR),
                "sentAt": shown(NOW - MINUTE),
            }
        ],
        "recentJobs": jobs,
        "models": models,
        "trajectoryStats": {
            "_count": means["n"], "_avg": {"totalReward": means["r"], "episodeLength": means["l"], "durationMs": means["d"]},
            "counted": "exact",
        },
        "timestamp": shown(NOW),
    }  # fmt: skip
    assert came["day"] > 0 and len(jobs) == 4 and [model["parent"] for model in models] == [None, None, "v1.0.0", None]


def test_no_step_is_no_progress_and_a_conversion_of_weights_has_its_word(connection: Any, settings: Settings) -> None:
    frozen = freeze(connection, settings, NOW, max_trajectories=200, seed=1, minimum=0, settled=False).batch
    assert frozen is not None
    connection.commit()

    def shown(state: Any) -> tuple[float, str]:
        if state != "pending":
            move_batch(connection, frozen.batch_id, state, NOW)
        progress = status_document(connection, settings, NOW).progress
        assert progress is not None
        return progress.fraction, progress.activity

    assert [shown(state) for state in ("pending", "preparing", "scoring", "training")] == [
        (0.0, "waits for a run"), (0.0, "reads its episodes"), (0.0, "judges its hours"), (0.0, "prepares iteration 1 of 3")
    ]  # fmt: skip
    converting = settings.home / "models" / f".{DIRECTORY}-x1"
    converting.mkdir(parents=True)
    assert shown("training") == (0.0, "converts the weights of its base model, once")


def test_an_empty_database_has_a_status(database: Database, settings: Settings) -> None:
    with database.connect() as connection:
        found = status_document(connection, settings.model_copy(update={"train_rl_local": False}), NOW)
    came = found.automation.data_collection
    assert (came.last24h, came.last7d, came.newest_at, came.newest_age_hours) == (0, 0, None, None)
    assert (found.progress, found.rollout, found.lineage, found.alerts, found.status) == (None, None, [], [], "degraded")
    health = found.automation.health
    assert (health.daemon, health.trainer, health.judge) == (False, False, True)
    assert "`babylon-rl dev` starts it" in health.details["daemon"] and "TRAIN_RL_LOCAL" in health.details["trainer"]


def test_a_silent_daemon_and_a_silent_training_are_said(busy: str, connection: Any, settings: Settings) -> None:
    connection.execute("DELETE FROM babylon_rl.judge_pending")
    assert status_document(connection, settings, NOW).status == "healthy"
    later = status_document(connection, settings, NOW + HOUR)
    health = later.automation.health
    assert (later.status, health.daemon, health.trainer) == ("degraded", False, False)
    assert "silent since 2025-10-30 11:50 UTC" in health.details["trainer"]


@pytest.mark.slow
def test_each_part_of_the_health_can_be_false_and_says_why(
    busy: str, connection: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"wandb_api_key": SecretStr("secret"), "trainer": "dry"})

    def health(name: str, at: datetime = NOW, **changed: Any) -> tuple[bool, str]:
        found = status_document(connection, settings.model_copy(update=changed), at).automation.health
        return getattr(found, name), found.details[name]

    assert health("wandb") == (True, "project babylon-rl-training") and health("wandb", wandb_mode="offline")[0]
    assert health("wandb", wandb_mode="disabled") == (False, "Not sent to Weights & Biases: WANDB_MODE is disabled.")
    assert not health("wandb", wandb_api_key=None)[0]
    note_tracking_refusal(connection, "batch-v1.0.1", "Not sent to Weights & Biases: 401.")
    assert health("wandb") == (False, "Not sent to Weights & Biases: 401.")
    assert not health("judge")[0] and not health("daemon", NOW + HOUR)[0]
    assert not health("trainer", trainer=None, wandb_api_key=None, train_rl_local=False)[0]
    with monkeypatch.context() as little:
        little.setitem(TRAINING_GB, "dry", 1e9)
        works, words = health("storage")
        assert not works and words.endswith(", and a training needs about 1e+09 GB")
    attempt = claim_batch(connection, busy, NOW)
    assert attempt is not None
    note_waiting(connection, busy, attempt, "The service does not answer.")
    assert health("trainer") == (False, f"dry, from dry; {busy} waits: The service does not answer.")
    attempt = claim_batch(connection, busy, NOW)
    assert attempt is not None
    advance_batch(connection, busy, attempt, PUBLISH, NOW)
    note_waiting(connection, busy, attempt, "The bucket is gone.")
    assert health("storage") == (False, f"{busy} waits for its upload: The bucket is gone.") and health("trainer")[0]
    fail_batch(connection, busy, "No token trains.", NOW)
    works, words = health("trainer")
    assert not works and words.startswith(f"dry, from dry; {busy} failed: No token trains. Automation tries again at ")
    assert health("storage")[0] and health("trainer", NOW + 2 * DAY)[0]


def test_hours_that_were_not_read_are_counted_by_their_rows(connection: Any, settings: Settings) -> None:
    before = status_document(connection, settings, NOW).automation.data_collection
    connection.execute("DELETE FROM babylon_rl.windows")
    after = status_document(connection, settings, NOW).automation.data_collection
    (unnamed,) = connection.execute(
        'SELECT count(*) FROM trajectories WHERE "windowId" IS NULL AND "startTime" > \'2025-10-29T13:00\''
    ).fetchone()
    assert after.last24h == before.last24h - unnamed > 0


def test_kept_counts_are_taken_while_nothing_is_written(
    connection: Any, settings: Settings, read_sample: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = to_builtins(status_document(connection, settings, NOW).readiness)
    assert exact["countedAt"] is None
    with read_sample.connect(autocommit=True) as other:
        counted = keep_counts(other, settings, NOW)
        assert counted.startswith(f"{exact['stats']['totalTrajectories']} trajectories could train; counted in ")
        other.execute("SELECT pg_stat_force_next_flush()")
        assert keep_counts(other, settings, NOW + MINUTE) == "Nothing was written."
        assert to_builtins(status_document(other, settings, NOW + MINUTE).readiness) == exact | {"countedAt": moment(NOW)}
        # A write is seen at once where counting is quick; where it is not, the kept counts may be 15 minutes old.
        other.execute('DELETE FROM babylon_rl.episodes WHERE "window" = (SELECT max("window") FROM babylon_rl.episodes)')
        other.execute("SELECT pg_stat_force_next_flush()")
        after = status_document(other, settings, NOW + 14 * MINUTE).readiness
        assert after.counted_at is None and after.stats.total_trajectories < exact["stats"]["totalTrajectories"]
        monkeypatch.setattr("babylon_rl.training.readiness.LONG_COUNT_S", 0.0)
        assert status_document(other, settings, NOW + 14 * MINUTE).readiness.counted_at == moment(NOW)
        assert status_document(other, settings, NOW + 16 * MINUTE).readiness.counted_at is None


def test_a_large_table_is_estimated_and_sampled(connection: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_status, "EXACT_UP_TO", 100)
    connection.execute("ANALYZE trajectories")
    (exact,) = connection.execute("SELECT count(*) FROM trajectories").fetchone()
    stats = status_document(connection, settings, NOW).trajectory_stats
    assert stats.counted == "estimated" and stats.count == pytest.approx(exact, rel=0.05) and stats.means.mean_reward is not None


@pytest.mark.parametrize(
    ("runs", "base_s", "slope", "error"),
    [
        ([(100, 10)], 0.0, 6.0, None),
        ([(100, 20), (200, 30)], 600.0, 6.0, pytest.approx(0.2917, abs=1e-4)),
        ([(100, 30), (200, 20)], 1500.0, 0.0, pytest.approx(1.3333, abs=1e-4)),
        ([(100, 10), (200, 30)], 0.0, pytest.approx(8.4), pytest.approx(0.4167, abs=1e-4)),
    ],
)
def test_durations_are_fitted_without_negative_parts(
    connection: Any, runs: list[tuple[int, float]], base_s: float, slope: float, error: float | None
) -> None:
    for number, (trajectories, minutes) in enumerate(runs):
        completed(connection, f"batch-past-{number}", trajectories, minutes)
    batches = [batch for number in range(len(runs)) if (batch := read_batch(connection, f"batch-past-{number}")) is not None]
    assert fit_durations(batches, "dry") == DurationFit(pytest.approx(base_s), slope, len(runs), error)
    assert fit_durations(batches, "cpu") is None


def test_the_command_prints_the_same_document_on_one_screen(
    busy: str, read_sample: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    with psycopg.connect(read_sample.url) as connection:
        connection.execute("DELETE FROM babylon_dagster.daemon_heartbeats")
    for name, value in {"DATABASE_URL": read_sample.url, "BABYLON_RL_HOME": str(tmp_path), "TRAIN_RL_LOCAL": "true"}.items():
        monkeypatch.setenv(name, value)
    assert run(["status", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["progress"]["batchId"] == busy and document["trajectoryStats"]["counted"] == "exact"
    assert run(["status"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 40
    for words in (f"{busy} is training", "v1.0.1 rolling at 10 %", "quality_fell: It is low. Look.", "deployed v1.0.0", "FAIL daemon"):
        assert words in shown
