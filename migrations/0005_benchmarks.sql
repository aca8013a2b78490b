\set migration 0005_benchmarks
\ir psql/begin.sql
-- Evidence: what every model did in every benchmark market, the report of each batch, and what was decided on its release.

CREATE TABLE babylon_rl.benchmark_results (
    "model" TEXT NOT NULL,
    "identity" TEXT NOT NULL,
    "snapshot" TEXT NOT NULL,
    "market" TEXT NOT NULL,
    "pnlUsd" DOUBLE PRECISION NOT NULL,
    "wins" INTEGER NOT NULL,
    "losses" INTEGER NOT NULL,
    "trades" INTEGER NOT NULL,
    "decisions" INTEGER NOT NULL,
    "invalid" INTEGER NOT NULL,
    "buys" INTEGER NOT NULL,
    "sells" INTEGER NOT NULL,
    "holds" INTEGER NOT NULL,
    "predictions" INTEGER NOT NULL,
    "predictionsRight" INTEGER NOT NULL,
    "equityUsd" DOUBLE PRECISION[] NOT NULL,
    "playedAt" TIMESTAMP(3) NOT NULL,
    PRIMARY KEY ("model", "identity", "snapshot", "market"),
    CONSTRAINT benchmark_results_sums CHECK ("buys" + "sells" + "holds" + "invalid" = "decisions" AND "wins" + "losses" <= "trades"),
    CONSTRAINT benchmark_results_finite CHECK (abs("pnlUsd") < 'Infinity')
);
COMMENT ON COLUMN babylon_rl.benchmark_results."identity" IS 'Hash of the weights that played: base, tokenizer and adapter';
COMMENT ON COLUMN babylon_rl.benchmark_results."market" IS 'Hash of all that players see and earn in the snapshot: other market code, other key';

CREATE TABLE babylon_rl.benchmark_reports (
    "batchId" TEXT PRIMARY KEY REFERENCES babylon_rl.batches ("batchId") ON DELETE CASCADE,
    "version" TEXT NOT NULL,
    "reference" TEXT,
    "decision" TEXT NOT NULL,
    "reason" TEXT NOT NULL,
    "markets" INTEGER NOT NULL,
    "minImprovement" DOUBLE PRECISION NOT NULL,
    "rows" JSONB NOT NULL,
    "tableMarkdown" TEXT NOT NULL,
    "dataVersion" TEXT NOT NULL,
    "plotPath" TEXT,
    "createdAt" TIMESTAMP(3) NOT NULL,
    CONSTRAINT benchmark_reports_decision CHECK ("decision" IN ('pass', 'fail', 'inconclusive', 'not_compared'))
);
COMMENT ON COLUMN babylon_rl.benchmark_reports."reference" IS 'Whom the gate compared the version with; NULL when it could not be played';

CREATE TABLE babylon_rl.releases (
    "batchId" TEXT PRIMARY KEY REFERENCES babylon_rl.batches ("batchId") ON DELETE CASCADE,
    "version" TEXT NOT NULL,
    "decision" TEXT NOT NULL,
    "reason" TEXT NOT NULL,
    "reportVersion" TEXT NOT NULL,
    "decidedAt" TIMESTAMP(3) NOT NULL,
    CONSTRAINT releases_decision CHECK ("decision" IN ('pass', 'fail', 'inconclusive', 'not_compared'))
);
COMMENT ON TABLE babylon_rl.releases IS 'The decision of the gate on every version; nothing is deployed by it';
\ir psql/end.sql
