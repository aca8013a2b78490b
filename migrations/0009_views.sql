\set migration 0009_views
\ir psql/begin.sql
-- Views for people with psql: what the tables hold, one line per hour, episode, reason, batch and version.
-- Their columns are snake_case, unlike those of all tables, because a name that needs no quotes can be typed; "window" is a
-- reserved word of SQL, so the hour is window_id, as in the game's trajectories."windowId". Programs read the tables.
-- No view reads a table of the game: it would keep the game's own migrations from changing the columns that it names.

CREATE VIEW babylon_rl.window_summary AS
SELECT w."window" AS window_id, CASE WHEN w."state" NOT IN ('pending', 'quarantined') AND used.rows > 0 THEN 'trained' ELSE w."state" END AS state,
       w."rows" AS rows, w."eligible" AS eligible, w."rows" - w."eligible" AS rejected,
       w."eligible" - used.rows AS new_trainable, w."agents" AS agents, w."episodes" AS episodes, w."usableEpisodes" AS usable_episodes,
       w."avgPnl" AS avg_pnl, w."trainableSequences" AS trainable_sequences,
       (w."messageSources"->>'embedded')::int AS embedded, (w."messageSources"->>'llm_call_logs')::int AS llm_call_logs,
       (w."messageSources"->>'synthetic')::int AS synthetic,
       m."stocks" AS stocks, m."meanChange" AS mean_change, m."volatility" AS volatility, m."predictions" AS predictions,
       g."judge" AS judge, g."mean" AS mean_score, g."spread" AS score_spread, g."stale" AS score_stale,
       h."known" AS actions_judged, h."right" AS actions_right, h."leaked" AS leaked_sequences,
       (w."quality"->>'duplicateRows')::int AS duplicate_rows, (w."quality"->>'skewedRows')::int AS skewed_rows,
       (w."quality"->>'jumpingAgents')::int AS jumping_agents, w."computedAt" AS read_at
FROM babylon_rl.windows w
LEFT JOIN babylon_rl.market_windows m ON m."window" = w."window"
LEFT JOIN babylon_rl.group_scores g ON g."window" = w."window"
LEFT JOIN babylon_rl.hindsight h ON h."window" = w."window"
-- windows."state" and "newTrainable" are what they were when the hour was read; a training uses rows without the hour being read again.
CROSS JOIN LATERAL (
    SELECT count(*)::int AS rows FROM (
        SELECT unnest(e."usedIds") FROM babylon_rl.episodes e WHERE e."window" = w."window"
        UNION
        SELECT i."trajectoryId" FROM babylon_rl.batch_items i
        JOIN babylon_rl.episodes e ON e."window" = i."window" AND e."agentId" = i."agentId" AND i."trajectoryId" = ANY (e."trajectoryIds")
        WHERE i."window" = w."window" AND i."consumed"
    ) used
) used
ORDER BY w."window";
COMMENT ON VIEW babylon_rl.window_summary IS
    'One line per hour (UTC) that holds trajectories, as last read. P&L in dollars, changes in percent; scores 0 to 1, NULL where not judged';

CREATE VIEW babylon_rl.episode_summary AS
SELECT e."window" AS window_id, e."agentId" AS agent_id, cardinality(e."trajectoryIds") AS trajectories, e."steps" AS steps,
       e."startPnl" AS start_pnl, e."endPnl" AS end_pnl, e."windowPnl" AS window_pnl, e."wins" AS wins, e."losses" AS losses,
       e."winRate" AS win_rate, e."trades" AS trades, e."posts" AS posts, e."usable" AS usable,
       e."trainableSequences" AS trainable_sequences, s."score" AS score, s."rank" AS rank, s."advantage" AS advantage,
       g."judge" AS judge, g."stale" AS score_stale, actions.judged AS actions_judged, actions.correct AS actions_right,
       s."reasoning" AS reasoning
