\set migration 0048_games
\ir psql/begin.sql
-- Games with other prompts and amounts: a stored result says what its orders staked.

ALTER TABLE babylon_rl.benchmark_results ADD COLUMN "stakedUsd" DOUBLE PRECISION NOT NULL DEFAULT 0;
COMMENT ON COLUMN babylon_rl.benchmark_results."stakedUsd" IS 'Sum of the stakes of the orders that opened positions, in dollars times leverage; divided by predictions it is the mean stake. 0 in rows from before it was kept';
\ir psql/end.sql
