\set migration 0003_scores
\ir psql/begin.sql
-- What the judge said of each hour's group: the whole, and every episode in it.

CREATE TABLE babylon_rl.group_scores (
    "window" varchar(50) PRIMARY KEY,
    "judge" text NOT NULL,
    "judgeVersion" text NOT NULL,
    "groupSize" integer NOT NULL,
    "mean" double precision NOT NULL,
    "spread" double precision NOT NULL,
    "disagreement" double precision NOT NULL,
    "inputVersion" text NOT NULL,
    "dataVersion" text NOT NULL,
    "stale" boolean NOT NULL DEFAULT FALSE,
    "judgedAt" timestamp(3) NOT NULL
);

CREATE TABLE babylon_rl.episode_scores (
    "window" varchar(50) NOT NULL REFERENCES babylon_rl.group_scores ("window") ON DELETE CASCADE,
    "agentId" text NOT NULL,
    "score" double precision NOT NULL CHECK ("score" BETWEEN 0 AND 1),
    "rank" integer NOT NULL,
    "advantage" double precision NOT NULL,
    "disagreement" double precision NOT NULL,
    "reasoning" text NOT NULL,
    PRIMARY KEY ("window", "agentId")
);
\ir psql/end.sql
