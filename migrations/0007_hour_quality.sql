\set migration 0007_hour_quality
\ir psql/begin.sql
-- What of an hour's eligible rows a person should look at: short prompts, duplicates, clocks, impossible P&L, other lengths.

ALTER TABLE babylon_rl.windows ADD COLUMN "quality" jsonb NOT NULL DEFAULT '{}';
\ir psql/end.sql
