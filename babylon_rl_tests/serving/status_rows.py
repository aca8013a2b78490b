"""Parts of the status and training-data documents, looked up with plain SQL instead of the pipeline's own functions."""

from datetime import datetime
from typing import Any

from babylon_rl.store.database import Database
from babylon_rl_tests.serving.gateways import rows

JOBS = """
    SELECT b."batchId", b."state" AS "status", b."version" AS "modelVersion", b."parentVersion" AS "parent", b."baseModel", b."backend",
        (SELECT count(*) FROM babylon_rl.batch_items i WHERE i."batchId" = b."batchId" AND (i."live" OR i."consumed")) AS "trajectories",
        ARRAY(SELECT DISTINCT e."window" FROM babylon_rl.batch_episodes e WHERE e."batchId" = b."batchId" AND e."dropped" IS NULL
              ORDER BY 1 DESC) AS "windows",
        p."trainingLoss", b."seed", b."attempt", b."dropout", b."createdAt", p."startedAt", p."completedAt", b."heartbeatAt", p."error",
        FALSE AS "foreign"
    FROM babylon_rl.batches b JOIN training_batches p USING ("batchId") ORDER BY b."createdAt" DESC, b."batchId" DESC LIMIT 10
"""
MODELS = """
    SELECT m."modelId", m.version, m.status, m."baseModel", l."parentVersion" AS "parent", m."trainingBatch", m."storagePath",
        m."deployedAt", m."createdAt", m."benchmarkScore", m.accuracy, m."avgReward", m."evalMetrics",
        COALESCE(l."windows", '{}') AS "windows", l."backend", l."checkpointPath" AS "checkpoint", l."prunedAt", l."uploadedUrl",
        l."trackingUrl", m."wandbArtifactId", l."version" IS NULL AS "foreign"
    FROM trained_models m LEFT JOIN babylon_rl.model_lineage l ON l."batchId" = m."trainingBatch"
    ORDER BY string_to_array(trim('v' FROM m.version), '.')::int[] DESC
"""
LINEAGE = """
    SELECT m.version, l."parentVersion" AS "parent", m."trainingBatch" AS "batchId",
        m.status || CASE WHEN l."version" IS NULL THEN ' (foreign)' ELSE '' END AS "status", r."decision", r."reference",
        (r."rows" -> 0 ->> 'improvement')::float8 AS "improvement", (r."rows" -> 0 ->> 'improvementLow')::float8 AS "improvementLow",
        (r."rows" -> 0 ->> 'improvementHigh')::float8 AS "improvementHigh", m."createdAt", m."deployedAt"
    FROM trained_models m LEFT JOIN babylon_rl.model_lineage l ON l."batchId" = m."trainingBatch"
    LEFT JOIN babylon_rl.benchmark_reports r ON r."batchId" = m."trainingBatch"
    ORDER BY string_to_array(trim('v' FROM m.version), '.')::int[] DESC
"""
# New rows of the hours of the look-back, each with the reason why it cannot train now.
NEW_ROWS = """
    SELECT e."window", CASE
            WHEN EXISTS (SELECT FROM babylon_rl.batch_items i WHERE i."live" AND i."trajectoryId" = ANY(e."trajectoryIds"))
                THEN 'in a live batch'
            WHEN NOT e."usable" THEN 'in short episodes'
            WHEN e."trainableSequences" = 0 AND COALESCE((e."messageSources" ->> 'synthetic')::int, 0) > 0 THEN 'synthetic'
            WHEN e."trainableSequences" = 0 THEN 'without a call that trains'
            WHEN (SELECT count(*) FROM babylon_rl.episodes o WHERE o."window" = e."window" AND o."usable") < 5 THEN 'in thin hours'
            WHEN EXISTS (SELECT FROM babylon_rl.judge_quarantine q WHERE q."window" = e."window") THEN 'in quarantined hours'
        END AS "reason",
        EXISTS (SELECT FROM babylon_rl.group_scores g WHERE g."window" = e."window") AS "scored", count(*)::int AS "number"
    FROM babylon_rl.episodes e JOIN trajectories t ON t."trajectoryId" = ANY(e."trajectoryIds") AND NOT t."usedInTraining"
    WHERE e."window" > (SELECT to_char(max("window")::timestamp - interval '168 hours', 'YYYY-MM-DD"T"HH24:MI') FROM babylon_rl.windows)
    GROUP BY 1, 2, 3
"""
# The newest 50 rows that were not used, step by step; calls are those of its steps, else those that were logged of it.
QUALITY = """
    WITH newest AS (
        SELECT t."trajectoryId", t."stepsJson"::jsonb AS steps FROM babylon_rl.episodes e
        JOIN trajectories t ON t."trajectoryId" = ANY(e."trajectoryIds") AND NOT t."usedInTraining"
        ORDER BY e."window" DESC, t."startTime" DESC, t."trajectoryId" DESC LIMIT 50
    ), step AS (
        SELECT "trajectoryId", step, COALESCE(jsonb_array_length(step -> 'llmCalls'), 0) AS calls
        FROM newest, jsonb_array_elements(steps) step
    ), prompt AS (
        SELECT "trajectoryId", length(call ->> 'systemPrompt') > 50 AND length(call ->> 'userPrompt') > 100 AS long
        FROM step, jsonb_array_elements(step -> 'llmCalls') call
        UNION ALL
        SELECT "trajectoryId", length("systemPrompt") > 50 AND length("userPrompt") > 100
        FROM llm_call_logs JOIN newest USING ("trajectoryId")
        WHERE NOT EXISTS (SELECT FROM step WHERE step."trajectoryId" = newest."trajectoryId" AND calls > 0)
    )
    SELECT count(*)::int AS "rows", avg((jsonb_array_length(steps) > 0)::int)::float8 AS "hasSteps",
        avg(((SELECT bool_and(calls > 0) FROM step s WHERE s."trajectoryId" = n."trajectoryId") OR EXISTS (
            SELECT FROM llm_call_logs l WHERE l."trajectoryId" = n."trajectoryId"))::int)::float8 AS "hasCalls",
        avg(COALESCE((SELECT bool_and(long) FROM prompt p WHERE p."trajectoryId" = n."trajectoryId"), FALSE)::int)::float8 AS "longPrompts",
        avg((SELECT bool_and(a -> 'action' ? 'result' OR a -> 'action' ? 'error' OR a -> 'action' ? 'success')
            FROM jsonb_array_elements(steps) a)::int)::float8 AS "hasResults",
        avg((SELECT bool_or(jsonb_array_length(a -> 'providerAccesses') > 0) FROM jsonb_array_elements(steps) a)::int)::float8
            AS "providerAccesses"
    FROM newest n
"""


