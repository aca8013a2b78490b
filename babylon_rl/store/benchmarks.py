"""Benchmark results per market, reports, release decisions, confirmations, and the leaderboard's evidence."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from babylon_rl.errors import MarketError
from babylon_rl.store.columns import camel, document_of, listed
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.types import BenchmarkReport

_PLAYED_MARKETS = """
SELECT r."identity", r."snapshot", r."market" FROM babylon_rl.benchmark_results r
WHERE r."model" = %s AND starts_with(r."snapshot", %s)
ORDER BY r."playedAt" DESC, r."identity", r."snapshot", r."market"
"""

# A run that ended after it had recorded the decision leaves a confirmation that did not end, or a pass without a rollout. The latter for a
# day: older ones were decided before there were rollouts, or refused.
_UNDECIDED = """
SELECT b."batchId", p."completedAt"
FROM babylon_rl.batches b JOIN public.training_batches p USING ("batchId") LEFT JOIN babylon_rl.releases r USING ("batchId")
WHERE b."state" = 'completed' AND p."completedAt" IS NOT NULL
  AND (r."batchId" IS NULL
       OR NOT EXISTS (SELECT FROM babylon_rl.rollouts o WHERE o."version" = b."version")
          AND (r."decision" = 'pass' AND r."decidedAt" > %s::timestamp - interval '1 day'
               OR EXISTS (SELECT FROM babylon_rl.confirmations c WHERE c."version" = b."version" AND c."endedAt" IS NULL)))
ORDER BY p."completedAt" DESC
"""


# NULL parameters leave the stored values; evalMetrics is merged, and replaced if it is not an object.
_SCORE_MODEL = """
UPDATE public.trained_models SET
    "benchmarkScore" = COALESCE(%s, "benchmarkScore"), accuracy = COALESCE(%s, accuracy), "updatedAt" = %s,
    "evalMetrics" = CASE jsonb_typeof("evalMetrics") WHEN 'object' THEN "evalMetrics" ELSE '{}' END || %s
