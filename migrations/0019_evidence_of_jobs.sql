\set migration 0019_evidence_of_jobs
\ir psql/begin.sql
-- A job counts by the step that the model made since its row was written; what nobody told of its sequences and loss is NULL.

ALTER TABLE babylon_rl.remote_jobs DROP CONSTRAINT remote_jobs_evidence;
ALTER TABLE babylon_rl.remote_jobs ADD CONSTRAINT remote_jobs_evidence CHECK ("state" <> 'trained'
    OR COALESCE("stepAfter" > "stepBefore", FALSE) AND COALESCE("sequences", 1) > 0 AND COALESCE("loss", 0) BETWEEN -1e300 AND 1e300);
COMMENT ON COLUMN babylon_rl.remote_jobs."sequences" IS 'As posted, until the end of the job tells how many trained';
COMMENT ON COLUMN babylon_rl.remote_jobs."trainableTokens" IS 'As posted, until the end of the job tells how many trained';
COMMENT ON COLUMN babylon_rl.remote_jobs."loss" IS 'NULL where nothing tells it: the answer to the post was lost, and the checkpoint is silent';
\ir psql/end.sql