def looked_up(database: Database, query: str) -> list[dict[str, Any]]:
    """The rows of a query, with times as documents show them."""
    return [{name: shown(value) for name, value in row.items()} for row in rows(database, query)]


def shown(value: Any) -> Any:
    """A value as JSON has it: a time with milliseconds and Z."""
    return f"{value:%Y-%m-%dT%H:%M:%S}.{value.microsecond // 1000:03}Z" if isinstance(value, datetime) else value


def readiness_figures(database: Database) -> dict[str, Any]:
    """``stats``, ``notTrainable`` and ``quality`` of a readiness document; a group needs ten trajectories."""
    counted, (quality,) = rows(database, NEW_ROWS), rows(database, QUALITY)
    free = {row["window"]: row["number"] for row in counted if row["reason"] is None}
    barred: dict[str, int] = {}
    for row in counted:
        if row["reason"] is not None:
            barred[row["reason"]] = barred.get(row["reason"], 0) + row["number"]
    checks = [quality[name] for name in ("hasSteps", "hasCalls", "longPrompts", "hasResults")]
    stats = {
        "totalTrajectories": sum(free.values()),
        "unscoredTrajectories": sum(row["number"] for row in counted if row["reason"] is None and not row["scored"]),
        "scenarioGroups": sum(number >= 10 for number in free.values()),
        "dataQuality": round(sum(checks) / 4, 6),
    }
    return {"stats": stats, "notTrainable": barred, "quality": dict(quality)}
