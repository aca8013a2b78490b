\set migration 0041_observed_versions
\ir psql/begin.sql
-- Versions of hours that were reported to a Dagster storage, written after the report: a crash in between only reports again.
CREATE TABLE babylon_rl.observed_versions (
    "storage" text NOT NULL,
    "source" text NOT NULL,
    "window" varchar(50) NOT NULL,
    "version" text NOT NULL,
    PRIMARY KEY ("storage", "source", "window")
);
COMMENT ON COLUMN babylon_rl.observed_versions."storage" IS 'Id that the Dagster storage keeps as a dynamic partition of its own';
COMMENT ON COLUMN babylon_rl.observed_versions."source" IS 'raw_trajectories or market_data';
COMMENT ON COLUMN babylon_rl.observed_versions."version" IS 'The data version that was reported last';
\ir psql/end.sql
