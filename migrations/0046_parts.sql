\set migration 0046_parts
\ir psql/begin.sql
-- Parts of an hour, each judged by itself: when agents acted and what it brought, the scores of parts, and what a batch fixed of them.

ALTER TABLE babylon_rl.episodes ADD COLUMN "minutes" JSONB NOT NULL DEFAULT '[]';
COMMENT ON COLUMN babylon_rl.episodes."minutes" IS 'Minute of the hour, P&L at its first step and after its last, for each minute in which steps of a trajectory began. Empty: read before this column';

CREATE TABLE babylon_rl.part_scores (
    "window" varchar(50) NOT NULL REFERENCES babylon_rl.group_scores ("window") ON DELETE CASCADE,
    "agentId" text NOT NULL,
    "startMinute" smallint NOT NULL,
    "endMinute" smallint NOT NULL CHECK ("endMinute" > "startMinute" AND "endMinute" <= 60),
    "score" double precision NOT NULL CHECK ("score" BETWEEN 0 AND 1),
    "advantage" double precision NOT NULL,
    PRIMARY KEY ("window", "startMinute", "agentId")
);
COMMENT ON TABLE babylon_rl.part_scores IS 'What the judge said of each agent in each part of an hour in which it acted; without rows the hour was judged as a whole';
COMMENT ON COLUMN babylon_rl.part_scores."advantage" IS '(score - mean of the part) / 0.12';

ALTER TABLE babylon_rl.batch_episodes ADD COLUMN "parts" JSONB NOT NULL DEFAULT '[]';
COMMENT ON COLUMN babylon_rl.batch_episodes."parts" IS 'Scores of the episode''s parts as the batch fixed them, in order of time. Empty: its calls have the episode''s advantage';
\ir psql/end.sql
