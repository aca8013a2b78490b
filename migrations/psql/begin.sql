-- Head of every migration for psql: `psql $DATABASE_URL -f migrations/0001_contract_tables.sql`, and so on in the order of the numbers.
-- One transaction each, in the ledger of `babylon-rl migrate`, which goes on behind it. That command leaves out lines that begin with \.
\set ON_ERROR_STOP on
BEGIN;
SET LOCAL client_min_messages = warning;
CREATE SCHEMA IF NOT EXISTS babylon_rl;
CREATE TABLE IF NOT EXISTS babylon_rl.migrations (id TEXT PRIMARY KEY, checksum TEXT NOT NULL, "appliedAt" TIMESTAMP(3) NOT NULL);
INSERT INTO babylon_rl.migrations VALUES (:'migration', 'psql', now() AT TIME ZONE 'UTC');
SET LOCAL search_path = public;
