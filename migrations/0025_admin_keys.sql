\set migration 0025_admin_keys
\ir psql/begin.sql
-- An agent's key opens the gateway; only a key made for it opens the admin API, which deploys, trains and uploads.

ALTER TABLE babylon_rl.client_keys ADD COLUMN "admin" BOOLEAN NOT NULL DEFAULT FALSE;
COMMENT ON COLUMN babylon_rl.client_keys."admin" IS 'The key also opens the admin API';
\ir psql/end.sql