WHERE version = %s AND "trainingBatch" = %s
"""
_CONFIRMING = 0x636F6E6669726D  # "confirm": one number at a time


READINGS = ("follows", "otherMarket", "against", "hold", "trades", "unusable")


@dataclass
class Errors:
    """Decisions at headlines of a kind, or at one text.

    ``usd`` are expected dollars of the decisions, ``following_usd`` of following each headline with the decision's own stake (the usual one
    where it has none), or of holding where the headline says no direction.
    """

    name: str
    direction: int = 0
    found: Counter[str] = field(default_factory=Counter)
    usd: float = 0.0
    following_usd: float = 0.0

    @property
    def decisions(self) -> int:
        return self.found.total()

    @property
    def lost_usd(self) -> float:
        """Expected dollars below following."""
        return self.following_usd - self.usd

    def __add__(self, other: "Errors") -> "Errors":
        usd, following = self.usd + other.usd, self.following_usd + other.following_usd
        return Errors(self.name, self.direction, self.found + other.found, usd, following)

    @property
    def document(self) -> dict[str, object]:
        """JSON values: shares 0..1, dollars a decision."""
        of = max(1, self.decisions)
        return {
            "name": self.name, "direction": self.direction, "decisions": self.decisions,
            **{reading: self.found[reading] / of for reading in READINGS},
            "usd": self.usd / of, "followingUsd": self.following_usd / of, "lostUsd": self.lost_usd,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class MarketResult:
    """One player's hour alone in one market.

    ``actions`` counts buy, sell and hold among the valid decisions, ``refused`` those of them that the exchange did not carry out;
    ``predictions`` are the decisions that opened a position, right when their direction was the market's over the tick, and ``staked_usd``
    the sum of their stakes, leverage included; ``equity_usd`` is the P&L after every tick. ``expected_usd`` and ``errors`` (by
    kind of headline) of the decisions and ``ceiling_usd`` of the best play are not stored: they are computed where decisions are at hand.
    """

    snapshot: str
    pnl_usd: float
    wins: int
    losses: int
    trades: int
    decisions: int
    invalid: int
    actions: Mapping[str, int]
    predictions: int
    predictions_right: int
    equity_usd: Sequence[float]
    refused: int = 0
    staked_usd: float = 0.0
    expected_usd: float | None = None
    ceiling_usd: float | None = None
    errors: Sequence[Errors] = ()

    @property
    def pnl_path(self) -> list[float]:
        return [0.0, *self.equity_usd]

    def __post_init__(self) -> None:
        """Check that the counts agree with each other. Raises MarketError: they contradict each other."""
        # Every decision is one action or invalid, and has one P&L after it.
        sums = sum(self.actions.values()) + self.invalid == self.decisions == len(self.equity_usd)
        ranges = self.wins + self.losses <= self.trades and self.predictions_right <= self.predictions <= self.trades
        orders = self.trades + self.refused <= self.decisions - self.invalid
        finite = all(map(math.isfinite, (self.pnl_usd, *self.equity_usd)))
        if not (sums and ranges and orders and finite and abs(self.equity_usd[-1] - self.pnl_usd) < 1e-6):
            raise MarketError(f"The result of {self.snapshot} contradicts itself: {self!r}. It was not counted.")


_ACTIONS = {"buy": "buys", "sell": "sells", "hold": "holds"}
_FACTS = [one.name for one in fields(MarketResult) if one.name not in ("actions", "expected_usd", "ceiling_usd", "errors")]
_RESULT = [*map(camel, _FACTS), *_ACTIONS.values()]
# A result counts only for the same market content (fingerprint) and the same model identity.
_RESULTS = f"""
SELECT {listed(_RESULT, "r")}
FROM babylon_rl.benchmark_results r
JOIN unnest(%s::text[], %s::text[]) AS wanted("snapshot", "market") USING ("snapshot", "market")
WHERE r."model" = %s AND r."identity" = %s
"""
_PLAYED = f"""
SELECT r."model", r."identity", r."playedAt", {listed(_RESULT, "r")}
FROM babylon_rl.benchmark_results r WHERE r."playedAt" >= %s AND r."playedAt" < %s
ORDER BY r."playedAt", r."model", r."identity", r."snapshot", r."market"
"""


def read_results(connection: Connection, model: str, identity: str, markets: Mapping[str, str]) -> dict[str, MarketResult]:
    """Return the stored results of ``model`` by snapshot id. ``markets`` maps snapshot id to fingerprint."""
    rows = connection.execute(_RESULTS, [list(markets), list(markets.values()), model, identity])
    return {row[0]: _result(row) for row in rows}


def played_markets(connection: Connection, model: str, prefix: str) -> list[tuple[str, str, str]]:
    """Weights' identity, snapshot id and fingerprint of each market of a ``prefix`` that a model has played, the newest first."""
    return connection.execute(_PLAYED_MARKETS, [model, prefix]).fetchall()


def played_results(connection: Connection, since: datetime, until: datetime) -> Iterator[tuple[str, str, datetime, MarketResult]]:
    """Yield model name, weights' hash, time of storing and result of all players' results of a time, ``until`` excluded, in order.

    One transaction, a part in memory at a time.
    """
    with connection.transaction(), connection.cursor(name="played_results") as cursor:
        for model, identity, played_at, *row in cursor.execute(_PLAYED, [since, until]):
            yield model, identity, played_at, _result(row)


def write_results(
    connection: Connection, model: str, identity: str, markets: Mapping[str, str], results: Iterable[MarketResult], now: datetime
) -> None:
    """Store results and commit; results already stored stay unchanged."""
    player = {"model": model, "identity": identity, "playedAt": now}
    rows = [
        player
        | {"market": markets[result.snapshot], **document_of(result, *_FACTS)}
        | {column: result.actions[action] for action, column in _ACTIONS.items()}
        for result in results
    ]
    with own_transaction(connection):
        connection.insert("babylon_rl.benchmark_results", rows, "ON CONFLICT DO NOTHING")


def passed_versions(connection: Connection) -> set[str]:
    return set(connection.column("""SELECT "version" FROM babylon_rl.benchmark_reports WHERE "decision" = 'pass'"""))


def write_report(connection: Connection, report: BenchmarkReport) -> None:
    with own_transaction(connection):
        connection.upsert("babylon_rl.benchmark_reports", [report], keys=("batchId",))


def read_report(connection: Connection, batch_id: str) -> BenchmarkReport | None:
    return connection.first(BenchmarkReport, 'babylon_rl.benchmark_reports WHERE "batchId" = %s', [batch_id])


def read_reports(connection: Connection) -> dict[str, BenchmarkReport]:
    return {report.batch_id: report for report in connection.rows(BenchmarkReport, "babylon_rl.benchmark_reports")}


