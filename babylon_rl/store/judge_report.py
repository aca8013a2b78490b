"""Queries for the judge's report: judged hours, episodes, answers, costs, calibrations.

A head is one small row per hour; larger content is read for some hours at a time, or summed in the database.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from babylon_rl.store.columns import columns_of, document_of, listed
from babylon_rl.store.connection import Connection, own_transaction

REPORT_DAYS = 14  # of a report for which nobody names hours
_NEWEST = """
    SELECT greatest((SELECT max("window") FROM babylon_rl.group_scores), (SELECT max("window") FROM babylon_rl.judge_quarantine))
"""
_JUDGES = """
    SELECT "judge", count(*) FROM babylon_rl.group_scores WHERE "window" >= %s AND "window" < %s GROUP BY 1 ORDER BY 2 DESC, 1
"""
_HEADS = """
    SELECT "window", "judgeVersion", "inputVersion", "groupSize", "spread", "disagreement", "stale",
        COALESCE(("judgement" ->> 'orders')::int, 0), ("judgement" ->> 'tau')::float8, ("judgement" ->> 'masked')::boolean,
        "judgement" -> 'words', COALESCE(jsonb_array_length("judgement" -> 'followed'), 0)
    FROM babylon_rl.group_scores WHERE "judge" = %s AND "window" >= %s AND "window" < %s ORDER BY 1
"""
_EPISODES = """
    SELECT s."window", s."agentId", s."score", s."orderScores", s."places", s."shownTokens", cardinality(s."flags"), e."windowPnl", s."gain"
    FROM babylon_rl.episode_scores s LEFT JOIN babylon_rl.episodes e ON e."window" = s."window" AND e."agentId" = s."agentId"
    WHERE s."window" = ANY(%s) ORDER BY s."window", s."agentId"
"""
# Hours of the range without scores: in quarantine, and pending.
_WITHOUT = """
    SELECT (SELECT count(*) FROM babylon_rl.judge_quarantine WHERE "judge" = %(judge)s AND "window" >= %(first)s AND "window" < %(end)s),
           (SELECT count(*) FROM babylon_rl.judge_pending WHERE "judge" = %(judge)s AND "window" >= %(first)s AND "window" < %(end)s)
"""
# Answers about the same content as the stored scores. The heuristic has no request of its own: then the content asked about last.
_SAME_CONTENT = """
    FROM babylon_rl.judge_requests asked JOIN babylon_rl.group_scores held ON held."window" = asked."window"
    WHERE asked."judge" = %s AND asked."window" = ANY(%s) AND NOT asked."retired" AND asked."scores" IS NOT NULL
        AND asked."shownVersion" = CASE WHEN held."judgement" ->> 'masked' = 'true' THEN held."judgement" ->> 'masked_version'
            WHEN held."shownVersion" <> '' THEN held."shownVersion" ELSE (
            SELECT newest."shownVersion" FROM babylon_rl.judge_requests newest
            WHERE newest."window" = asked."window" AND newest."judge" = asked."judge" AND NOT newest."retired"
                AND newest."scores" IS NOT NULL ORDER BY newest."id" DESC LIMIT 1) END
"""
_ANSWERS = f"""
    SELECT DISTINCT ON (asked."window", asked."order", asked."part") asked."window", asked."order", asked."scores"
    {_SAME_CONTENT} ORDER BY asked."window", asked."order", asked."part", asked."id" DESC
"""
# NULL tokens and prices are counted separately, so that a sum is never mistaken for a total.
_COSTS = """
    SELECT "judge", count(*), count(*) FILTER (WHERE cardinality("faults") > 0), sum("tries" - 1),
        COALESCE(sum("promptTokens"), 0), COALESCE(sum("completionTokens"), 0),
        count(*) FILTER (WHERE "promptTokens" IS NULL OR "completionTokens" IS NULL), COALESCE(sum("usd"), 0),
        count(*) FILTER (WHERE "usd" IS NULL), percentile_cont(0.5) WITHIN GROUP (ORDER BY "latencySeconds"),
        percentile_cont(0.95) WITHIN GROUP (ORDER BY "latencySeconds")
    FROM babylon_rl.judge_requests WHERE "window" >= %s AND "window" < %s GROUP BY 1 ORDER BY 1
