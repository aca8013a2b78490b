\set migration 0016_agent_names
\ir psql/begin.sql
-- The names that agents have been seen under: what is masked in an hour's texts does not follow a later change of name.

CREATE TABLE babylon_rl.agent_names (
    "agentId" text NOT NULL,
    "field" text NOT NULL,
    "name" text NOT NULL,
    "after" varchar(50) NOT NULL
);
COMMENT ON TABLE babylon_rl.agent_names IS 'Every name that an agent was seen under when one of its hours was read; nothing is ever removed';
COMMENT ON COLUMN babylon_rl.agent_names."field" IS 'displayName or username of public."User"';
COMMENT ON COLUMN babylon_rl.agent_names."name" IS 'Empty where the agent had none';
COMMENT ON COLUMN babylon_rl.agent_names."after" IS 'The name counts in hours after this one; empty for the first names seen of an agent, which count in all';
-- A name may be longer than an index entry.
CREATE UNIQUE INDEX agent_names_once ON babylon_rl.agent_names ("agentId", "field", md5("name"));

-- Hours that were read before this table was there keep the names that they have now.
DO $$
DECLARE
    field text;
BEGIN
    FOR field IN
        SELECT attname FROM pg_attribute
        WHERE attrelid = to_regclass('public."User"') AND attname IN ('displayName', 'username') AND NOT attisdropped
            AND has_column_privilege(attrelid, attnum, 'SELECT') AND has_column_privilege(attrelid, 'id', 'SELECT')
    LOOP
        EXECUTE format(
            'INSERT INTO babylon_rl.agent_names SELECT agent.id, %L, COALESCE(agent.%I, ''''), '''' FROM public."User" agent
             WHERE agent.id IN (SELECT "agentId" FROM babylon_rl.episodes)', field, field);
    END LOOP;
END $$;
\ir psql/end.sql
