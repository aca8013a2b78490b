\set migration 0036_version_notice
\ir psql/begin.sql
-- A version that is registered or pruned reaches gateways as a release does. Rows of other producers are found by polling.

CREATE TRIGGER model_lineage_notify AFTER INSERT OR DELETE OR UPDATE OF "prunedAt" ON babylon_rl.model_lineage
    FOR EACH STATEMENT EXECUTE FUNCTION babylon_rl.notify_releases();
\ir psql/end.sql
