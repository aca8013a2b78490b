\set migration 0039_pauses_and_refusals
\ir psql/begin.sql
-- How often an hour's judge was asked without an answer, as each further pause is longer; refusals of Weights & Biases.

ALTER TABLE babylon_rl.judge_pending ADD COLUMN "asked" INTEGER NOT NULL DEFAULT 1;
COMMENT ON COLUMN babylon_rl.judge_pending."asked" IS 'Runs that found the hour pending for this judge, in a row';

-- Why a version's training is not in Weights & Biases although it was to be sent there.
ALTER TABLE babylon_rl.model_lineage ADD COLUMN "trackingRefusal" TEXT;
\ir psql/end.sql
