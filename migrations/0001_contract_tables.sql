\set migration 0001_contract_tables
\ir psql/begin.sql
-- The contract's tables, as the game makes them, each only where it is absent. A table that is there stays as it is: no column,
-- index or key is added to it. Names are not qualified: the runner sets the search_path (public, or pg_temp to compare with).

-- User
DO $$ BEGIN
    IF to_regclass('"User"') IS NULL THEN
        CREATE TABLE "User" (
            id TEXT NOT NULL,
            "walletAddress" TEXT,
            username TEXT,
            "displayName" TEXT,
            bio TEXT,
            "profileImageUrl" TEXT,
            "isActor" BOOLEAN NOT NULL DEFAULT false,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "updatedAt" TIMESTAMP(3) NOT NULL,
            personality TEXT,
            "postStyle" TEXT,
            "postExample" TEXT,
            "virtualBalance" NUMERIC(18,2) NOT NULL DEFAULT 1000,
            "totalDeposited" NUMERIC(18,2) NOT NULL DEFAULT 1000,
            "totalWithdrawn" NUMERIC(18,2) NOT NULL DEFAULT 0,
            "lifetimePnL" NUMERIC(18,2) NOT NULL DEFAULT 0,
            "profileComplete" BOOLEAN NOT NULL DEFAULT false,
            "hasProfileImage" BOOLEAN NOT NULL DEFAULT false,
            "hasUsername" BOOLEAN NOT NULL DEFAULT false,
            "hasBio" BOOLEAN NOT NULL DEFAULT false,
            "profileSetupCompletedAt" TIMESTAMP(3),
            "farcasterUsername" TEXT,
            "hasFarcaster" BOOLEAN NOT NULL DEFAULT false,
            "hasTwitter" BOOLEAN NOT NULL DEFAULT false,
            "nftTokenId" INTEGER,
            "onChainRegistered" BOOLEAN NOT NULL DEFAULT false,
            "pointsAwardedForFarcaster" BOOLEAN NOT NULL DEFAULT false,
            "pointsAwardedForProfile" BOOLEAN NOT NULL DEFAULT false,
            "pointsAwardedForProfileImage" BOOLEAN NOT NULL DEFAULT false,
            "pointsAwardedForTwitter" BOOLEAN NOT NULL DEFAULT false,
            "pointsAwardedForUsername" BOOLEAN NOT NULL DEFAULT false,
            "pointsAwardedForWallet" BOOLEAN NOT NULL DEFAULT false,
            "referralCode" TEXT,
            "referralCount" INTEGER NOT NULL DEFAULT 0,
            "referredBy" TEXT,
            "registrationTxHash" TEXT,
            "reputationPoints" INTEGER NOT NULL DEFAULT 1000,
            "twitterUsername" TEXT,
            "bannerDismissCount" INTEGER NOT NULL DEFAULT 0,
            "bannerLastShown" TIMESTAMP(3),
            "coverImageUrl" TEXT,
            "showFarcasterPublic" BOOLEAN NOT NULL DEFAULT true,
            "showTwitterPublic" BOOLEAN NOT NULL DEFAULT true,
            "showWalletPublic" BOOLEAN NOT NULL DEFAULT true,
            "usernameChangedAt" TIMESTAMP(3),
            "agent0FeedbackCount" INTEGER,
            "agent0MetadataCID" TEXT,
            "agent0RegisteredAt" TIMESTAMP(3),
            "agent0TokenId" INTEGER,
            "agent0TrustScore" DOUBLE PRECISION,
            "bannedAt" TIMESTAMP(3),
            "bannedBy" TEXT,
            "bannedReason" TEXT,
            "farcasterDisplayName" TEXT,
            "farcasterFid" TEXT,
            "farcasterPfpUrl" TEXT,
            "farcasterVerifiedAt" TIMESTAMP(3),
            "isAdmin" BOOLEAN NOT NULL DEFAULT false,
            "isBanned" BOOLEAN NOT NULL DEFAULT false,
            "isScammer" BOOLEAN NOT NULL DEFAULT false,
            "isCSAM" BOOLEAN NOT NULL DEFAULT false,
            "appealCount" INTEGER NOT NULL DEFAULT 0,
            "appealStaked" BOOLEAN NOT NULL DEFAULT false,
            "appealStakeAmount" NUMERIC(18,2),
            "appealStakeTxHash" TEXT,
            "appealStatus" TEXT,
            "appealSubmittedAt" TIMESTAMP(3),
            "appealReviewedAt" TIMESTAMP(3),
            "falsePositiveHistory" JSONB,
            "privyId" TEXT,
            "registrationBlockNumber" BIGINT,
            "registrationGasUsed" BIGINT,
            "registrationTimestamp" TIMESTAMP(3),
            role TEXT,
            "totalFeesEarned" NUMERIC(18,2) NOT NULL DEFAULT 0,
            "totalFeesPaid" NUMERIC(18,2) NOT NULL DEFAULT 0,
            "twitterAccessToken" TEXT,
            "twitterId" TEXT,
            "twitterRefreshToken" TEXT,
            "twitterTokenExpiresAt" TIMESTAMP(3),
            "twitterVerifiedAt" TIMESTAMP(3),
            "tosAccepted" BOOLEAN NOT NULL DEFAULT false,
            "tosAcceptedAt" TIMESTAMP(3),
            "tosAcceptedVersion" TEXT DEFAULT '2025-11-11',
            "privacyPolicyAccepted" BOOLEAN NOT NULL DEFAULT false,
            "privacyPolicyAcceptedAt" TIMESTAMP(3),
            "privacyPolicyAcceptedVersion" TEXT DEFAULT '2025-11-11',
            "invitePoints" INTEGER NOT NULL DEFAULT 0,
            "earnedPoints" INTEGER NOT NULL DEFAULT 0,
            "bonusPoints" INTEGER NOT NULL DEFAULT 0,
            "waitlistPosition" INTEGER,
            "waitlistJoinedAt" TIMESTAMP(3),
            "isWaitlistActive" BOOLEAN NOT NULL DEFAULT false,
            "isTest" BOOLEAN NOT NULL DEFAULT false,
            "pointsAwardedForEmail" BOOLEAN NOT NULL DEFAULT false,
            "emailVerified" BOOLEAN NOT NULL DEFAULT false,
            email TEXT,
            "waitlistGraduatedAt" TIMESTAMP(3),
            "agentCount" INTEGER NOT NULL DEFAULT 0,
            "totalAgentPnL" NUMERIC(18,2) NOT NULL DEFAULT 0,
            "agentErrorMessage" TEXT,
            "agentLastChatAt" TIMESTAMP(3),
            "agentLastTickAt" TIMESTAMP(3),
            "agentMessageExamples" JSONB,
            "agentModelTier" TEXT NOT NULL DEFAULT 'free',
            "agentPersonality" TEXT,
            "agentPointsBalance" INTEGER NOT NULL DEFAULT 0,
            "agentStatus" TEXT NOT NULL DEFAULT 'idle',
            "agentStyle" JSONB,
            "agentSystem" TEXT,
            "agentTotalDeposited" INTEGER NOT NULL DEFAULT 0,
            "agentTotalPointsSpent" INTEGER NOT NULL DEFAULT 0,
            "agentTotalWithdrawn" INTEGER NOT NULL DEFAULT 0,
            "agentTradingStrategy" TEXT,
            "autonomousCommenting" BOOLEAN NOT NULL DEFAULT false,
            "autonomousDMs" BOOLEAN NOT NULL DEFAULT false,
            "autonomousGroupChats" BOOLEAN NOT NULL DEFAULT false,
            "autonomousPosting" BOOLEAN NOT NULL DEFAULT false,
            "autonomousTrading" BOOLEAN NOT NULL DEFAULT false,
            "a2aEnabled" BOOLEAN NOT NULL DEFAULT false,
            "isAgent" BOOLEAN NOT NULL DEFAULT false,
            "managedBy" TEXT,
            "agentGoals" JSONB,
            "agentDirectives" JSONB,
            "agentConstraints" JSONB,
            "agentPersonaPrompt" TEXT,
            "agentPlanningHorizon" TEXT NOT NULL DEFAULT 'single',
            "agentRiskTolerance" TEXT NOT NULL DEFAULT 'medium',
            "agentMaxActionsPerTick" INTEGER NOT NULL DEFAULT 3,
            CONSTRAINT "User_pkey" PRIMARY KEY (id),
            CONSTRAINT "User_managedBy_fkey" FOREIGN KEY ("managedBy") REFERENCES "User"(id) ON UPDATE CASCADE ON DELETE SET NULL
        );
        CREATE INDEX "User_agentCount_idx" ON "User" ("agentCount" DESC);
        CREATE INDEX "User_autonomousTrading_idx" ON "User" ("autonomousTrading");
        CREATE INDEX "User_displayName_idx" ON "User" ("displayName");
        CREATE INDEX "User_earnedPoints_idx" ON "User" ("earnedPoints" DESC);
        CREATE UNIQUE INDEX "User_farcasterFid_key" ON "User" ("farcasterFid");
        CREATE INDEX "User_invitePoints_idx" ON "User" ("invitePoints" DESC);
        CREATE INDEX "User_isActor_idx" ON "User" ("isActor");
        CREATE INDEX "User_isAgent_idx" ON "User" ("isAgent");
        CREATE INDEX "User_isAgent_managedBy_idx" ON "User" ("isAgent", "managedBy");
        CREATE INDEX "User_isBanned_isActor_idx" ON "User" ("isBanned", "isActor");
        CREATE INDEX "User_isCSAM_idx" ON "User" ("isCSAM");
        CREATE INDEX "User_isScammer_idx" ON "User" ("isScammer");
        CREATE INDEX "User_managedBy_idx" ON "User" ("managedBy");
        CREATE UNIQUE INDEX "User_nftTokenId_key" ON "User" ("nftTokenId");
        CREATE UNIQUE INDEX "User_privyId_key" ON "User" ("privyId");
        CREATE INDEX "User_profileComplete_createdAt_idx" ON "User" ("profileComplete", "createdAt" DESC);
        CREATE INDEX "User_referralCode_idx" ON "User" ("referralCode");
        CREATE UNIQUE INDEX "User_referralCode_key" ON "User" ("referralCode");
        CREATE INDEX "User_reputationPoints_idx" ON "User" ("reputationPoints" DESC);
        CREATE INDEX "User_totalAgentPnL_idx" ON "User" ("totalAgentPnL" DESC);
        CREATE UNIQUE INDEX "User_twitterId_key" ON "User" ("twitterId");
        CREATE INDEX "User_username_idx" ON "User" (username);
        CREATE UNIQUE INDEX "User_username_key" ON "User" (username);
        CREATE INDEX "User_waitlistJoinedAt_idx" ON "User" ("waitlistJoinedAt");
        CREATE INDEX "User_waitlistPosition_idx" ON "User" ("waitlistPosition");
        CREATE INDEX "User_walletAddress_idx" ON "User" ("walletAddress");
        CREATE UNIQUE INDEX "User_walletAddress_key" ON "User" ("walletAddress");
    END IF;
