\set migration 0027_alerts
\ir psql/begin.sql
-- Alerts: causes that a person should know, each sent once.

CREATE TABLE babylon_rl.alerts (
    "cause" TEXT PRIMARY KEY,
    "kind" TEXT NOT NULL,
    "says" TEXT NOT NULL,
    "advice" TEXT NOT NULL,
    "firstSeenAt" TIMESTAMP(3) NOT NULL,
    "lastSeenAt" TIMESTAMP(3) NOT NULL,
    "dueAt" TIMESTAMP(3) NOT NULL,
    "sentAt" TIMESTAMP(3),
    "resolvedAt" TIMESTAMP(3),
    "channels" TEXT[] NOT NULL DEFAULT '{}',
    "tries" INTEGER NOT NULL DEFAULT 0,
    "error" TEXT
);
COMMENT ON COLUMN babylon_rl.alerts."cause" IS 'kind, and what it is about: training_failed/batch-1761750000000';
COMMENT ON COLUMN babylon_rl.alerts."dueAt" IS 'A cause that ends before is never sent';
COMMENT ON COLUMN babylon_rl.alerts."sentAt" IS 'When every channel that is set had taken it';
COMMENT ON COLUMN babylon_rl.alerts."resolvedAt" IS 'When the cause was first not seen any more; NULL while it lasts';
COMMENT ON COLUMN babylon_rl.alerts."channels" IS 'Channels that have taken it';
COMMENT ON COLUMN babylon_rl.alerts."error" IS 'Why the last try did not reach every channel; NULL after one that did';
\ir psql/end.sql
