-- How often an hour's judge was asked without an answer: each further pause is longer.

ALTER TABLE babylon_rl.judge_pending ADD COLUMN "asked" INTEGER NOT NULL DEFAULT 1;
COMMENT ON COLUMN babylon_rl.judge_pending."asked" IS 'Runs that found the hour pending for this judge, in a row';