END $$;

-- Organization
DO $$ BEGIN
    IF to_regclass('"Organization"') IS NULL THEN
        CREATE TABLE "Organization" (
            id TEXT NOT NULL,
            name TEXT NOT NULL,
            description TEXT NOT NULL,
            type TEXT NOT NULL,
            "canBeInvolved" BOOLEAN NOT NULL DEFAULT true,
            "initialPrice" DOUBLE PRECISION,
            "currentPrice" DOUBLE PRECISION,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "updatedAt" TIMESTAMP(3) NOT NULL,
            "imageUrl" TEXT,
            CONSTRAINT "Organization_pkey" PRIMARY KEY (id)
        );
        CREATE INDEX "Organization_currentPrice_idx" ON "Organization" ("currentPrice");
        CREATE INDEX "Organization_type_idx" ON "Organization" (type);
    END IF;
END $$;

-- StockPrice
DO $$ BEGIN
    IF to_regclass('"StockPrice"') IS NULL THEN
        CREATE TABLE "StockPrice" (
            id TEXT NOT NULL,
            "organizationId" TEXT NOT NULL,
            price DOUBLE PRECISION NOT NULL,
            change DOUBLE PRECISION NOT NULL,
            "changePercent" DOUBLE PRECISION NOT NULL,
            "timestamp" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "isSnapshot" BOOLEAN NOT NULL DEFAULT false,
            "openPrice" DOUBLE PRECISION,
            "highPrice" DOUBLE PRECISION,
            "lowPrice" DOUBLE PRECISION,
            volume DOUBLE PRECISION,
            CONSTRAINT "StockPrice_pkey" PRIMARY KEY (id),
            CONSTRAINT "StockPrice_organizationId_fkey" FOREIGN KEY ("organizationId") REFERENCES "Organization"(id) ON UPDATE CASCADE ON DELETE CASCADE
        );
        CREATE INDEX "StockPrice_isSnapshot_timestamp_idx" ON "StockPrice" ("isSnapshot", "timestamp");
        CREATE INDEX "StockPrice_organizationId_timestamp_idx" ON "StockPrice" ("organizationId", "timestamp" DESC);
        CREATE INDEX "StockPrice_timestamp_idx" ON "StockPrice" ("timestamp" DESC);
    END IF;
