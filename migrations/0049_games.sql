\set migration 0049_games
\ir psql/begin.sql
-- Games with other prompts and amounts: an hour says which one was played in it, and a stored result what its orders staked.

ALTER TABLE babylon_rl.simulated_hours ADD COLUMN "game" TEXT NOT NULL DEFAULT 'one-tick';
COMMENT ON COLUMN babylon_rl.simulated_hours."game" IS 'Game that the agents played: prompt, mandate and amounts of the answers (babylon_rl/market/simulation/games.py)';
ALTER TABLE babylon_rl.benchmark_results ADD COLUMN "stakedUsd" DOUBLE PRECISION NOT NULL DEFAULT 0;
COMMENT ON COLUMN babylon_rl.benchmark_results."stakedUsd" IS 'Sum of the stakes of the orders that opened positions, in dollars times leverage; divided by predictions it is the mean stake. 0 in rows from before it was kept';
\ir psql/end.sql
