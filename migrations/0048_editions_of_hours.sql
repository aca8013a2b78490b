\set migration 0048_editions_of_hours
\ir psql/begin.sql
-- The words of the hours that spawn-agents wrote, so that a game goes on in its own edition.

ALTER TABLE babylon_rl.simulated_hours ADD COLUMN edition VARCHAR(50);
COMMENT ON COLUMN babylon_rl.simulated_hours.edition IS 'Edition of the companies and words of the hour''s market; NULL in a recorded market';
UPDATE babylon_rl.simulated_hours SET edition = 'training' WHERE "ownMarket";
\ir psql/end.sql
