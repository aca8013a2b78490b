\set migration 0047_answer_groups
\ir psql/begin.sql
-- Answers that agents could have given, each replayed for its tick. Nobody played them: nothing counts a row of these tables as played.

ALTER TABLE babylon_rl.simulated_hours ADD COLUMN "source" jsonb;
COMMENT ON COLUMN babylon_rl.simulated_hours."source" IS 'What the hour''s market and its players'' accounts followed from, beside the seed. NULL: played before this column; such an hour cannot be replayed';

CREATE TABLE babylon_rl.replayed_hours (
    "window" varchar(50) PRIMARY KEY REFERENCES babylon_rl.windows ("window") ON DELETE CASCADE,
    "groups" integer NOT NULL,
    "answers" integer NOT NULL,
    "reason" text NOT NULL,
    "sourcesVersion" text NOT NULL,
    "dataVersion" text NOT NULL,
    "computedAt" timestamp(3) NOT NULL
);
COMMENT ON COLUMN babylon_rl.replayed_hours."reason" IS 'Why the hour has no answer group; empty where it has some';
COMMENT ON COLUMN babylon_rl.replayed_hours."sourcesVersion" IS 'Version of the rows, the market and the rules that the groups were made from';

CREATE TABLE babylon_rl.answer_groups (
    "window" varchar(50) NOT NULL REFERENCES babylon_rl.windows ("window") ON DELETE CASCADE,
    "trajectoryId" text NOT NULL,
    "callId" text NOT NULL,
    "modelVersion" text,
    "answers" jsonb NOT NULL,
    PRIMARY KEY ("window", "trajectoryId", "callId")
);
COMMENT ON COLUMN babylon_rl.answer_groups."answers" IS 'Counterfactual: [answer, dollars of its tick, score 0 to 1] of every answer to the prompt of the call, the recorded one among them';
\ir psql/end.sql