def undecided_batches(connection: Connection, now: datetime) -> dict[str, datetime]:
    """Return our completed batches without a release decision, newest first, with their completion time.

    Also those whose run ended between the decision and the rollout that follows from it.
    """
    return dict(connection.execute(_UNDECIDED, (now,)).fetchall())


def write_release(
    connection: Connection, report: BenchmarkReport, score: float | None, accuracy: float | None, metrics: Mapping[str, Any], now: datetime
) -> None:
    """Store a release decision and the measured values in one transaction. ``metrics`` is merged into evalMetrics."""
    # The measured gain: dollars an hour above the reference, mean over the markets; None without a reference.
    measured = next((row.get("improvement") for row in report.rows if row["model"] == report.version), None)
    with own_transaction(connection):
        # Together: the admin page and the game never see a decision without the numbers behind it.
        decided = document_of(report, "batch_id", "version", "decision", "reason")
        row = decided | {"reportVersion": report.data_version, "decidedAt": now}
        connection.upsert("babylon_rl.releases", [row], keys=("batchId",))
        connection.execute(_SCORE_MODEL, [score, accuracy, now, Jsonb(dict(metrics)), report.version, report.batch_id])
        connection.execute('UPDATE public.training_batches SET "policyImprovement" = %s WHERE "batchId" = %s', [measured, report.batch_id])


def _result(row: Sequence[Any]) -> MarketResult:
    facts = dict(zip(_FACTS, row, strict=False))
    actions = dict(zip(_ACTIONS, row[len(_FACTS) :], strict=True))
    return MarketResult(**{**facts, "equity_usd": tuple(facts["equity_usd"]), "actions": actions})


_IDENTITIES = """
SELECT "model", "identity" FROM babylon_rl.benchmark_results WHERE "model" = ANY(%s)
GROUP BY "model", "identity" ORDER BY max("playedAt") DESC, "identity"
"""


def read_identities(connection: Connection, models: Sequence[str]) -> dict[str, list[str]]:
    """Return the weight identities with stored results by model, newest first."""
    identities: dict[str, list[str]] = {model: [] for model in models}
    for model, identity in connection.execute(_IDENTITIES, [list(models)]):
        identities[model].append(identity)
    return identities


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Test of a version against ``reference`` (None: base); under way without ``ended_at``. ``improvement`` is in dollars an hour."""

    number: int
    version: str
    reference: str | None
    level: float
    first_market: int
    markets: int
    begun_at: datetime
    improvement: float | None
    p: float | None
    ended_at: datetime | None

    @property
    def confirmed(self) -> bool:
        return self.p is not None and self.p <= self.level and (self.improvement or 0) > 0


def read_confirmations(connection: Connection) -> list[Confirmation]:
    return connection.rows(Confirmation, 'babylon_rl.confirmations ORDER BY "number"')


def begin_confirmation(
    connection: Connection, version: str, reference: str | None, markets: int, level_after: Callable[[Sequence[bool]], float], now: datetime
) -> Confirmation:
    """Reserve level and markets of a version's confirmation, and commit. One that has begun goes on with its own.

    ``level_after`` gives the level from the outcomes of all earlier ones. No market is used twice.
    """
    with own_transaction(connection):
        # Number, level and markets follow from all earlier tests, so two beginnings take turns.
        connection.take_lock(_CONFIRMING)
        earlier = read_confirmations(connection)
        # A version is tested once (docs/decisions/0007): an interrupted test keeps the level and the markets that were fixed before it.
        own = next((test for test in earlier if test.version == version), None)
        if own is not None:
            return own
        number = len(earlier) + 1
        first = max((test.first_market + test.markets for test in earlier), default=0)
        # A test that has not ended counts as no discovery.
        level = level_after([test.confirmed for test in earlier])
        begun = Confirmation(number, version, reference, level, first, markets, now, None, None, None)
        connection.insert("babylon_rl.confirmations", [begun])
    return begun


def end_confirmation(connection: Connection, number: int, improvement: float, p: float, now: datetime) -> None:
    """Record the outcome of a confirmation and commit; one that has an outcome keeps it."""
    with own_transaction(connection):
        connection.execute(
            'UPDATE babylon_rl.confirmations SET "improvement" = %s, "p" = %s, "endedAt" = %s WHERE "number" = %s AND "endedAt" IS NULL',
            [improvement, p, now, number],
        )