END $$;

-- Question
DO $$ BEGIN
    IF to_regclass('"Question"') IS NULL THEN
        CREATE TABLE "Question" (
            id TEXT NOT NULL,
            "questionNumber" INTEGER NOT NULL,
            text TEXT NOT NULL,
            "scenarioId" INTEGER NOT NULL,
            outcome BOOLEAN NOT NULL,
            rank INTEGER NOT NULL,
            "createdDate" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "resolutionDate" TIMESTAMP(3) NOT NULL,
            status TEXT NOT NULL DEFAULT 'active',
            "resolvedOutcome" BOOLEAN,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "updatedAt" TIMESTAMP(3) NOT NULL,
            "oracleCommitBlock" INTEGER,
            "oracleCommitTxHash" TEXT,
            "oracleCommitment" TEXT,
            "oracleError" TEXT,
            "oraclePublishedAt" TIMESTAMP(3),
            "oracleRevealBlock" INTEGER,
            "oracleRevealTxHash" TEXT,
            "oracleSaltEncrypted" TEXT,
            "oracleSessionId" TEXT,
            CONSTRAINT "Question_pkey" PRIMARY KEY (id)
        );
        CREATE INDEX "Question_createdDate_idx" ON "Question" ("createdDate" DESC);
        CREATE INDEX "Question_oraclePublishedAt_idx" ON "Question" ("oraclePublishedAt");
        CREATE INDEX "Question_oracleSessionId_idx" ON "Question" ("oracleSessionId");
        CREATE UNIQUE INDEX "Question_oracleSessionId_key" ON "Question" ("oracleSessionId");
        CREATE UNIQUE INDEX "Question_questionNumber_key" ON "Question" ("questionNumber");
        CREATE INDEX "Question_status_resolutionDate_idx" ON "Question" (status, "resolutionDate");
    END IF;