"""
_IN_USE = """
    SELECT COALESCE(sum(("judgement" ->> 'requests')::int), 0) FROM babylon_rl.group_scores
    WHERE "judge" = %s AND "window" >= %s AND "window" < %s
"""
# A day is the date part of the window id.
_DAYS = """
    SELECT left("window", 10), count(*), count(DISTINCT "window"), COALESCE(sum("promptTokens"), 0), COALESCE(sum("completionTokens"), 0),
        COALESCE(sum("usd"), 0), count(*) FILTER (WHERE "usd" IS NULL)
    FROM babylon_rl.judge_requests WHERE "window" >= %s AND "window" < %s GROUP BY 1 ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class JudgedHour:
    """Summary of one judged hour.

    ``orders`` is 0 for the heuristic, ``tau`` None where no two orders rank. ``masked`` is True if the scores are those with flagged
    sentences masked, None where nothing was flagged. ``words`` is the gain of agents' own words, of an hour of the sample, and ``followed``
    the number of agents whose score follows them.
    """

    window: str
    judge_version: str
    input_version: str
    group_size: int
    spread: float
    disagreement: float
    stale: bool
    orders: int
    tau: float | None
    masked: bool | None = None
    words: Mapping[str, float] | None = None
    followed: int = 0


@dataclass(frozen=True, slots=True)
class JudgedEpisode:
    """One episode of a judged hour. ``places`` are 0 (first) to 1 (last) by order; ``gain``: of flagged passages, None without."""

    window: str
    agent_id: str
    score: float
    order_scores: Sequence[float]
    places: Sequence[float]
    shown_tokens: int
    flags: int
    pnl_usd: float | None
    gain: float | None = None


@dataclass(frozen=True, slots=True)
class JudgeCost:
    """Cost of one judge over some hours, retired answers included. Tokens and ``usd`` are sums of the known values."""

    judge: str
    answers: int
    unusable: int
    retries: int
    prompt_tokens: int
    completion_tokens: int
    without_tokens: int
    usd: float
    without_usd: int
    latency_s: float
    slow_latency_s: float


@dataclass(frozen=True, slots=True)
class JudgeCostDay:
    """Cost of the hours of one UTC day (YYYY-MM-DD), over all judges."""

    day: str
    answers: int
    hours: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    without_usd: int


def newest_judged(connection: Connection) -> str | None:
    """Return the newest window with scores or in quarantine."""
    return connection.value(_NEWEST)


def newest_judgement(connection: Connection) -> datetime | None:
    return connection.value('SELECT max("judgedAt") FROM babylon_rl.group_scores')


def judges_of(connection: Connection, first: str, end: str) -> dict[str, int]:
    """Count the hours scored by each judge in a range, most first."""
    return dict(connection.execute(_JUDGES, (first, end)).fetchall())


def judged_hours(connection: Connection, judge: str, first: str, end: str) -> list[JudgedHour]:
    return [JudgedHour(*row) for row in connection.execute(_HEADS, (judge, first, end))]


def judged_episodes(connection: Connection, windows: Sequence[str]) -> dict[str, list[JudgedEpisode]]:
    """Return the scored episodes by window, in order of agent."""
    episodes: defaultdict[str, list[JudgedEpisode]] = defaultdict(list)
    for row in connection.execute(_EPISODES, (list(windows),)):
        episodes[row[0]].append(JudgedEpisode(*row))
    return dict(episodes)


def without_scores(connection: Connection, judge: str, first: str, end: str) -> tuple[int, int]:
    """Count the hours of a range in quarantine and pending for ``judge``."""
    quarantined, pending = connection.row(_WITHOUT, {"judge": judge, "first": first, "end": end})
    return quarantined, pending


def answered_windows(connection: Connection, judge: str, windows: Sequence[str]) -> list[str]:
    """Return those of ``windows`` with a usable answer of ``judge`` about the same content as the scores, in order."""
    return sorted(window for (window,) in connection.execute(f'SELECT DISTINCT asked."window" {_SAME_CONTENT}', (judge, list(windows))))


