\set migration 0051_differ_as_printed
\ir psql/begin.sql
-- Postgres prints the path of 0050 without brackets that it needs, so that a copy by pg_dump alone computed another value. This path is
-- printed as it is read.

ALTER TABLE babylon_rl.answer_groups DROP COLUMN "differ";
ALTER TABLE babylon_rl.answer_groups ADD COLUMN "differ" boolean NOT NULL
    GENERATED ALWAYS AS (jsonb_path_exists("answers", 'strict $[*] ? (@[2] > $[0][2] + 0.000001 || @[2] < $[0][2] - 0.000001)')) STORED;
COMMENT ON COLUMN babylon_rl.answer_groups."differ" IS 'Whether the scores of the answers differ';
\ir psql/end.sql