END $$;

-- Market
DO $$ BEGIN
    IF to_regclass('"Market"') IS NULL THEN
        CREATE TABLE "Market" (
            id TEXT NOT NULL,
            question TEXT NOT NULL,
            description TEXT,
            "gameId" TEXT,
            "dayNumber" INTEGER,
            "yesShares" NUMERIC(18,6) NOT NULL DEFAULT 0,
            "noShares" NUMERIC(18,6) NOT NULL DEFAULT 0,
            liquidity NUMERIC(18,6) NOT NULL,
            resolved BOOLEAN NOT NULL DEFAULT false,
            resolution BOOLEAN,
            "endDate" TIMESTAMP(3) NOT NULL,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "updatedAt" TIMESTAMP(3) NOT NULL,
            "onChainMarketId" TEXT,
            "onChainResolutionTxHash" TEXT,
            "onChainResolved" BOOLEAN NOT NULL DEFAULT false,
            "oracleAddress" TEXT,
            CONSTRAINT "Market_pkey" PRIMARY KEY (id)
        );
        CREATE INDEX "Market_createdAt_idx" ON "Market" ("createdAt" DESC);
        CREATE INDEX "Market_gameId_dayNumber_idx" ON "Market" ("gameId", "dayNumber");
        CREATE INDEX "Market_onChainMarketId_idx" ON "Market" ("onChainMarketId");
        CREATE INDEX "Market_resolved_endDate_idx" ON "Market" (resolved, "endDate");
    END IF;
END $$;

-- PredictionPriceHistory
DO $$ BEGIN
    IF to_regclass('"PredictionPriceHistory"') IS NULL THEN
        CREATE TABLE "PredictionPriceHistory" (
            id TEXT NOT NULL,
            "marketId" TEXT NOT NULL,
            "yesPrice" DOUBLE PRECISION NOT NULL,
            "noPrice" DOUBLE PRECISION NOT NULL,
            "yesShares" NUMERIC(24,8) NOT NULL,
            "noShares" NUMERIC(24,8) NOT NULL,
            liquidity NUMERIC(24,8) NOT NULL,
            "eventType" TEXT NOT NULL,
            source TEXT NOT NULL,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            CONSTRAINT "PredictionPriceHistory_pkey" PRIMARY KEY (id),
            CONSTRAINT "PredictionPriceHistory_marketId_fkey" FOREIGN KEY ("marketId") REFERENCES "Market"(id) ON UPDATE CASCADE ON DELETE CASCADE
        );
        CREATE INDEX "PredictionPriceHistory_marketId_createdAt_idx" ON "PredictionPriceHistory" ("marketId", "createdAt" DESC);
    END IF;
END $$;

-- WorldEvent
DO $$ BEGIN
    IF to_regclass('"WorldEvent"') IS NULL THEN
        CREATE TABLE "WorldEvent" (
            id TEXT NOT NULL,
            "eventType" TEXT NOT NULL,
            description TEXT NOT NULL,
            actors TEXT[],
            "relatedQuestion" INTEGER,
            "pointsToward" TEXT,
            visibility TEXT NOT NULL DEFAULT 'public',
            "gameId" TEXT,
            "dayNumber" INTEGER,
            "timestamp" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            CONSTRAINT "WorldEvent_pkey" PRIMARY KEY (id)
        );
        CREATE INDEX "WorldEvent_gameId_dayNumber_idx" ON "WorldEvent" ("gameId", "dayNumber");
        CREATE INDEX "WorldEvent_relatedQuestion_idx" ON "WorldEvent" ("relatedQuestion");
        CREATE INDEX "WorldEvent_timestamp_idx" ON "WorldEvent" ("timestamp" DESC);
    END IF;
