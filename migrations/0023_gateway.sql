\set migration 0023_gateway
\ir psql/begin.sql
-- Clients of the gateway, and one row for each call that was routed. Texts of recorded calls are in llm_call_logs.

CREATE TABLE babylon_rl.client_keys (
    "name" TEXT PRIMARY KEY,
    "sha256" TEXT NOT NULL UNIQUE,
    "requestsPerMinute" INTEGER,
    "tokensPerMinute" INTEGER,
    "createdAt" TIMESTAMP(3) NOT NULL,
    "lastUsedAt" TIMESTAMP(3),
    "revokedAt" TIMESTAMP(3),
    CONSTRAINT client_keys_limits CHECK ("requestsPerMinute" > 0 AND "tokensPerMinute" > 0)
);
COMMENT ON TABLE babylon_rl.client_keys IS 'Bearer keys of clients; the key itself is stored nowhere';
COMMENT ON COLUMN babylon_rl.client_keys."sha256" IS 'SHA-256 of the key, as hexadecimal digits';

-- Every gateway process listens on this channel. lastUsedAt alone is no news.
CREATE FUNCTION babylon_rl.notify_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('babylon_rl_keys', '');
    RETURN NULL;
END $$;
CREATE TRIGGER client_keys_notify AFTER INSERT OR DELETE OR UPDATE OF "sha256", "requestsPerMinute", "tokensPerMinute", "revokedAt"
    ON babylon_rl.client_keys FOR EACH STATEMENT EXECUTE FUNCTION babylon_rl.notify_keys();

CREATE TABLE babylon_rl.gateway_calls (
    "callId" TEXT PRIMARY KEY,
    "at" TIMESTAMP(3) NOT NULL,
    "agentId" TEXT,
    "keyName" TEXT,
    "chosenVersion" TEXT,
    "version" TEXT,
    "arm" TEXT NOT NULL,
    "fallback" TEXT,
    "status" INTEGER NOT NULL,
    "latencyMs" DOUBLE PRECISION NOT NULL,
    "firstTokenMs" DOUBLE PRECISION,
    "promptTokens" INTEGER,
    "completionTokens" INTEGER
);
COMMENT ON TABLE babylon_rl.gateway_calls IS 'One row for each call that the gateway routed, recorded or not';
COMMENT ON COLUMN babylon_rl.gateway_calls."callId" IS 'Also llm_call_logs.callId, where the call was recorded';
COMMENT ON COLUMN babylon_rl.gateway_calls."chosenVersion" IS 'The version that routing chose; NULL: the base';
COMMENT ON COLUMN babylon_rl.gateway_calls."version" IS 'The version that answered: not the chosen one after a fallback; NULL: the base';
COMMENT ON COLUMN babylon_rl.gateway_calls."fallback" IS 'Why the base answered instead: timeout, rate_limited, server_error, ...';
COMMENT ON COLUMN babylon_rl.gateway_calls."status" IS 'HTTP status; 499: the client left; 502 and 504 also for streams that broke';
CREATE INDEX gateway_calls_by_version ON babylon_rl.gateway_calls ("chosenVersion", "at");
CREATE INDEX gateway_calls_by_agent ON babylon_rl.gateway_calls ("agentId", "at");
\ir psql/end.sql
