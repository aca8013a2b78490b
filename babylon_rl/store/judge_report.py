"""Queries for the judge's report: judged hours, episodes, answers, costs, calibrations.

A head is one small row per hour; larger content is read for some hours at a time, or summed in the database.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from babylon_rl.store import scores
from babylon_rl.store.columns import document_of
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.types import EpisodeScore, GroupScores, Judgement

REPORT_DAYS = 14  # of a report for which nobody names hours
_NEWEST = """
    SELECT greatest((SELECT max("window") FROM babylon_rl.group_scores), (SELECT max("window") FROM babylon_rl.judge_quarantine))
"""
_JUDGES = """
    SELECT "judge", count(*) FROM babylon_rl.group_scores WHERE "window" >= %s AND "window" < %s GROUP BY 1 ORDER BY 2 DESC, 1
"""
_HEADS = """
    SELECT "window", "groupSize", "stale", COALESCE(("judgement" ->> 'requests')::int, 0) FROM babylon_rl.group_scores
    WHERE "judge" = %s AND "window" >= %s AND "window" < %s ORDER BY 1
"""
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
    SELECT {by}, count(DISTINCT "window"), count(*), count(*) FILTER (WHERE cardinality("faults") > 0), sum("tries" - 1),
        COALESCE(sum("promptTokens"), 0), COALESCE(sum("completionTokens"), 0),
        count(*) FILTER (WHERE "promptTokens" IS NULL OR "completionTokens" IS NULL), COALESCE(sum("usd"), 0),
        count(*) FILTER (WHERE "usd" IS NULL), percentile_cont(0.5) WITHIN GROUP (ORDER BY "latencySeconds"),
        percentile_cont(0.95) WITHIN GROUP (ORDER BY "latencySeconds")
    FROM babylon_rl.judge_requests WHERE "window" >= %s AND "window" < %s GROUP BY 1 ORDER BY 1
"""
BY_JUDGE, BY_DAY = '"judge"', 'left("window", 10)'  # a window id begins with its date


class JudgedHour(NamedTuple):
    """An hour with scores. ``answers`` are those behind them, which a second run would find in the cache."""

    window: str
    group_size: int
    stale: bool
    answers: int


@dataclass(frozen=True, slots=True)
class JudgeCost:
    """Cost of one judge or of one UTC day's hours, retired answers included. Tokens and ``usd`` are sums of the known values."""

    of: str
    hours: int
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


def without_scores(connection: Connection, judge: str, first: str, end: str) -> tuple[int, int]:
    """Count the hours of a range in quarantine and pending for ``judge``."""
    quarantined, pending = connection.row(_WITHOUT, {"judge": judge, "first": first, "end": end})
    return quarantined, pending


def answered_windows(connection: Connection, judge: str, windows: Sequence[str]) -> list[str]:
    """Return those of ``windows`` with a usable answer of ``judge`` about the same content as the scores, in order."""
    return sorted(connection.column(f'SELECT DISTINCT asked."window" {_SAME_CONTENT}', (judge, list(windows))))


def answered_scores(connection: Connection, judge: str, windows: Sequence[str]) -> dict[str, dict[int, list[dict[str, float]]]]:
    """Return the judge's answers about the scores' content: window -> order -> agent -> score for each part of the group."""
    answers: dict[str, dict[int, list[dict[str, float]]]] = {}
    for window, order, given in connection.execute(_ANSWERS, (judge, list(windows))):
        answers.setdefault(window, {}).setdefault(order, []).append(given)
    return answers


def paid(connection: Connection, by: str, first: str, end: str) -> list[JudgeCost]:
    """Return the cost of a range BY_JUDGE or BY_DAY (YYYY-MM-DD); those without requests are absent."""
    return [JudgeCost(*row) for row in connection.execute(_COSTS.format(by=by), (first, end))]


_FACTS = """
    SELECT asked."window", q."reason", p."reason", m."meanChange", m."volatility", COALESCE(h."leaked", 0)
    FROM unnest(%s::text[]) AS asked ("window")
    LEFT JOIN babylon_rl.judge_quarantine q ON q."window" = asked."window"
    LEFT JOIN babylon_rl.judge_pending p ON p."window" = asked."window"
    LEFT JOIN babylon_rl.market_windows m ON m."window" = asked."window"
    LEFT JOIN babylon_rl.hindsight h ON h."window" = asked."window" ORDER BY 1
"""
_PLAYED = 'SELECT "window", "agentId", "windowPnl", "trades" FROM babylon_rl.episodes WHERE "window" = ANY(%s)'


@dataclass(frozen=True, slots=True)
class HourVerdicts:
    """Judge results of one hour, beside what its agents did.

    ``held`` are its scores, None without any; ``quarantined`` and ``pending`` the reasons why it is set aside or waits. ``played`` has P&L
    (dollars) and trades of each episode that exists. ``leaked`` counts sequences, ``telling`` are agents whose explanation repeats what is
    hidden from them.
    """

    window: str
    held: GroupScores | None
    played: Mapping[str, tuple[float, int]]
    quarantined: str | None
    pending: str | None
    mean_change: float | None
    volatility: float | None
    leaked: int
    telling: Sequence[str] = ()

    @property
    def group(self) -> GroupScores:
        """The scores of an hour that has some."""
        assert self.held is not None
        return self.held

    @property
    def judgement(self) -> Judgement:
        """The judgement of an hour that a language model scored."""
        assert self.group.judgement is not None
        return self.group.judgement

    @property
    def scores(self) -> list[EpisodeScore]:
        """Scores in order of agent."""
        return [] if self.held is None else sorted(self.held.scores, key=lambda score: score.agent_id)


def hour_verdicts(connection: Connection, windows: Sequence[str]) -> list[HourVerdicts]:
    """Return the judge results of ``windows`` with scores, in quarantine or pending, in order."""
    held = scores.read(connection, windows)
    played: defaultdict[str, dict[str, tuple[float, int]]] = defaultdict(dict)
    for window, agent, pnl_usd, trades in connection.execute(_PLAYED, [list(windows)]):
        played[window][agent] = pnl_usd, trades
    hours = [HourVerdicts(row[0], held.get(row[0]), played[row[0]], *row[1:]) for row in connection.execute(_FACTS, [list(windows)])]
    return [hour for hour in hours if (hour.held, hour.quarantined, hour.pending) != (None, None, None)]


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
            "measuredAt": f"{self.measured_at.isoformat(timespec='seconds')}Z",
        }


def judge_agreements(connection: Connection) -> list[JudgeAgreement]:
    """Return the newest calibration of every judge setting, best agreement first; empty without the table."""
    if not connection.has_table("babylon_rl.judge_agreements"):
        return []
    best_first = 'ORDER BY "expected"[1] DESC, "judge", "judgeVersion", "orders"'
    return connection.rows(JudgeAgreement, f"babylon_rl.judge_agreements {best_first}")


def write_judge_agreement(connection: Connection, agreement: JudgeAgreement) -> None:
    with own_transaction(connection):
        connection.upsert("babylon_rl.judge_agreements", [agreement], keys=("judge", "judgeVersion", "orders"))
