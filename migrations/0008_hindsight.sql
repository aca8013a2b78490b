\set migration 0008_hindsight
\ir psql/begin.sql
-- What only became known after an hour: whether its agents' actions were right, and which training texts hold what they must not.

CREATE TABLE babylon_rl.hindsight (
    "window" varchar(50) PRIMARY KEY REFERENCES babylon_rl.windows ("window") ON DELETE CASCADE,
    "actions" integer NOT NULL,
    "known" integer NOT NULL,
    "right" integer NOT NULL,
    "sequences" integer NOT NULL,
    "leaked" integer NOT NULL,
    "dataVersion" text NOT NULL,
    "computedAt" timestamp(3) NOT NULL
);
COMMENT ON COLUMN babylon_rl.hindsight."known" IS 'Actions of which is known whether they were right';
COMMENT ON COLUMN babylon_rl.hindsight."leaked" IS 'Sequences that hold what only became known after the hour; they never train';

CREATE TABLE babylon_rl.action_outcomes (
    "window" varchar(50) NOT NULL REFERENCES babylon_rl.windows ("window") ON DELETE CASCADE,
    "trajectoryId" text NOT NULL,
    "step" integer NOT NULL,
    "agentId" text NOT NULL,
    "actionType" text NOT NULL,
    "executed" boolean NOT NULL,
    "kind" text NOT NULL CHECK ("kind" IN ('prediction', 'stock')),
    "target" text NOT NULL,
    "organizationId" text,
    "marketId" text,
    "side" text CHECK ("side" IN ('YES', 'NO', 'UP', 'DOWN')),
    "outcome" text CHECK ("outcome" IN ('YES', 'NO')),
    "changePercent" double precision,
    "correct" boolean,
    PRIMARY KEY ("window", "trajectoryId", "step")
);
COMMENT ON COLUMN babylon_rl.action_outcomes."step" IS 'Place among the trajectory''s completed steps, from 0';
COMMENT ON COLUMN babylon_rl.action_outcomes."target" IS 'The name by which the action called it; organizationId or marketId is whom it means, NULL for nobody or several';
COMMENT ON COLUMN babylon_rl.action_outcomes."outcome" IS 'The official answer of a prediction, NULL until there is one';
CREATE INDEX action_outcomes_agent ON babylon_rl.action_outcomes ("agentId", "window");

CREATE TABLE babylon_rl.leaks (
    "window" varchar(50) NOT NULL REFERENCES babylon_rl.windows ("window") ON DELETE CASCADE,
    "trajectoryId" text NOT NULL,
    "sequence" integer NOT NULL,
    "kind" text NOT NULL CHECK ("kind" IN ('outcome', 'hidden_answer', 'game_knowledge', 'score')),
    "callId" text NOT NULL,
    "detail" text NOT NULL,
    PRIMARY KEY ("window", "trajectoryId", "sequence", "kind")
);
COMMENT ON COLUMN babylon_rl.leaks."sequence" IS 'Place among the trajectory''s sequences that would train, from 0';
\ir psql/end.sql
