\set migration 0011_judge
\ir psql/begin.sql
-- What a language model was asked and answered, what it said of each group in every order, and the groups that have no score and why.

CREATE TABLE babylon_rl.judge_secret (
    "one" boolean PRIMARY KEY DEFAULT TRUE CHECK ("one"),
    "secret" bytea NOT NULL CHECK (octet_length("secret") = 32),
    "createdAt" timestamp(3) NOT NULL
);
COMMENT ON TABLE babylon_rl.judge_secret IS 'Opaque ids, nonces and orders follow from it and the content, so the same content is the same request';

CREATE TABLE babylon_rl.judge_requests (
    "id" bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    "key" text NOT NULL,
    "retired" boolean NOT NULL DEFAULT FALSE,
    "window" varchar(50) NOT NULL,
    "judge" text NOT NULL,
    "rubricVersion" text NOT NULL,
    "order" integer NOT NULL,
    "part" integer NOT NULL,
    "attempt" integer NOT NULL,
    "ids" jsonb NOT NULL,
    "answer" text NOT NULL,
    "faults" text[] NOT NULL,
    "scores" jsonb,
    "promptTokens" integer,
    "completionTokens" integer,
    "usd" double precision,
    "latencySeconds" double precision NOT NULL,
    "tries" integer NOT NULL,
    "askedAt" timestamp(3) NOT NULL
);
COMMENT ON TABLE babylon_rl.judge_requests IS 'One row per answer of a language model that judges, written as it arrives; the cache, and what was paid';
COMMENT ON COLUMN babylon_rl.judge_requests."key" IS 'Hash of the content, the model, the rubric''s version, the order, the part and the attempt';
COMMENT ON COLUMN babylon_rl.judge_requests."retired" IS 'Paid for, but no longer taken for an answer';
COMMENT ON COLUMN babylon_rl.judge_requests."attempt" IS '0 the request, 1, 3, ... its repairs, 2, 4, ... asked anew';
COMMENT ON COLUMN babylon_rl.judge_requests."ids" IS '[[id shown, agent id], ...] in the order shown';
COMMENT ON COLUMN babylon_rl.judge_requests."faults" IS 'Why the answer could not be used; empty where it could';
COMMENT ON COLUMN babylon_rl.judge_requests."scores" IS '{agent id: score}, NULL where the answer could not be used';
COMMENT ON COLUMN babylon_rl.judge_requests."usd" IS 'NULL where the price is unknown';
COMMENT ON COLUMN babylon_rl.judge_requests."tries" IS 'Times that it was sent until it was answered';
CREATE UNIQUE INDEX judge_requests_answer ON babylon_rl.judge_requests ("key") WHERE NOT "retired";
CREATE INDEX judge_requests_hour ON babylon_rl.judge_requests ("window");
CREATE INDEX judge_requests_day ON babylon_rl.judge_requests ("askedAt");

CREATE TABLE babylon_rl.judge_quarantine (
    "window" varchar(50) PRIMARY KEY,
    "judge" text NOT NULL,
    "judgeVersion" text NOT NULL,
    "reason" text NOT NULL,
    "transcript" jsonb NOT NULL,
    "at" timestamp(3) NOT NULL
);
COMMENT ON TABLE babylon_rl.judge_quarantine IS 'Groups that the judge could not score: every answer to a request was unusable, as the transcript shows';

CREATE TABLE babylon_rl.judge_pending (
    "window" varchar(50) PRIMARY KEY,
    "judge" text NOT NULL,
    "reason" text NOT NULL,
    "at" timestamp(3) NOT NULL
);
COMMENT ON TABLE babylon_rl.judge_pending IS 'Groups that wait: the judge did not answer, or the budget is spent; the next run judges them';

CREATE TABLE babylon_rl.judge_leases (
    "window" varchar(50) PRIMARY KEY,
    "holder" text NOT NULL,
    "seenAt" timestamp(3) NOT NULL
);
COMMENT ON TABLE babylon_rl.judge_leases IS 'Who is judging an hour now, so that two do not pay for it; a holder that is not seen has lost it';

ALTER TABLE babylon_rl.group_scores
    ADD COLUMN "shownVersion" text NOT NULL DEFAULT '',
    ADD COLUMN "sourcesVersion" text NOT NULL DEFAULT '',
    ADD COLUMN "judgement" jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN babylon_rl.group_scores."shownVersion" IS 'Hash of what a language model was shown; empty for the heuristic';
COMMENT ON COLUMN babylon_rl.group_scores."sourcesVersion" IS 'Hash of all that what was shown is made of; while it stands, the scores do';
COMMENT ON COLUMN babylon_rl.group_scores."judgement" IS 'How a language model came to the scores: orders, agreement between them, requests, tokens, dollars, seconds';

ALTER TABLE babylon_rl.episode_scores
    ADD COLUMN "orderScores" double precision[] NOT NULL DEFAULT '{}',
    ADD COLUMN "places" double precision[] NOT NULL DEFAULT '{}',
    ADD COLUMN "shownTokens" integer NOT NULL DEFAULT 0,
    ADD COLUMN "flags" text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN babylon_rl.episode_scores."orderScores" IS 'The score in each order in which the group was shown';
COMMENT ON COLUMN babylon_rl.episode_scores."places" IS 'Where the episode stood in each order: 0 first, 1 last';
COMMENT ON COLUMN babylon_rl.episode_scores."flags" IS 'What in the agent''s text speaks to a judge';
\ir psql/end.sql
