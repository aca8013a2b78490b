\set migration 0044_agents_of_keys
\ir psql/begin.sql
-- A key may be bound to agents: it speaks for them alone.

ALTER TABLE babylon_rl.client_keys ADD COLUMN "agents" TEXT[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN babylon_rl.client_keys."agents" IS 'Ids of the agents that the key speaks for, * standing for any characters; empty: all';

DROP TRIGGER client_keys_notify ON babylon_rl.client_keys;
CREATE TRIGGER client_keys_notify AFTER INSERT OR DELETE OR UPDATE OF "sha256", "requestsPerMinute", "tokensPerMinute", "revokedAt", "agents"
    ON babylon_rl.client_keys FOR EACH STATEMENT EXECUTE FUNCTION babylon_rl.notify_keys();
\ir psql/end.sql
