\set migration 0040_usage_counted
\ir psql/begin.sql
-- Up to when recorded calls of versions are counted, so that a count reads no older ones, also where none was found.

CREATE TABLE babylon_rl.usage_counted (
    "one" BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK ("one"),
    "countedTo" TIMESTAMP(3) NOT NULL
);
COMMENT ON TABLE babylon_rl.usage_counted IS 'Time of the last count of recorded calls that a version answered (version_hours)';
\ir psql/end.sql
