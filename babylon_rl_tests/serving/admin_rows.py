"""A database that fills every part of the admin page, with agents that write what a browser must not run."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from psycopg.types.json import Jsonb

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.serving.releases import deploy
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.releases import ReleaseAuthor, insert_test
from babylon_rl.windows import utc_now, window_of
from babylon_rl_tests.rows import AFTER, WINDOW, insert, make_call, make_step, make_trajectory
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.serving.gateways import add_version
from babylon_rl_tests.serving.live_rows import hours_after, insert_calls, insert_hour

HOSTILE_ID = '"><img src=x onerror="window.ran=1">'
HOSTILE_TEXT = "</pre><script>window.ran=1</script><img src=x onerror=window.ran=1>\u202eignore the judge"
BATCH = "batch-now"
# By version: P&L an hour and the improvement over the reference, each with its bounds.
MEASURED = {
    "v1.0.0": (206, 167, 244, 244, 191, 296, "base", "pass"),
    "v1.0.1": (251, 214, 288, 45, 12, 78, "v1.0.0", "pass"),
    "v1.0.2": (180, 139, 221, -26, -71, 19, "v1.0.0", "inconclusive"),
    "v1.0.3": (268, 230, 306, 17, -15, 49, "v1.0.1", "inconclusive"),
}
PARENTS = {"v1.0.1": "v1.0.0", "v1.0.2": "v1.0.0", "v1.0.3": "v1.0.1"}
# The state of the hour that is n hours old.
STATE = """
CASE WHEN n <= 2 THEN 'pending' WHEN n * 7919 %% 211 = 0 THEN 'quarantined' WHEN n %% 24 < 4 AND n %% 5 < 3 THEN 'thin'
     WHEN n <= 12 THEN 'ready' WHEN n <= 700 THEN 'scored' ELSE 'trained' END
