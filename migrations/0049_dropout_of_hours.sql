\set migration 0049_dropout_of_hours
\ir psql/begin.sql
-- Dropout of an hour that was decided before a paid judge was asked: a batch that takes the hour later drops nobody else.

ALTER TABLE babylon_rl.dropped_episodes ALTER COLUMN "batchId" DROP NOT NULL;
COMMENT ON COLUMN babylon_rl.dropped_episodes."batchId" IS 'The batch that left the episode out; NULL where that was decided before the hour was judged';

CREATE TABLE babylon_rl.dropout_decisions (
    "window" TEXT PRIMARY KEY,
    "rate" DOUBLE PRECISION NOT NULL,
    "freezable" INTEGER NOT NULL,
    "decidedAt" TIMESTAMP(3) NOT NULL
);
COMMENT ON TABLE babylon_rl.dropout_decisions IS 'Hours whose dropout was decided before they were judged, with the rate and the number of freezable trajectories at that time';
\ir psql/end.sql