FROM babylon_rl.episodes e
LEFT JOIN babylon_rl.group_scores g ON g."window" = e."window"
LEFT JOIN babylon_rl.episode_scores s ON s."window" = e."window" AND s."agentId" = e."agentId"
CROSS JOIN LATERAL (
    SELECT count(a."correct") AS judged, count(*) FILTER (WHERE a."correct") AS correct
    FROM babylon_rl.action_outcomes a WHERE a."window" = e."window" AND a."agentId" = e."agentId"
) actions
ORDER BY e."window", s."rank", e."windowPnl" DESC, e."agentId";
COMMENT ON VIEW babylon_rl.episode_summary IS
    'One line per agent and hour, best first. P&L in dollars; score 0 to 1, rank 1 is the best; NULL where the hour was not judged';

CREATE VIEW babylon_rl.rejection_summary AS
SELECT r."window" AS window_id, r."reason" AS reason, count(*) AS rows, min(r."trajectoryId") AS example_id,
       (array_agg(r."detail" ORDER BY r."trajectoryId"))[1] AS example_detail
FROM babylon_rl.rejections r
GROUP BY r."window", r."reason"
ORDER BY r."window", count(*) DESC, r."reason";
COMMENT ON VIEW babylon_rl.rejection_summary IS 'How many rows of each hour were rejected for which reason, with one of them and its detail';

CREATE VIEW babylon_rl.batch_summary AS
SELECT b."batchId" AS batch_id, b."state" AS state, b."version" AS version, b."baseModel" AS base_model, b."backend" AS backend,
       b."parentVersion" AS parent_version, b."attempt" AS attempt, episodes.windows AS windows, episodes.kept AS episodes,
       episodes.dropped AS dropped_episodes, items.rows AS trajectories, steps.finished AS iterations, steps.loss AS loss,
       steps.tokens AS trainable_tokens, b."createdAt" AS created_at, b."heartbeatAt" AS last_seen_at, l."createdAt" AS registered_at
FROM babylon_rl.batches b
LEFT JOIN babylon_rl.model_lineage l ON l."batchId" = b."batchId"
CROSS JOIN LATERAL (
    SELECT count(DISTINCT e."window") FILTER (WHERE e."dropped" IS NULL) AS windows, count(*) FILTER (WHERE e."dropped" IS NULL) AS kept,
           count(*) FILTER (WHERE e."dropped" IS NOT NULL) AS dropped
    FROM babylon_rl.batch_episodes e WHERE e."batchId" = b."batchId"
) episodes
CROSS JOIN LATERAL (
    SELECT count(*) AS rows FROM babylon_rl.batch_items i WHERE i."batchId" = b."batchId" AND (i."live" OR i."consumed")
) items
CROSS JOIN LATERAL (
    SELECT count(*) AS finished, (array_agg(f."loss" ORDER BY f."iteration" DESC))[1] AS loss, sum(f."trainableTokens") AS tokens
    FROM (
        SELECT DISTINCT ON (s."iteration") s."iteration", s."loss", s."trainableTokens" FROM babylon_rl.training_steps s
        WHERE s."batchId" = b."batchId" AND s."finishedAt" IS NOT NULL ORDER BY s."iteration", s."attempt" DESC
    ) f
) steps
ORDER BY b."createdAt" DESC, b."batchId" DESC;
COMMENT ON VIEW babylon_rl.batch_summary IS
    'One line per batch of this pipeline, newest first, with what is still in it; why one failed stands in public.training_batches';

CREATE VIEW babylon_rl.version_summary AS
SELECT l."version" AS version, l."parentVersion" AS parent_version, l."baseModel" AS base_model, l."backend" AS backend,
       l."batchId" AS batch_id, cardinality(l."windows") AS windows, r."decision" AS decision, r."reason" AS decision_reason,
       l."createdAt" AS created_at, l."checkpointPath" AS checkpoint
FROM babylon_rl.model_lineage l
LEFT JOIN babylon_rl.releases r ON r."batchId" = l."batchId"
ORDER BY l."createdAt" DESC, l."version" DESC;
COMMENT ON VIEW babylon_rl.version_summary IS
    'One line per version that this pipeline trained, newest first, with the gate''s decision; its status stands in public.trained_models';
\ir psql/end.sql
