\set migration 0024_confirmations
\ir psql/begin.sql
-- Confirmations: a version that passed the gate against the deployed one, in markets that no decision has used before.

CREATE TABLE babylon_rl.confirmations (
    "number" INTEGER PRIMARY KEY,
    "version" TEXT NOT NULL UNIQUE,
    "reference" TEXT,
    "level" DOUBLE PRECISION NOT NULL,
    "firstMarket" INTEGER NOT NULL,
    "markets" INTEGER NOT NULL,
    "begunAt" TIMESTAMP(3) NOT NULL,
    "improvement" DOUBLE PRECISION,
    "p" DOUBLE PRECISION,
    "endedAt" TIMESTAMP(3),
    CONSTRAINT confirmations_level CHECK ("level" > 0 AND "level" < 1),
    CONSTRAINT confirmations_end CHECK (("endedAt" IS NULL) = ("p" IS NULL) AND ("p" IS NULL) = ("improvement" IS NULL))
);
COMMENT ON COLUMN babylon_rl.confirmations."reference" IS 'The deployed version; NULL: the base, as none was deployed';
COMMENT ON COLUMN babylon_rl.confirmations."level" IS 'Confirmed when p is at most this; fixed with the markets before anything is played';
COMMENT ON COLUMN babylon_rl.confirmations."improvement" IS 'Dollars an hour above the reference, mean over the markets';
\ir psql/end.sql
