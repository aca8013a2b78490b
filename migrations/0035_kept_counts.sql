\set migration 0035_kept_counts
\ir psql/begin.sql
-- Counts of what could train, kept by automation so that a look at the status need not count a large table.

CREATE TABLE babylon_rl.kept_counts (
    "one" BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK ("one"),
    "mark" TEXT NOT NULL,
    "episodes" INTEGER NOT NULL,
    "windows" JSONB NOT NULL,
    "notTrainable" JSONB NOT NULL,
    "seconds" DOUBLE PRECISION NOT NULL,
    "countedAt" TIMESTAMP(3) NOT NULL
);
COMMENT ON COLUMN babylon_rl.kept_counts."mark" IS 'Watermark of the tables counted, and of the settings: equal marks, equal counts';
COMMENT ON COLUMN babylon_rl.kept_counts."windows" IS 'Freezable trajectories by window';
COMMENT ON COLUMN babylon_rl.kept_counts."notTrainable" IS 'Other new trajectories of hours that were read, by reason';
COMMENT ON COLUMN babylon_rl.kept_counts."seconds" IS 'What counting took';
\ir psql/end.sql
