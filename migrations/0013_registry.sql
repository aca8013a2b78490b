\set migration 0013_registry
\ir psql/begin.sql
-- Where a version's checkpoint went: uploaded, or deleted here when enough newer ones had come; and where its training can be watched.

ALTER TABLE babylon_rl.model_lineage
    ADD COLUMN "uploadedUrl" TEXT,
    ADD COLUMN "prunedAt" TIMESTAMP(3),
    ADD COLUMN "trackingUrl" TEXT;
COMMENT ON COLUMN babylon_rl.model_lineage."uploadedUrl" IS 'The directory under MODEL_STORAGE_URL that holds the checkpoint';
COMMENT ON COLUMN babylon_rl.model_lineage."prunedAt" IS 'When the directory at checkpointPath was given up; it may lie there until the deletion has ended';
COMMENT ON COLUMN babylon_rl.model_lineage."trackingUrl" IS 'The training at Weights & Biases, or the directory that wandb sync takes';
\ir psql/end.sql