def answered_scores(connection: Connection, judge: str, windows: Sequence[str]) -> dict[str, dict[int, list[dict[str, float]]]]:
    """Return the judge's answers about the scores' content: window -> order -> agent -> score for each part of the group."""
    answers: dict[str, dict[int, list[dict[str, float]]]] = {}
    for window, order, scores in connection.execute(_ANSWERS, (judge, list(windows))):
        answers.setdefault(window, {}).setdefault(order, []).append(scores)
    return answers


def paid(connection: Connection, first: str, end: str) -> list[JudgeCost]:
    return [JudgeCost(*row) for row in connection.execute(_COSTS, (first, end))]


def answers_in_use(connection: Connection, judge: str, first: str, end: str) -> int:
    """Count the answers behind the scores of a range, which a second run would find in the cache."""
    return int(connection.value(_IN_USE, (judge, first, end)) or 0)


def paid_days(connection: Connection, first: str, end: str) -> list[JudgeCostDay]:
    """Return the cost of a range by day; days without requests are absent."""
    return [JudgeCostDay(*row) for row in connection.execute(_DAYS, (first, end))]


# One row per hour with scores, in quarantine or pending. The lateral query gathers its episodes as parallel arrays, in order of agent.
_VERDICTS = r"""
    SELECT asked."window", g."judge", COALESCE(g."groupSize", 0), COALESCE(g."spread", 0), COALESCE(g."disagreement", 0),
        COALESCE(("judgement" ->> 'orders')::int, 0), q."reason", p."reason",
        m."meanChange", m."volatility", COALESCE(h."leaked", 0), COALESCE(("judgement" ->> 'steps')::int, 0),
        COALESCE(("judgement" ->> 'shortened')::int, 0), COALESCE(("judgement" ->> 'decisions_shortened')::int, 0),
        s."agents", s."scores", s."pnls", s."trades", s."flags", s."tells",
        s."gains", ("judgement" ->> 'masked')::boolean, ("judgement" ->> 'noise')::float8,
        COALESCE(jsonb_array_length("judgement" -> 'context_flags'), 0), COALESCE("judgement" -> 'followed', '[]')
    FROM unnest(%(windows)s::text[]) AS asked ("window")
    LEFT JOIN babylon_rl.group_scores g ON g."window" = asked."window"
    LEFT JOIN babylon_rl.judge_quarantine q ON q."window" = asked."window"
    LEFT JOIN babylon_rl.judge_pending p ON p."window" = asked."window"
    LEFT JOIN babylon_rl.market_windows m ON m."window" = asked."window"
    LEFT JOIN babylon_rl.hindsight h ON h."window" = asked."window"
    LEFT JOIN LATERAL (
        SELECT array_agg(one."agentId" ORDER BY one."agentId") AS "agents", array_agg(one."score" ORDER BY one."agentId") AS "scores",
            array_agg(e."windowPnl" ORDER BY one."agentId") AS "pnls", array_agg(e."trades" ORDER BY one."agentId") AS "trades",
            array_agg(cardinality(one."flags") ORDER BY one."agentId") AS "flags",
            array_agg(one."reasoning" ~* '\mhidden\M' ORDER BY one."agentId") AS "tells",
            array_agg(one."gain" ORDER BY one."agentId") AS "gains"
        FROM babylon_rl.episode_scores one
        LEFT JOIN babylon_rl.episodes e ON e."window" = one."window" AND e."agentId" = one."agentId"
        WHERE one."window" = asked."window"
    ) s ON TRUE
    WHERE g."window" IS NOT NULL OR q."window" IS NOT NULL OR p."window" IS NOT NULL ORDER BY 1
"""

_EXPLANATIONS = 'SELECT "window", "agentId", "reasoning" FROM babylon_rl.episode_scores WHERE "window" = ANY(%s)'


