\set migration 0022_ab_tests
\ir psql/begin.sql
-- A/B tests: versions compared on live agents, each agent in one arm for as long as the test runs.

CREATE TABLE babylon_rl.ab_tests (
    "name" TEXT PRIMARY KEY,
    "arms" TEXT[] NOT NULL,
    "shares" DOUBLE PRECISION[] NOT NULL,
    "expectedEffect" DOUBLE PRECISION NOT NULL,
    "state" TEXT NOT NULL DEFAULT 'running',
    "startedAt" TIMESTAMP(3) NOT NULL,
    "startedBy" TEXT NOT NULL,
    "startedWhy" TEXT NOT NULL,
    "stoppedAt" TIMESTAMP(3),
    "stoppedBy" TEXT,
    "stoppedWhy" TEXT,
    CONSTRAINT ab_tests_state CHECK ("state" IN ('running', 'stopped')),
    CONSTRAINT ab_tests_arms CHECK (cardinality("arms") >= 2 AND cardinality("arms") = cardinality("shares")),
    CONSTRAINT ab_tests_effect CHECK ("expectedEffect" > 0)
);
COMMENT ON COLUMN babylon_rl.ab_tests."arms" IS 'Versions, or base; the first is the one that the others are compared with';
COMMENT ON COLUMN babylon_rl.ab_tests."shares" IS 'Percent of all agents in each arm; agents beyond their sum follow the rollouts';
COMMENT ON COLUMN babylon_rl.ab_tests."expectedEffect" IS 'Dollars an agent-hour about which the comparison is sharpest, fixed before the first look';
CREATE UNIQUE INDEX ab_tests_one_running ON babylon_rl.ab_tests ((TRUE)) WHERE "state" = 'running';
CREATE TRIGGER ab_tests_notify AFTER INSERT OR UPDATE OR DELETE ON babylon_rl.ab_tests
    FOR EACH STATEMENT EXECUTE FUNCTION babylon_rl.notify_releases();
\ir psql/end.sql
