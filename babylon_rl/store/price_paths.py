"""Price and probability paths within hours, one point per minute, for plots."""

from collections import defaultdict
from collections.abc import Iterable

from babylon_rl.store.connection import Connection
from babylon_rl.store.market_data import FINITE
from babylon_rl.windows import window_of, window_start

Path = list[tuple[float, float]]

# One index range per series; the last of each minute counts, equal timestamps are ordered by id.
PRICES = f"""
    SELECT wanted.start, wanted.id, moved.minute, moved.price
    FROM unnest(%(starts)s::timestamp[], %(ids)s::text[]) AS wanted (start, id)
    CROSS JOIN LATERAL (
        SELECT DISTINCT ON (minute) floor(extract(epoch FROM "timestamp" - wanted.start) / 60)::int AS minute, price
        FROM public."StockPrice"
        WHERE "organizationId" = wanted.id AND "timestamp" >= wanted.start AND "timestamp" < wanted.start + interval '1 hour'
          AND price {FINITE}
        ORDER BY minute, "timestamp" DESC, id COLLATE "C" DESC
    ) moved
    ORDER BY 1, 2, 3
"""

PROBABILITIES = f"""
    SELECT wanted.start, wanted.id, moved.minute, moved.probability
    FROM unnest(%(starts)s::timestamp[], %(ids)s::text[]) AS wanted (start, id)
    CROSS JOIN LATERAL (
        SELECT DISTINCT ON (minute) floor(extract(epoch FROM "createdAt" - wanted.start) / 60)::int AS minute, "yesPrice" AS probability
        FROM public."PredictionPriceHistory"
        WHERE "marketId" = wanted.id AND "createdAt" >= wanted.start AND "createdAt" < wanted.start + interval '1 hour'
          AND "yesPrice" {FINITE}
        ORDER BY minute, "createdAt" DESC, id COLLATE "C" DESC
    ) moved
    ORDER BY 1, 2, 3
"""


def price_paths(connection: Connection, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    """Return price paths of (window, organization id) pairs.

    A path is (minutes since the window's start, dollars), at most 60 points; [] without a price.
    """
    return _paths(connection, PRICES, wanted)


def probability_paths(connection: Connection, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    """Return YES price paths of (window, market id) pairs.

    A path is (minutes since the window's start, 0..1), at most 60 points; [] without a price.
    """
    return _paths(connection, PROBABILITIES, wanted)


def _paths(connection: Connection, statement: str, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Path]:
    # An empty path also for pairs without a row.
    pairs = list(wanted)
    if not pairs:
        return {}
    parameters = {"starts": [window_start(window) for window, _ in pairs], "ids": [name for _, name in pairs]}
    paths: defaultdict[tuple[str, str], Path] = defaultdict(list)
    for start, name, minute, value in connection.execute(statement, parameters):
        # A minute's last value stands at the minute's end.
        paths[window_of(start), name].append((minute + 1.0, float(value)))
    return {pair: paths[pair] for pair in pairs}
