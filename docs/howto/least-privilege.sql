-- The role of the pipeline on a database that belongs to a game, with exactly what it needs. Run it with psql as the owner of the
-- game's tables (or a superuser), then give the role a password; it can be run again at any time, and does after an upgrade:
--
--   psql -v ON_ERROR_STOP=1 -v role=babylon_rl -f docs/howto/least-privilege.sql "$ADMIN_URL"
--   psql -c '\password babylon_rl' "$ADMIN_URL"
--
-- More roles, each by one more variable: -v recorder=NAME for agents that record by TrajectoryRecorder (they write rows and read
-- only their ids), -v gateway=NAME for `serve gateway` (after `migrate`), -v spawner=NAME for `spawn-agents` (the pipeline's rights and those of its own agents), -v reader=NAME for people who
-- read the views of babylon_rl in psql. docs/howto/database.md says what each grant is for.

\set ON_ERROR_STOP on
\if :{?role}
\else
    DO $$ BEGIN RAISE EXCEPTION 'Name the role: psql -v role=babylon_rl -f docs/howto/least-privilege.sql'; END $$;
\endif
SELECT current_database() AS database \gset

BEGIN;
SELECT format('CREATE ROLE %I LOGIN', :'role') WHERE to_regrole(quote_ident(:'role')) IS NULL \gexec
GRANT CONNECT, TEMPORARY ON DATABASE :"database" TO :"role";

-- A transaction left behind by a run whose machine is gone holds the locks of its hours: the server notices, and ends it.
ALTER ROLE :"role" SET idle_in_transaction_session_timeout = '1h';
ALTER ROLE :"role" SET tcp_keepalives_idle = 60;
ALTER ROLE :"role" SET tcp_keepalives_interval = 10;
ALTER ROLE :"role" SET tcp_keepalives_count = 6;

-- Its own two schemas, with whatever an earlier migration by another role has put there.
SELECT format('GRANT %I TO CURRENT_USER', :'role') WHERE NOT pg_has_role(current_user, :'role', 'USAGE') \gexec
SELECT format('CREATE SCHEMA %I AUTHORIZATION %I', name, :'role')
FROM unnest(ARRAY['babylon_rl', 'babylon_dagster']) AS own (name) WHERE to_regnamespace(name) IS NULL \gexec
SELECT format('ALTER SCHEMA %I OWNER TO %I', nspname, :'role') FROM pg_namespace
WHERE nspname IN ('babylon_rl', 'babylon_dagster') AND nspowner <> to_regrole(quote_ident(:'role')) \gexec
SELECT format('ALTER %s %s OWNER TO %I', CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, oid::regclass, :'role')
FROM pg_class
WHERE relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('babylon_rl', 'babylon_dagster'))
  AND relkind IN ('r', 'p', 'v', 'S') AND relowner <> to_regrole(quote_ident(:'role'))
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = pg_class.oid AND d.deptype IN ('a', 'i') AND relkind = 'S')
ORDER BY oid \gexec

-- What it reads of the game: trajectories, markets and news; of users their ids, and their names, which a judge is not shown. The
-- engine's hidden answers (outcome) are for a judge, and for the search for leaks: without that grant it judges and searches without them.
GRANT USAGE ON SCHEMA public TO :"role";
GRANT SELECT ON public.trajectories, public.llm_call_logs, public."Organization", public."StockPrice", public."Market",
    public."PredictionPriceHistory", public."WorldEvent" TO :"role";
GRANT SELECT (id, username, "displayName") ON public."User" TO :"role";
GRANT SELECT (id, "questionNumber", text, "createdDate", "resolvedOutcome", "updatedAt", outcome)
    ON public."Question" TO :"role";

-- What it writes of the game: scores and marks on trajectories, column by column, and the tables that are there for it.
GRANT UPDATE ("aiJudgeReward", "aiJudgeReasoning", "judgedAt", "usedInTraining", "trainedInBatch") ON public.trajectories TO :"role";
GRANT SELECT, INSERT, DELETE ON public.market_outcomes TO :"role";
GRANT SELECT, INSERT, UPDATE ON public.reward_judgments, public.training_batches, public.trained_models TO :"role";

\if :{?recorder}
    SELECT format('CREATE ROLE %I LOGIN', :'recorder') WHERE to_regrole(quote_ident(:'recorder')) IS NULL \gexec
    GRANT CONNECT ON DATABASE :"database" TO :"recorder";
    GRANT USAGE ON SCHEMA public TO :"recorder";
    GRANT INSERT ON public.trajectories, public.llm_call_logs TO :"recorder";
    -- to see, after an answer that was lost, whether a row had been written
    GRANT SELECT (id) ON public.trajectories TO :"recorder";
\endif

-- On a real game `spawn-agents` writes its own users and their trajectories. A market of its own it writes only into an empty
-- database, which it then owns.
\if :{?spawner}
    SELECT format('CREATE ROLE %I LOGIN', :'spawner') WHERE to_regrole(quote_ident(:'spawner')) IS NULL \gexec
    GRANT :"role" TO :"spawner";
    GRANT SELECT ("virtualBalance", "lifetimePnL"), UPDATE ("virtualBalance", "lifetimePnL", "updatedAt"),
        INSERT (id, username, "displayName", "isAgent", "isTest", "virtualBalance", "createdAt", "updatedAt") ON public."User" TO :"spawner";
    GRANT INSERT ON public.trajectories, public.llm_call_logs TO :"spawner";
\endif

-- A gateway reads what is deployed and the keys, and writes calls; it sees nothing of the game.
\if :{?gateway}
    SELECT format('CREATE ROLE %I LOGIN', :'gateway') WHERE to_regrole(quote_ident(:'gateway')) IS NULL \gexec
    GRANT CONNECT ON DATABASE :"database" TO :"gateway";
    GRANT USAGE ON SCHEMA public, babylon_rl TO :"gateway";
    GRANT INSERT ON public.llm_call_logs TO :"gateway";
    GRANT SELECT, UPDATE ("totalInferences") ON public.trained_models TO :"gateway";
    SELECT format('GRANT %s ON babylon_rl.%I TO %I', rights, name, :'gateway')
    FROM (VALUES ('SELECT', 'model_lineage'), ('SELECT', 'rollouts'), ('SELECT', 'ab_tests'), ('SELECT', 'client_keys'),
          ('UPDATE ("lastUsedAt")', 'client_keys'), ('SELECT, INSERT', 'gateway_calls')) AS needed (rights, name)
    WHERE to_regclass('babylon_rl.' || name) IS NOT NULL \gexec
\endif

\if :{?reader}
    SELECT format('CREATE ROLE %I LOGIN', :'reader') WHERE to_regrole(quote_ident(:'reader')) IS NULL \gexec
    GRANT CONNECT ON DATABASE :"database" TO :"reader";
    GRANT USAGE ON SCHEMA babylon_rl TO :"reader";
    SELECT format('GRANT SELECT ON %s TO %I', oid::regclass, :'reader') FROM pg_class
    WHERE relnamespace = 'babylon_rl'::regnamespace AND relkind = 'v' ORDER BY oid \gexec
\endif
COMMIT;
