\set migration 0050_what_trains_and_what_scored
\ir psql/begin.sql
-- Answer groups that teach: an hour of equal scores trains by them. The rules of scores, which a setting may return to.

ALTER TABLE babylon_rl.answer_groups ADD COLUMN "differ" boolean NOT NULL
    GENERATED ALWAYS AS (jsonb_path_exists("answers", 'strict $[*] ? ((@[2] - $[0][2]).abs() > 0.000001)')) STORED;
COMMENT ON COLUMN babylon_rl.answer_groups."differ" IS 'Whether the scores of the answers differ';

ALTER TABLE babylon_rl.group_scores ADD COLUMN "scoredBy" text NOT NULL DEFAULT '';
UPDATE babylon_rl.group_scores SET "scoredBy" = "rulesVersion" WHERE NOT "rulesChanged";
COMMENT ON COLUMN babylon_rl.group_scores."scoredBy" IS 'Rules, settings and judge that made the scores, whatever has changed since. Empty: not known';
\ir psql/end.sql
