\set migration 0043_rules_of_scores
\ir psql/begin.sql
-- What the judge is shown of the market as the graph stored it, and by which rules an hour's scores were made.

ALTER TABLE babylon_rl.market_windows ADD COLUMN "outcomes" text;
COMMENT ON COLUMN babylon_rl.market_windows."outcomes" IS 'The hour''s market as JSON, unrounded: what a judge is shown. NULL: stored before this column; read from the game''s tables until the hour is made again';

ALTER TABLE babylon_rl.group_scores
    ADD COLUMN "rulesVersion" text NOT NULL DEFAULT '',
    ADD COLUMN "rulesChanged" boolean NOT NULL DEFAULT FALSE;
COMMENT ON COLUMN babylon_rl.group_scores."rulesVersion" IS 'Rules, settings and judge with which "sourcesVersion" was made. Empty: not known';
COMMENT ON COLUMN babylon_rl.group_scores."rulesChanged" IS 'A rule, a setting or the judge has changed since: the scores stay until a person has them made anew (score --stale)';

-- The heuristic judges an hour's episodes and nothing else.
UPDATE babylon_rl.group_scores SET "sourcesVersion" = "inputVersion" WHERE "judge" = 'heuristic' AND "sourcesVersion" = '' AND NOT "stale";
\ir psql/end.sql
