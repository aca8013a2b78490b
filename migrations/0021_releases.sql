\set migration 0021_releases
\ir psql/begin.sql
-- Rollouts: which agents get which version, since when, by whom and why. babylon_rl.releases keeps the gate's decisions.

CREATE TABLE babylon_rl.rollouts (
    "rolloutId" BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    "version" TEXT NOT NULL,
    "state" TEXT NOT NULL,
    "strategy" TEXT NOT NULL,
    "percentage" DOUBLE PRECISION NOT NULL,
    "agentIds" TEXT[] NOT NULL DEFAULT '{}',
    "previousVersion" TEXT,
    "createdAt" TIMESTAMP(3) NOT NULL,
    "stepSince" TIMESTAMP(3) NOT NULL,
    "changedAt" TIMESTAMP(3) NOT NULL,
    CONSTRAINT rollouts_state CHECK ("state" IN ('candidate', 'rolling', 'paused', 'released', 'rolled_back', 'superseded')),
    CONSTRAINT rollouts_strategy CHECK ("strategy" IN ('immediate', 'gradual', 'test')),
    CONSTRAINT rollouts_percentage CHECK ("percentage" BETWEEN 0 AND 100)
);
COMMENT ON TABLE babylon_rl.rollouts IS 'One row for each time a version was put in front of agents, or was ready to be';
COMMENT ON COLUMN babylon_rl.rollouts."agentIds" IS 'The listed agents of strategy test; empty otherwise';
COMMENT ON COLUMN babylon_rl.rollouts."previousVersion" IS 'The version deployed when this one began, to which a rollback returns; NULL: the base';
COMMENT ON COLUMN babylon_rl.rollouts."stepSince" IS 'When state or percentage last changed: live data of a step begin here';
CREATE UNIQUE INDEX rollouts_one_on_trial ON babylon_rl.rollouts ((TRUE)) WHERE "state" IN ('rolling', 'paused');
CREATE UNIQUE INDEX rollouts_one_released ON babylon_rl.rollouts ((TRUE)) WHERE "state" = 'released';
CREATE INDEX rollouts_version ON babylon_rl.rollouts ("version");

CREATE TABLE babylon_rl.rollout_events (
    "eventId" BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    "rolloutId" BIGINT NOT NULL REFERENCES babylon_rl.rollouts ("rolloutId"),
    "version" TEXT NOT NULL,
    "fromState" TEXT,
    "toState" TEXT NOT NULL,
    "fromPercentage" DOUBLE PRECISION,
    "toPercentage" DOUBLE PRECISION NOT NULL,
    "who" TEXT NOT NULL,
    "why" TEXT NOT NULL,
    "at" TIMESTAMP(3) NOT NULL
);
COMMENT ON TABLE babylon_rl.rollout_events IS 'Every transition of a rollout, append-only';
CREATE INDEX rollout_events_of_a_rollout ON babylon_rl.rollout_events ("rolloutId", "eventId");

CREATE FUNCTION babylon_rl.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME;
END $$;
CREATE TRIGGER rollout_events_append_only BEFORE UPDATE OR DELETE ON babylon_rl.rollout_events
    FOR EACH ROW EXECUTE FUNCTION babylon_rl.refuse_change();

-- Every gateway process listens on this channel; the message is sent when the transaction commits.
CREATE FUNCTION babylon_rl.notify_releases() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('babylon_rl_releases', TG_TABLE_NAME);
    RETURN NULL;
END $$;
CREATE TRIGGER rollouts_notify AFTER INSERT OR UPDATE OR DELETE ON babylon_rl.rollouts
    FOR EACH STATEMENT EXECUTE FUNCTION babylon_rl.notify_releases();

CREATE TABLE babylon_rl.version_hours (
    "version" TEXT NOT NULL,
    "window" TEXT NOT NULL,
    "calls" INTEGER NOT NULL,
    "agentIds" TEXT[] NOT NULL,
    PRIMARY KEY ("version", "window")
);
COMMENT ON TABLE babylon_rl.version_hours IS 'Recorded calls that a version answered and agents that it answered, by hour; the sums go to trained_models';
\ir psql/end.sql
