\set migration 0014_judge_agreement
\ir psql/begin.sql
-- Whether a judge agrees with the market: rank correlations of its scores with what simulated agents of known skill earn.

CREATE TABLE babylon_rl.judge_agreements (
    "judge" TEXT NOT NULL,
    "judgeVersion" TEXT NOT NULL,
    "orders" INTEGER NOT NULL,
    "hours" INTEGER NOT NULL,
    "agents" INTEGER NOT NULL,
    "skillMarkets" INTEGER NOT NULL,
    "seed" BIGINT NOT NULL,
    "withoutSpread" INTEGER NOT NULL,
    "notJudged" INTEGER NOT NULL,
    "expected" DOUBLE PRECISION[] NOT NULL,
    "realized" DOUBLE PRECISION[] NOT NULL,
    "money" DOUBLE PRECISION[] NOT NULL,
    "overMoney" DOUBLE PRECISION[] NOT NULL,
    "rows" JSONB NOT NULL,
    "measuredAt" TIMESTAMP(3) NOT NULL,
    PRIMARY KEY ("judge", "judgeVersion", "orders"),
    CONSTRAINT judge_agreements_intervals CHECK (
        cardinality("expected") = 3 AND cardinality("realized") = 3 AND cardinality("money") = 3 AND cardinality("overMoney") = 3
    )
);
COMMENT ON TABLE babylon_rl.judge_agreements IS 'Newest calibration of each judge setting; every interval is mean, low, high over hours';
COMMENT ON COLUMN babylon_rl.judge_agreements."expected" IS 'Spearman of scores with expected P&L, within an hour';
COMMENT ON COLUMN babylon_rl.judge_agreements."realized" IS 'Spearman of scores with the P&L that came of the hour';
COMMENT ON COLUMN babylon_rl.judge_agreements."money" IS 'Spearman of that P&L with expected P&L: what a judge that only counted money would reach';
COMMENT ON COLUMN babylon_rl.judge_agreements."overMoney" IS 'expected less money, hour by hour';
COMMENT ON COLUMN babylon_rl.judge_agreements."withoutSpread" IS 'Hours in which all got the same score; their correlation counts as 0';
COMMENT ON COLUMN babylon_rl.judge_agreements."rows" IS 'One object per agent: expected P&L with its standard error, mean P&L, mean score, mean rank';
\ir psql/end.sql
