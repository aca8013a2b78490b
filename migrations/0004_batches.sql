\set migration 0004_batches
\ir psql/begin.sql
-- Batches, what they froze, the write-ahead record of their trainings, and where every version came from.
-- public.training_batches and public.trained_models hold what the game's monitors read; these hold what they have no column for.

CREATE TABLE babylon_rl.batches (
    "batchId" TEXT PRIMARY KEY,
    "baseModel" TEXT NOT NULL,
    "backend" TEXT NOT NULL,
    "parentVersion" TEXT,
    "version" TEXT NOT NULL,
    "seed" BIGINT NOT NULL,
    "attempt" INTEGER NOT NULL DEFAULT 0,
    "state" TEXT NOT NULL DEFAULT 'pending',
    "settings" JSONB NOT NULL DEFAULT '{}',
    "dropout" JSONB NOT NULL DEFAULT '{}',
    "preflight" JSONB,
    "createdAt" TIMESTAMP(3) NOT NULL,
    "heartbeatAt" TIMESTAMP(3) NOT NULL,
    CONSTRAINT batches_state CHECK ("state" IN ('pending', 'preparing', 'scoring', 'training', 'uploading', 'completed', 'failed'))
);
COMMENT ON COLUMN babylon_rl.batches."baseModel" IS 'The line: versions with the same base model continue from each other';
COMMENT ON COLUMN babylon_rl.batches."attempt" IS 'Fencing token: a run writes only while its attempt is the newest';
COMMENT ON COLUMN babylon_rl.batches."settings" IS 'Field names of Settings that were frozen with the batch';
CREATE INDEX batches_state_index ON babylon_rl.batches ("state", "createdAt");

CREATE TABLE babylon_rl.batch_items (
    "batchId" TEXT NOT NULL REFERENCES babylon_rl.batches ("batchId") ON DELETE CASCADE,
    "window" TEXT NOT NULL,
    "agentId" TEXT NOT NULL,
    "trajectoryId" TEXT NOT NULL,
    "position" INTEGER NOT NULL,
    "live" BOOLEAN NOT NULL DEFAULT TRUE,
    "consumed" BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY ("batchId", "trajectoryId"),
    CONSTRAINT batch_items_end CHECK (NOT ("live" AND "consumed"))
);
COMMENT ON TABLE babylon_rl.batch_items IS 'live: held by a batch that may still train it; consumed: trained; neither: given back';
CREATE UNIQUE INDEX batch_items_one_live_batch ON babylon_rl.batch_items ("trajectoryId") WHERE "live";
CREATE INDEX batch_items_hour ON babylon_rl.batch_items ("window", "agentId");

CREATE TABLE babylon_rl.batch_episodes (
    "batchId" TEXT NOT NULL REFERENCES babylon_rl.batches ("batchId") ON DELETE CASCADE,
    "window" TEXT NOT NULL,
    "agentId" TEXT NOT NULL,
    "trajectories" INTEGER NOT NULL,
    "score" DOUBLE PRECISION,
    "rank" INTEGER,
    "advantage" DOUBLE PRECISION,
    "sequences" INTEGER,
    "dropped" TEXT,
    PRIMARY KEY ("batchId", "window", "agentId")
);
COMMENT ON COLUMN babylon_rl.batch_episodes."dropped" IS 'Why the episode left its batch; NULL while it is in';
CREATE INDEX batch_episodes_hour ON babylon_rl.batch_episodes ("window");

CREATE TABLE babylon_rl.training_steps (
    "batchId" TEXT NOT NULL REFERENCES babylon_rl.batches ("batchId") ON DELETE CASCADE,
    "iteration" INTEGER NOT NULL,
    "attempt" INTEGER NOT NULL,
    "backend" TEXT NOT NULL,
    "stepBefore" INTEGER NOT NULL,
    "windows" TEXT[] NOT NULL,
    "sequences" INTEGER NOT NULL,
    "startedAt" TIMESTAMP(3) NOT NULL,
    "finishedAt" TIMESTAMP(3),
    "checkpointPath" TEXT,
    "loss" DOUBLE PRECISION,
    "trainableTokens" BIGINT,
    "metrics" JSONB,
    PRIMARY KEY ("batchId", "iteration", "attempt")
);
COMMENT ON TABLE babylon_rl.training_steps IS 'Write-ahead: a row is committed before its iteration starts and completed after its checkpoint is on disk';

CREATE TABLE babylon_rl.dropped_episodes (
    "window" TEXT NOT NULL,
    "agentId" TEXT NOT NULL,
    "batchId" TEXT NOT NULL,
    "reason" TEXT NOT NULL,
    "createdAt" TIMESTAMP(3) NOT NULL,
    PRIMARY KEY ("window", "agentId")
);
COMMENT ON TABLE babylon_rl.dropped_episodes IS 'Episodes that no batch takes again: left out by dropout, or found to hold nothing that trains';

CREATE TABLE babylon_rl.model_lineage (
    "version" TEXT PRIMARY KEY,
    "parentVersion" TEXT,
    "baseModel" TEXT NOT NULL,
    "backend" TEXT NOT NULL,
    "batchId" TEXT NOT NULL UNIQUE REFERENCES babylon_rl.batches ("batchId"),
    "checkpointPath" TEXT NOT NULL,
    "manifestSha" TEXT NOT NULL,
    "windows" TEXT[] NOT NULL,
    "metrics" JSONB NOT NULL,
    "createdAt" TIMESTAMP(3) NOT NULL
);
CREATE INDEX model_lineage_line ON babylon_rl.model_lineage ("baseModel");
\ir psql/end.sql