@dataclass(frozen=True, slots=True)
class HourVerdicts:
    """Judge results of one hour, for its checks.

    Without scores ``judge`` is None and the sequences are empty. Of ``steps``, the judge saw ``shortened`` in short form,
    ``decisions_shortened`` trades among them.

    The sequences run over the episodes in order of agent: ``trades`` and ``pnls_usd`` (None if the episode no longer exists), ``flags`` in
    its text, ``tells`` (the reasoning has the word "hidden"). ``gains``: score gained by flagged passages, None where nothing was masked.
    ``masked`` and ``noise`` are the judgement's; ``context_flags`` counts suspicions in news, questions and shared lines, and
    ``followed`` are the agents whose score follows their words.
    """

    window: str
    judge: str | None
    group_size: int
    spread: float
    disagreement: float
    orders: int
    quarantined: str | None
    pending: str | None
    mean_change: float | None
    volatility: float | None
    leaked: int
    steps: int
    shortened: int
    decisions_shortened: int
    agents: Sequence[str]
    scores: Sequence[float]
    pnls_usd: Sequence[float | None]
    trades: Sequence[int | None]
    flags: Sequence[int]
    tells: Sequence[bool]
    gains: Sequence[float | None] = ()
    masked: bool | None = None
    noise: float | None = None
    context_flags: int = 0
    followed: Sequence[str] = ()


def hour_verdicts(connection: Connection, windows: Sequence[str]) -> list[HourVerdicts]:
    """Return the judge results of ``windows`` with scores, in quarantine or pending, in order."""
    # The middle of a row are the parallel arrays, which are NULL in an hour without scores.
    rows = connection.execute(_VERDICTS, {"windows": list(windows)})
    return [HourVerdicts(*row[:14], *(values or [] for values in row[14:21]), *row[21:]) for row in rows]


def explanations(connection: Connection, windows: Sequence[str]) -> dict[tuple[str, str], str]:
    return {(window, agent): reasoning for window, agent, reasoning in connection.execute(_EXPLANATIONS, (list(windows),))}


_INTERVALS = ("expected", "realized", "money", "overMoney")


@dataclass(frozen=True, slots=True)
class JudgeAgreement:
    """Rank correlations between one judge setting and market results within an hour.

    Each measure is (mean, low, high) over ``hours`` hours. ``expected``: scores with expected P&L. ``realized``: scores with realized P&L.
    ``money``: realized with expected P&L. ``over_money``: ``expected`` less ``money``. ``without_spread`` hours had one score for all and
    count as 0; ``not_judged`` hours are left out. ``rows`` has an object per agent: name, expected and its standard error, realized
    (dollars an hour), score, rank (means).
    """

    judge: str
    judge_version: str
    orders: int
    hours: int
    agents: int
    skill_markets: int
    seed: int
    without_spread: int
    not_judged: int
    expected: Sequence[float]
    realized: Sequence[float]
    money: Sequence[float]
    over_money: Sequence[float]
    rows: Sequence[Mapping[str, Any]]
    measured_at: datetime

    @property
    def document(self) -> dict[str, Any]:
        plain = document_of(self)
        return {
            **plain,
            **{name: dict(zip(("mean", "low", "high"), plain[name], strict=True)) for name in _INTERVALS},
            "rows": [dict(row) for row in self.rows],
            "measuredAt": f"{self.measured_at.isoformat(timespec='seconds')}Z",
        }


_AGREEMENTS = f"""
    SELECT {listed(columns_of(JudgeAgreement))} FROM babylon_rl.judge_agreements
    ORDER BY "expected"[1] DESC, "judge", "judgeVersion", "orders"
"""


def judge_agreements(connection: Connection) -> list[JudgeAgreement]:
    """Return the newest calibration of every judge setting, best agreement first; empty without the table."""
    if not connection.has_table("babylon_rl.judge_agreements"):
        return []
    return [JudgeAgreement(*row) for row in connection.execute(_AGREEMENTS)]


def write_judge_agreement(connection: Connection, agreement: JudgeAgreement) -> None:
    row = document_of(agreement) | {"rows": [dict(row) for row in agreement.rows], "measuredAt": agreement.measured_at}
    with own_transaction(connection):
        connection.upsert("babylon_rl.judge_agreements", [row], keys=("judge", "judgeVersion", "orders"))