END $$;

-- Position
DO $$ BEGIN
    IF to_regclass('"Position"') IS NULL THEN
        CREATE TABLE "Position" (
            id TEXT NOT NULL,
            "userId" TEXT NOT NULL,
            "marketId" TEXT NOT NULL,
            side BOOLEAN NOT NULL,
            shares NUMERIC(18,6) NOT NULL,
            "avgPrice" NUMERIC(18,6) NOT NULL,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "updatedAt" TIMESTAMP(3) NOT NULL,
            amount NUMERIC(18,2) NOT NULL DEFAULT 0,
            outcome BOOLEAN,
            pnl NUMERIC(18,2),
            "questionId" INTEGER,
            "resolvedAt" TIMESTAMP(3),
            status TEXT NOT NULL DEFAULT 'active',
            CONSTRAINT "Position_pkey" PRIMARY KEY (id),
            CONSTRAINT "Position_marketId_fkey" FOREIGN KEY ("marketId") REFERENCES "Market"(id) ON UPDATE CASCADE ON DELETE CASCADE,
            CONSTRAINT "Position_questionId_fkey" FOREIGN KEY ("questionId") REFERENCES "Question"("questionNumber") ON UPDATE CASCADE ON DELETE SET NULL,
            CONSTRAINT "Position_userId_fkey" FOREIGN KEY ("userId") REFERENCES "User"(id) ON UPDATE CASCADE ON DELETE CASCADE
        );
        CREATE INDEX "Position_marketId_idx" ON "Position" ("marketId");
        CREATE INDEX "Position_questionId_idx" ON "Position" ("questionId");
        CREATE INDEX "Position_status_idx" ON "Position" (status);
        CREATE INDEX "Position_userId_idx" ON "Position" ("userId");
        CREATE INDEX "Position_userId_marketId_idx" ON "Position" ("userId", "marketId");
        CREATE INDEX "Position_userId_status_idx" ON "Position" ("userId", status);
    END IF;
END $$;

-- PerpPosition
DO $$ BEGIN
    IF to_regclass('"PerpPosition"') IS NULL THEN
        CREATE TABLE "PerpPosition" (
            id TEXT NOT NULL,
            "userId" TEXT NOT NULL,
            ticker TEXT NOT NULL,
            "organizationId" TEXT NOT NULL,
            side TEXT NOT NULL,
            "entryPrice" DOUBLE PRECISION NOT NULL,
            "currentPrice" DOUBLE PRECISION NOT NULL,
            size DOUBLE PRECISION NOT NULL,
            leverage INTEGER NOT NULL,
            "liquidationPrice" DOUBLE PRECISION NOT NULL,
            "unrealizedPnL" DOUBLE PRECISION NOT NULL,
            "unrealizedPnLPercent" DOUBLE PRECISION NOT NULL,
            "fundingPaid" DOUBLE PRECISION NOT NULL DEFAULT 0,
            "openedAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "lastUpdated" TIMESTAMP(3) NOT NULL,
            "closedAt" TIMESTAMP(3),
            "realizedPnL" DOUBLE PRECISION,
            "settledAt" TIMESTAMP(3),
            "settledToChain" BOOLEAN NOT NULL DEFAULT false,
            "settlementTxHash" TEXT,
            CONSTRAINT "PerpPosition_pkey" PRIMARY KEY (id)
        );
        CREATE INDEX "PerpPosition_organizationId_idx" ON "PerpPosition" ("organizationId");
        CREATE INDEX "PerpPosition_settledToChain_idx" ON "PerpPosition" ("settledToChain");
        CREATE INDEX "PerpPosition_ticker_idx" ON "PerpPosition" (ticker);
        CREATE INDEX "PerpPosition_userId_closedAt_idx" ON "PerpPosition" ("userId", "closedAt");
    END IF;
END $$;

-- AgentTrade
DO $$ BEGIN
    IF to_regclass('"AgentTrade"') IS NULL THEN
        CREATE TABLE "AgentTrade" (
            id TEXT NOT NULL,
            "marketType" TEXT NOT NULL,
            "marketId" TEXT,
            ticker TEXT,
            action TEXT NOT NULL,
            side TEXT,
            amount DOUBLE PRECISION NOT NULL,
            price DOUBLE PRECISION NOT NULL,
            pnl DOUBLE PRECISION,
            reasoning TEXT,
            "executedAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "agentUserId" TEXT NOT NULL,
            CONSTRAINT "AgentTrade_pkey" PRIMARY KEY (id),
            CONSTRAINT "AgentTrade_agentUserId_fkey" FOREIGN KEY ("agentUserId") REFERENCES "User"(id) ON UPDATE CASCADE ON DELETE CASCADE
        );
        CREATE INDEX "AgentTrade_agentUserId_executedAt_idx" ON "AgentTrade" ("agentUserId", "executedAt" DESC);
        CREATE INDEX "AgentTrade_marketType_marketId_idx" ON "AgentTrade" ("marketType", "marketId");
        CREATE INDEX "AgentTrade_ticker_idx" ON "AgentTrade" (ticker);
    END IF;
