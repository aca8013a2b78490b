\set migration 0018_run_heartbeats
\ir psql/begin.sql
-- Which runs of Dagster are alive: the process that holds one renews its row, and a run whose process is gone is reported failed.

CREATE TABLE babylon_rl.run_heartbeats (
    "runId" TEXT PRIMARY KEY,
    "holder" TEXT NOT NULL,
    "seenAt" TIMESTAMP(3) NOT NULL,
    "endedAt" TIMESTAMP(3)
);
COMMENT ON TABLE babylon_rl.run_heartbeats IS 'Runs of Dagster and the processes that hold them, renewed every few seconds by the clock of this server';
COMMENT ON COLUMN babylon_rl.run_heartbeats."holder" IS 'host@boot@namespace/process id/start of the process; empty: a run that has not begun to renew its row';
COMMENT ON COLUMN babylon_rl.run_heartbeats."endedAt" IS 'When the run was reported dead: its process stops if it is alive after all';
\ir psql/end.sql
