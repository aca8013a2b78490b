\set migration 0002_windows
\ir psql/begin.sql
-- What each hour holds, as last read: the window, its episodes, its rejected rows, and its market as a whole.

CREATE TABLE babylon_rl.windows (
    "window" varchar(50) PRIMARY KEY,
    "rows" integer NOT NULL,
    "eligible" integer NOT NULL,
    "newTrainable" integer NOT NULL,
    "agents" integer NOT NULL,
    "episodes" integer NOT NULL,
    "usableEpisodes" integer NOT NULL,
    "ready" boolean NOT NULL,
    "state" text NOT NULL CHECK ("state" IN ('pending', 'thin', 'ready', 'scored', 'trained', 'quarantined')),
    "rejected" jsonb NOT NULL,
    "messageSources" jsonb NOT NULL,
    "avgPnl" double precision,
    "trainableSequences" integer NOT NULL,
    "dataVersion" text NOT NULL,
    "groupVersion" text NOT NULL,
    "rowVersion" text NOT NULL,
    "computedAt" timestamp(3) NOT NULL
);

CREATE TABLE babylon_rl.episodes (
    "window" varchar(50) NOT NULL REFERENCES babylon_rl.windows ("window") ON DELETE CASCADE,
    "agentId" text NOT NULL,
    "trajectoryIds" text[] NOT NULL,
    "usedIds" text[] NOT NULL,
    "steps" integer NOT NULL,
    "startPnl" double precision NOT NULL,
    "endPnl" double precision NOT NULL,
    "windowPnl" double precision NOT NULL,
    "wins" integer NOT NULL,
    "losses" integer NOT NULL,
    "winRate" double precision,
    "trades" integer NOT NULL,
    "posts" integer NOT NULL,
    "messageSources" jsonb NOT NULL,
    "usable" boolean NOT NULL,
    "trainableSequences" integer NOT NULL,
    "actions" jsonb NOT NULL,
    "content" text NOT NULL,
    PRIMARY KEY ("window", "agentId")
);

CREATE TABLE babylon_rl.rejections (
    "trajectoryId" text NOT NULL,
    "window" varchar(50) NOT NULL REFERENCES babylon_rl.windows ("window") ON DELETE CASCADE,
    "reason" text NOT NULL,
    "detail" text NOT NULL,
    PRIMARY KEY ("window", "trajectoryId")
);

CREATE TABLE babylon_rl.market_windows (
    "window" varchar(50) PRIMARY KEY,
    "meanChange" double precision,
    "volatility" double precision,
    "stocks" integer NOT NULL,
    "predictions" integer NOT NULL,
    "flags" jsonb NOT NULL,
    "dataVersion" text NOT NULL,
    "computedAt" timestamp(3) NOT NULL
);
\ir psql/end.sql
