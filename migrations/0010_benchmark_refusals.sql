\set migration 0010_benchmark_refusals
\ir psql/begin.sql
-- Orders that the exchange refused: an error of the player's like an answer that cannot be used, counted apart.

ALTER TABLE babylon_rl.benchmark_results
    ADD COLUMN "refused" INTEGER NOT NULL DEFAULT 0,
    ADD CONSTRAINT benchmark_results_refused CHECK ("refused" >= 0 AND "trades" + "refused" + "invalid" <= "decisions");
COMMENT ON COLUMN babylon_rl.benchmark_results."refused" IS 'Orders that the exchange refused (balance, size, closed market); nothing changed by them';
\ir psql/end.sql
