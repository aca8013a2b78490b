\set migration 0028_admin_page
\ir psql/begin.sql
-- For the admin page: the losses of an iteration while it runs, and the newest hours of an agent.

ALTER TABLE babylon_rl.training_steps ADD COLUMN "losses" double precision[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN babylon_rl.training_steps."losses" IS 'Loss of every optimizer step so far, in order; written while the iteration runs';
CREATE INDEX "episodes_agent" ON babylon_rl.episodes ("agentId", "window" DESC);
\ir psql/end.sql