END $$;

-- BalanceTransaction
DO $$ BEGIN
    IF to_regclass('"BalanceTransaction"') IS NULL THEN
        CREATE TABLE "BalanceTransaction" (
            id TEXT NOT NULL,
            "userId" TEXT NOT NULL,
            type TEXT NOT NULL,
            amount NUMERIC(18,2) NOT NULL,
            "balanceBefore" NUMERIC(18,2) NOT NULL,
            "balanceAfter" NUMERIC(18,2) NOT NULL,
            "relatedId" TEXT,
            description TEXT,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            CONSTRAINT "BalanceTransaction_pkey" PRIMARY KEY (id),
            CONSTRAINT "BalanceTransaction_userId_fkey" FOREIGN KEY ("userId") REFERENCES "User"(id) ON UPDATE CASCADE ON DELETE CASCADE
        );
        CREATE INDEX "BalanceTransaction_type_idx" ON "BalanceTransaction" (type);
        CREATE INDEX "BalanceTransaction_userId_createdAt_idx" ON "BalanceTransaction" ("userId", "createdAt" DESC);
    END IF;
END $$;

-- Post
DO $$ BEGIN
    IF to_regclass('"Post"') IS NULL THEN
        CREATE TABLE "Post" (
            id TEXT NOT NULL,
            content TEXT NOT NULL,
            "authorId" TEXT NOT NULL,
            "gameId" TEXT,
            "dayNumber" INTEGER,
            "timestamp" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "articleTitle" TEXT,
            "biasScore" DOUBLE PRECISION,
            byline TEXT,
            category TEXT,
            "fullContent" TEXT,
            sentiment TEXT,
            slant TEXT,
            type TEXT NOT NULL DEFAULT 'post',
            "deletedAt" TIMESTAMP(3),
            "commentOnPostId" TEXT,
            "parentCommentId" TEXT,
            "originalPostId" TEXT,
            CONSTRAINT "Post_pkey" PRIMARY KEY (id),
            CONSTRAINT "Post_commentOnPostId_fkey" FOREIGN KEY ("commentOnPostId") REFERENCES "Post"(id) ON UPDATE CASCADE ON DELETE CASCADE,
            CONSTRAINT "Post_originalPostId_fkey" FOREIGN KEY ("originalPostId") REFERENCES "Post"(id) ON UPDATE CASCADE ON DELETE SET NULL,
            CONSTRAINT "Post_parentCommentId_fkey" FOREIGN KEY ("parentCommentId") REFERENCES "Post"(id) ON UPDATE CASCADE ON DELETE CASCADE
        );
        CREATE INDEX "Post_authorId_timestamp_idx" ON "Post" ("authorId", "timestamp" DESC);
        CREATE INDEX "Post_authorId_type_timestamp_idx" ON "Post" ("authorId", type, "timestamp" DESC);
        CREATE INDEX "Post_commentOnPostId_idx" ON "Post" ("commentOnPostId");
        CREATE INDEX "Post_deletedAt_idx" ON "Post" ("deletedAt");
        CREATE INDEX "Post_gameId_dayNumber_idx" ON "Post" ("gameId", "dayNumber");
        CREATE INDEX "Post_originalPostId_idx" ON "Post" ("originalPostId");
        CREATE INDEX "Post_parentCommentId_idx" ON "Post" ("parentCommentId");
        CREATE INDEX "Post_timestamp_idx" ON "Post" ("timestamp" DESC);
        CREATE INDEX "Post_type_deletedAt_timestamp_idx" ON "Post" (type, "deletedAt", "timestamp" DESC);
        CREATE INDEX "Post_type_timestamp_idx" ON "Post" (type, "timestamp" DESC);
    END IF;
END $$;

-- SystemSettings
DO $$ BEGIN
    IF to_regclass('"SystemSettings"') IS NULL THEN
        CREATE TABLE "SystemSettings" (
            id TEXT NOT NULL DEFAULT 'system',
            "wandbModel" TEXT,
            "wandbEnabled" BOOLEAN NOT NULL DEFAULT false,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "updatedAt" TIMESTAMP(3) NOT NULL,
            CONSTRAINT "SystemSettings_pkey" PRIMARY KEY (id)
        );
    END IF;
END $$;

