\set migration 0017_judge_gain
\ir psql/begin.sql
-- What text that speaks to a judge was worth: a flagged group is judged once more with the flagged passages masked.

ALTER TABLE babylon_rl.episode_scores ADD COLUMN "gain" double precision;
COMMENT ON COLUMN babylon_rl.episode_scores."gain" IS 'Score as shown less score with the group''s flagged passages masked; NULL where nothing was masked';
COMMENT ON COLUMN babylon_rl.episode_scores."flags" IS 'What in the agent''s name, in its text or in what it was served speaks to a judge';

-- Hours that were judged with flags before are compared with what would be asked now: they are judged again unless nothing of them is masked.
UPDATE babylon_rl.group_scores held SET "sourcesVersion" = ''
WHERE EXISTS (SELECT FROM babylon_rl.episode_scores one WHERE one."window" = held."window" AND cardinality(one."flags") > 0);
\ir psql/end.sql
