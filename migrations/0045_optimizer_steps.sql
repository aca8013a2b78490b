\set migration 0045_optimizer_steps
\ir psql/begin.sql
-- What a trainer measured at every optimizer step, for people who compare trainings.

ALTER TABLE babylon_rl.training_steps ADD COLUMN "optimizerSteps" JSONB NOT NULL DEFAULT '[]';
COMMENT ON COLUMN babylon_rl.training_steps."optimizerSteps" IS 'Loss, trainable tokens so far and what the trainer measured at every optimizer step, in order; written while the iteration runs';
\ir psql/end.sql
