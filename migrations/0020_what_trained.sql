\set migration 0020_what_trained
\ir psql/begin.sql
-- How often a batch goes through its hours, and what each of its trajectories gave to the training.

ALTER TABLE babylon_rl.batches ADD COLUMN "passes" INTEGER;
COMMENT ON COLUMN babylon_rl.batches."passes" IS 'Passes over its hours, in iterations of their own; NULL: frozen when ITERATIONS walked round the hours, each with EPOCHS passes';
ALTER TABLE babylon_rl.batch_items ADD COLUMN "contribution" TEXT;
ALTER TABLE babylon_rl.batch_items ADD CONSTRAINT batch_items_contribution CHECK ("contribution" IN ('trained', 'baseline'));
COMMENT ON COLUMN babylon_rl.batch_items."contribution" IS 'trained: a token of it has a gradient; baseline: only its episode''s score counts, in the mean of its group; NULL: not known yet';
\ir psql/end.sql
