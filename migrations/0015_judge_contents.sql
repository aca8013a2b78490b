\set migration 0015_judge_contents
\ir psql/begin.sql
-- What an answer was about, and what a quarantine rests on: opinions are compared on the same content, and a quarantine ends with its cause.

ALTER TABLE babylon_rl.judge_requests ADD COLUMN "shownVersion" text NOT NULL DEFAULT '';
COMMENT ON COLUMN babylon_rl.judge_requests."shownVersion" IS 'Hash of what the group was shown from; that of its scores where it is as it was judged';

-- An answer that came after the scores was about what these were made from: the second judge is asked about nothing else.
UPDATE babylon_rl.judge_requests asked SET "shownVersion" = held."shownVersion"
FROM babylon_rl.group_scores held WHERE held."window" = asked."window" AND asked."askedAt" >= held."judgedAt";

ALTER TABLE babylon_rl.judge_quarantine ADD COLUMN "sourcesVersion" text NOT NULL DEFAULT '';
COMMENT ON COLUMN babylon_rl.judge_quarantine."sourcesVersion" IS 'Hash of all that the request was made of, settings included; the group is asked about anew when it differs. Empty: not known';

CREATE TABLE babylon_rl.judge_reservations (
    "holder" text PRIMARY KEY,
    "usd" double precision NOT NULL,
    "seenAt" timestamp(3) NOT NULL
);
COMMENT ON TABLE babylon_rl.judge_reservations IS 'What the requests that a run has under way are expected to cost: all runs share JUDGE_BUDGET_USD';

COMMENT ON COLUMN babylon_rl.remote_jobs."state" IS 'posting: the post may have been accepted; running: its id is known; refused: it trained nothing; lost: nobody saw it train; expired: a person gave it up';
\ir psql/end.sql
