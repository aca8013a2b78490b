\set migration 0006_simulation
\ir psql/begin.sql
-- Hours that spawn-agents wrote, so that it appends after them and never writes a market into a real game's database.
CREATE TABLE babylon_rl.simulated_hours (
    "window" VARCHAR(50) PRIMARY KEY,
    seed BIGINT NOT NULL,
    "ownMarket" BOOLEAN NOT NULL,
    "createdAt" TIMESTAMP(3) NOT NULL
);
\ir psql/end.sql
