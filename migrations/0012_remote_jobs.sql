\set migration 0012_remote_jobs
\ir psql/begin.sql
-- Jobs of training services: a row is committed before a job is posted, and the job's id as soon as it is known.
-- What was posted and is not known to have ended keeps every other job off its model.

CREATE TABLE babylon_rl.remote_jobs (
    "batchId" TEXT NOT NULL REFERENCES babylon_rl.batches ("batchId") ON DELETE CASCADE,
    "iteration" INTEGER NOT NULL,
    "attempt" INTEGER NOT NULL,
    "backend" TEXT NOT NULL,
    "service" TEXT NOT NULL,
    "model" TEXT NOT NULL,
    "stepBefore" INTEGER NOT NULL,
    "state" TEXT NOT NULL DEFAULT 'posting',
    "jobId" TEXT,
    "postedAt" TIMESTAMP(3) NOT NULL,
    "endedAt" TIMESTAMP(3),
    "stepAfter" INTEGER,
    "sequences" INTEGER,
    "trainableTokens" BIGINT,
    "loss" DOUBLE PRECISION,
    "metrics" JSONB NOT NULL DEFAULT '{}',
    "estimatedUsd" DOUBLE PRECISION,
    "error" TEXT,
    "discardedAt" TIMESTAMP(3),
    PRIMARY KEY ("batchId", "iteration", "attempt"),
    CONSTRAINT remote_jobs_state CHECK ("state" IN ('posting', 'running', 'trained', 'failed', 'expired', 'refused', 'lost')),
    CONSTRAINT remote_jobs_running CHECK ("state" <> 'running' OR "jobId" IS NOT NULL),
    CONSTRAINT remote_jobs_evidence CHECK ("state" <> 'trained' OR COALESCE("stepAfter" > "stepBefore", FALSE)
        AND COALESCE("sequences" > 0, FALSE) AND COALESCE("loss" BETWEEN -1e300 AND 1e300, FALSE))
);
COMMENT ON TABLE babylon_rl.remote_jobs IS 'Write-ahead of paid training jobs; attempt counts the posts of one iteration';
COMMENT ON COLUMN babylon_rl.remote_jobs."state" IS 'posting: the post may have been accepted; running: its id is known; refused and lost: it trained nothing; expired: no end within the longest time';
COMMENT ON COLUMN babylon_rl.remote_jobs."discardedAt" IS 'When the step that it made was deleted from the service, because its batch had failed';
CREATE UNIQUE INDEX remote_jobs_one_live_job ON babylon_rl.remote_jobs ("service", "model") WHERE "state" IN ('posting', 'running');
CREATE INDEX remote_jobs_model ON babylon_rl.remote_jobs ("service", "model", "postedAt");
\ir psql/end.sql