-- trajectories
DO $$ BEGIN
    IF to_regclass('trajectories') IS NULL THEN
        CREATE TABLE trajectories (
            id TEXT NOT NULL,
            "trajectoryId" TEXT NOT NULL,
            "agentId" TEXT NOT NULL,
            "startTime" TIMESTAMP(3) NOT NULL,
            "endTime" TIMESTAMP(3) NOT NULL,
            "durationMs" INTEGER NOT NULL,
            "windowId" VARCHAR(50),
            "windowHours" INTEGER NOT NULL DEFAULT 1,
            "episodeId" VARCHAR(100),
            "scenarioId" VARCHAR(100),
            "batchId" VARCHAR(100),
            "stepsJson" TEXT NOT NULL,
            "rewardComponentsJson" TEXT NOT NULL,
            "metricsJson" TEXT NOT NULL,
            "metadataJson" TEXT NOT NULL,
            "totalReward" DOUBLE PRECISION NOT NULL,
            "episodeLength" INTEGER NOT NULL,
            "finalStatus" TEXT NOT NULL,
            "finalBalance" DOUBLE PRECISION,
            "finalPnL" DOUBLE PRECISION,
            "tradesExecuted" INTEGER,
            "postsCreated" INTEGER,
            "aiJudgeReward" DOUBLE PRECISION,
            "aiJudgeReasoning" TEXT,
            "judgedAt" TIMESTAMP(3),
            "isTrainingData" BOOLEAN NOT NULL DEFAULT true,
            "isEvaluation" BOOLEAN NOT NULL DEFAULT false,
            "usedInTraining" BOOLEAN NOT NULL DEFAULT false,
            "trainedInBatch" TEXT,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "updatedAt" TIMESTAMP(3) NOT NULL,
            CONSTRAINT trajectories_pkey PRIMARY KEY (id),
            CONSTRAINT "trajectories_agentId_fkey" FOREIGN KEY ("agentId") REFERENCES "User"(id) ON UPDATE CASCADE ON DELETE CASCADE
        );
        CREATE INDEX "trajectories_agentId_startTime_idx" ON trajectories ("agentId", "startTime");
        CREATE INDEX "trajectories_aiJudgeReward_idx" ON trajectories ("aiJudgeReward");
        CREATE INDEX "trajectories_isTrainingData_usedInTraining_idx" ON trajectories ("isTrainingData", "usedInTraining");
        CREATE INDEX "trajectories_scenarioId_createdAt_idx" ON trajectories ("scenarioId", "createdAt");
        CREATE INDEX "trajectories_trainedInBatch_idx" ON trajectories ("trainedInBatch");
        CREATE UNIQUE INDEX "trajectories_trajectoryId_key" ON trajectories ("trajectoryId");
        CREATE INDEX "trajectories_windowId_agentId_idx" ON trajectories ("windowId", "agentId");
        CREATE INDEX "trajectories_windowId_idx" ON trajectories ("windowId");
    END IF;
END $$;

-- llm_call_logs
DO $$ BEGIN
    IF to_regclass('llm_call_logs') IS NULL THEN
        CREATE TABLE llm_call_logs (
            id TEXT NOT NULL,
            "trajectoryId" TEXT NOT NULL,
            "stepId" TEXT NOT NULL,
            "callId" TEXT NOT NULL,
            "timestamp" TIMESTAMP(3) NOT NULL,
            "latencyMs" INTEGER,
            model TEXT NOT NULL,
            purpose TEXT NOT NULL,
            "actionType" TEXT,
            "systemPrompt" TEXT NOT NULL,
            "userPrompt" TEXT NOT NULL,
            "messagesJson" TEXT,
            response TEXT NOT NULL,
            reasoning TEXT,
            temperature DOUBLE PRECISION NOT NULL,
            "maxTokens" INTEGER NOT NULL,
            "topP" DOUBLE PRECISION,
            "promptTokens" INTEGER,
            "completionTokens" INTEGER,
            "totalTokens" INTEGER,
            metadata TEXT,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            CONSTRAINT llm_call_logs_pkey PRIMARY KEY (id)
        );
        CREATE INDEX "llm_call_logs_callId_idx" ON llm_call_logs ("callId");
        CREATE UNIQUE INDEX "llm_call_logs_callId_key" ON llm_call_logs ("callId");
        CREATE INDEX llm_call_logs_timestamp_idx ON llm_call_logs ("timestamp");
        CREATE INDEX "llm_call_logs_trajectoryId_idx" ON llm_call_logs ("trajectoryId");
    END IF;
END $$;