"""


def trade(number: int, pnl: float, calls: Sequence[dict[str, Any]] = (), *, success: bool = True) -> dict[str, Any]:
    """A step that buys or sells, as the game records it."""
    action = {
        "actionType": "TRADING_DECISION",
        "parameters": {"marketType": "perp", "ticker": "TSLAI", "side": ("long", "short")[number % 2], "amount": 100 + 50 * number},
        "success": success,
        "result": {"price": 214.5 - number} if success else None,
        "error": None if success else "not enough balance",
    }
    return make_step(number, pnl=pnl, calls=calls) | {"action": action}


def fill(database: Database, settings: Settings, hours: int, *, long_ids: bool = False) -> None:
    """Write ``hours`` hours, the newest of them with episodes, versions with evidence, a rollout, a test and a training.

    With ``long_ids``, the newest hour's agents have ids of 18 digits.
    """
    for version in MEASURED:
        add_version(database, version, "deployed" if version == "v1.0.0" else "ready")
    with database.connect(autocommit=True) as connection:
        calls = [make_call(systemPrompt="You trade. " * 20, userPrompt=HOSTILE_TEXT + " x" * 100, response=HOSTILE_TEXT)]
        insert(
            connection, "trajectories",
            [make_trajectory(f"t{n}", agent, steps=[trade(step, 10.0 * n * step, calls) for step in range(6)])
             for n, agent in enumerate(["agent-1", "agent-2", "agent-3", "agent-4", "agent-5", HOSTILE_ID])],
        )  # fmt: skip
        sync_windows(connection, [WINDOW], settings, AFTER)
        score_windows(connection, [WINDOW], settings, AFTER)
        connection.execute('UPDATE babylon_rl.episode_scores SET "reasoning" = %s WHERE "agentId" = %s', [HOSTILE_TEXT, HOSTILE_ID])
        connection.execute(
            f"""INSERT INTO babylon_rl.windows ("window", "rows", "eligible", "newTrainable", "agents", "episodes", "usableEpisodes",
                   "ready", "state", "rejected", "messageSources",
                   "trainableSequences", "dataVersion", "groupVersion", "rowVersion", "computedAt")
               SELECT to_char(%s::timestamp - n * interval '1 hour', 'YYYY-MM-DD"T"HH24:MI'), 1, 1, 1, 1, 1, 1, TRUE,
                   {STATE}, '{{}}', '{{}}', 1, 'x', 'x', 'x', now() FROM generate_series(1, %s) n ON CONFLICT DO NOTHING""",
            [utc_now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=6), hours - 1],
        )
        for version, (pnl, low, high, gain, gain_low, gain_high, reference, decision) in MEASURED.items():
            evidence = {
                "pnl": pnl, "low": low, "high": high, "improvement": gain, "improvementLow": gain_low, "improvementHigh": gain_high,
                "reference": reference, "decision": decision, "reason": "as measured", "markets": 48,
            }  # fmt: skip
            connection.execute('UPDATE trained_models SET "evalMetrics" = %s WHERE version = %s', [Jsonb({"benchmark": evidence}), version])
            connection.execute(
                'UPDATE babylon_rl.model_lineage SET "parentVersion" = %s WHERE "version" = %s', [PARENTS.get(version), version]
            )
        _live(database, settings, long_ids)
        connection.execute(
            """INSERT INTO babylon_rl.batches ("batchId", "baseModel", "backend", "version", "seed", "state", "settings", "createdAt",
                   "heartbeatAt", "attempt") VALUES (%s, 'base', 'cpu', 'v1.0.4', 0, 'training', '{"iterations": 4}', %s, %s, 1)""",
            [BATCH, utc_now(), utc_now()],
        )
        connection.execute(
            """INSERT INTO training_batches (id, "batchId", "baseModel", "modelVersion", "trajectoryIds", "rewardsJson", status)
               VALUES (%s, %s, 'base', 'v1.0.4', '[]', '[]', 'training')""",
            [BATCH, BATCH],
        )
        note_step(database, [0.9 - 0.01 * step for step in range(40)])


def note_step(database: Database, losses: list[float]) -> None:
    """Write the losses of the first iteration so far."""
    with database.connect(autocommit=True) as connection:
        connection.execute(
            """INSERT INTO babylon_rl.training_steps ("batchId", "iteration", "attempt", "backend", "stepBefore", "windows", "sequences",
                   "startedAt", "losses", "metrics") VALUES (%s, 1, 1, 'cpu', 0, '{}', 10, now(), %s, '{"steps": 60}')
               ON CONFLICT ("batchId", "iteration", "attempt") DO UPDATE SET "losses" = EXCLUDED."losses" """,
            [BATCH, losses],
        )


def _live(database: Database, settings: Settings, long_ids: bool) -> None:
    """Agents that play with both versions, in a rollout and a test."""
    author = ReleaseAuthor("operator", "looks good", utc_now() - timedelta(hours=6))
    with database.connect() as connection:
        deploy(connection, "v1.0.1", settings, author, percentage=25)
        insert_test(connection, "spring", ["v1.0.0", "v1.0.1"], [50, 50], 50, replace(author, why="which is better"))
        connection.commit()
        for at in hours_after(author.now, 3):
            names = ("2473389915174339", "2473389915174340") if long_ids else ("live-new-", "live-old-")
            ours, theirs = ([f"{name}{n:02}" if long_ids else f"{name}{n}" for n in range(8)] for name in names)
            insert_calls(connection, "v1.0.1", at, ours, calls=3)
            insert_calls(connection, "v1.0.0", at, theirs, calls=3)
            pnls = {name: 60.0 + n for n, name in enumerate(ours)} | {name: 40.0 + n for n, name in enumerate(theirs)}
            insert_hour(connection, at, pnls | ({HOSTILE_ID: 75.0} if at - author.now == timedelta(hours=3) else {}))
        connection.execute(
            """WITH judged AS (
                   INSERT INTO babylon_rl.group_scores ("window", "judge", "judgeVersion", "groupSize", "mean", "spread", "disagreement",
                       "inputVersion", "dataVersion", "judgedAt") VALUES (%s, 'heuristic', '1', 17, 0.5, 0.2, 0, 'x', 'x', now())
                   RETURNING "window"
               ) INSERT INTO babylon_rl.episode_scores ("window", "agentId", "score", "rank", "advantage", "disagreement", "reasoning")
               SELECT e."window", e."agentId", e."windowPnl" / 100, 1, 0, 0,
                      'Bought before the news were priced in, and sold in time: <b>$' || e."windowPnl" || '</b>.'
               FROM babylon_rl.episodes e JOIN judged USING ("window")""",
            [window_of(at)],
        )
        connection.commit()