-- training_batches
DO $$ BEGIN
    IF to_regclass('training_batches') IS NULL THEN
        CREATE TABLE training_batches (
            id TEXT NOT NULL,
            "batchId" TEXT NOT NULL,
            "scenarioId" TEXT,
            "baseModel" TEXT NOT NULL,
            "modelVersion" TEXT NOT NULL,
            "trajectoryIds" TEXT NOT NULL,
            "rankingsJson" TEXT,
            "rewardsJson" TEXT NOT NULL,
            "trainingLoss" DOUBLE PRECISION,
            "policyImprovement" DOUBLE PRECISION,
            status TEXT NOT NULL DEFAULT 'pending',
            error TEXT,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "startedAt" TIMESTAMP(3),
            "completedAt" TIMESTAMP(3),
            CONSTRAINT training_batches_pkey PRIMARY KEY (id)
        );
        CREATE UNIQUE INDEX "training_batches_batchId_key" ON training_batches ("batchId");
        CREATE INDEX "training_batches_scenarioId_idx" ON training_batches ("scenarioId");
        CREATE INDEX "training_batches_status_createdAt_idx" ON training_batches (status, "createdAt");
    END IF;
END $$;

-- market_outcomes
DO $$ BEGIN
    IF to_regclass('market_outcomes') IS NULL THEN
        CREATE TABLE market_outcomes (
            id TEXT NOT NULL,
            "windowId" VARCHAR(50) NOT NULL,
            "stockTicker" VARCHAR(20),
            "startPrice" NUMERIC(10,2),
            "endPrice" NUMERIC(10,2),
            "changePercent" NUMERIC(5,2),
            sentiment VARCHAR(20),
            "newsEvents" JSONB,
            "predictionMarketId" TEXT,
            question TEXT,
            outcome VARCHAR(20),
            "finalProbability" NUMERIC(5,4),
            volume NUMERIC(15,2),
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            CONSTRAINT market_outcomes_pkey PRIMARY KEY (id)
        );
        CREATE INDEX "market_outcomes_windowId_idx" ON market_outcomes ("windowId");
        CREATE INDEX "market_outcomes_windowId_stockTicker_idx" ON market_outcomes ("windowId", "stockTicker");
    END IF;
END $$;

-- trained_models
DO $$ BEGIN
    IF to_regclass('trained_models') IS NULL THEN
        CREATE TABLE trained_models (
            id TEXT NOT NULL,
            "modelId" TEXT NOT NULL,
            version TEXT NOT NULL,
            "baseModel" TEXT NOT NULL,
            "trainingBatch" TEXT,
            status TEXT NOT NULL DEFAULT 'training',
            "deployedAt" TIMESTAMP(3),
            "archivedAt" TIMESTAMP(3),
            "storagePath" TEXT NOT NULL,
            "benchmarkScore" DOUBLE PRECISION,
            accuracy DOUBLE PRECISION,
            "avgReward" DOUBLE PRECISION,
            "evalMetrics" JSONB,
            "wandbRunId" TEXT,
            "wandbArtifactId" TEXT,
            "agentsUsing" INTEGER NOT NULL DEFAULT 0,
            "totalInferences" INTEGER NOT NULL DEFAULT 0,
            "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            "updatedAt" TIMESTAMP(3) NOT NULL,
            CONSTRAINT trained_models_pkey PRIMARY KEY (id)
        );
        CREATE INDEX "trained_models_deployedAt_idx" ON trained_models ("deployedAt");
        CREATE UNIQUE INDEX "trained_models_modelId_key" ON trained_models ("modelId");
        CREATE INDEX trained_models_status_idx ON trained_models (status);
        CREATE INDEX trained_models_version_idx ON trained_models (version);
    END IF;
END $$;

-- reward_judgments
DO $$ BEGIN
    IF to_regclass('reward_judgments') IS NULL THEN
        CREATE TABLE reward_judgments (
            id TEXT NOT NULL,
            "trajectoryId" TEXT NOT NULL,
            "judgeModel" TEXT NOT NULL,
            "judgeVersion" TEXT NOT NULL,
            "overallScore" DOUBLE PRECISION NOT NULL,
            "componentScoresJson" TEXT,
            rank INTEGER,
            "normalizedScore" DOUBLE PRECISION,
            "groupId" TEXT,
            reasoning TEXT NOT NULL,
            "strengthsJson" TEXT,
            "weaknessesJson" TEXT,
            "criteriaJson" TEXT NOT NULL,
            "judgedAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
            CONSTRAINT reward_judgments_pkey PRIMARY KEY (id),
            CONSTRAINT "reward_judgments_trajectoryId_fkey" FOREIGN KEY ("trajectoryId") REFERENCES trajectories("trajectoryId") ON UPDATE CASCADE ON DELETE CASCADE
        );
        CREATE INDEX "reward_judgments_groupId_rank_idx" ON reward_judgments ("groupId", rank);
        CREATE INDEX "reward_judgments_overallScore_idx" ON reward_judgments ("overallScore");
        CREATE UNIQUE INDEX "reward_judgments_trajectoryId_key" ON reward_judgments ("trajectoryId");
    END IF;
END $$;
\ir psql/end.sql
