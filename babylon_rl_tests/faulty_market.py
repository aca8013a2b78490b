"""Market records of an hour and its neighbours for hypothesis: clashing names, doubled rows, prices that are none, late answers."""

import random
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from babylon_rl_tests.market_oracle import Tables
from babylon_rl_tests.market_rows import event, history, market, organization, price, question
from babylon_rl_tests.rows import START

# Several of them share an engine ticker, or a name, or are a word of one another.
COMPANIES = [
    ("openlie", "OpenLIE"), ("open-lie", "Open Lie"), ("openlie-inc", "OpenLIE"), ("mega-corporation", "Mega"),
    ("mega-corporate", "Mega Corp."), ("megacorporate", "A"), ("a", "AI (beta)"), ("über-corp", "Über"), ("x.ai", "X+"),
]  # fmt: skip
WORDS = [
    "OpenLIE", "openlie", "OPEN-LIE", "open lie", "OpenLIEs", "re-openlie", "openlie_x", "MEGACORPORAT", "mega", "Mega Corp.", "a", "A.",
    "ai (beta)", "Über", "ÜBERCORP", "x.ai", "x+", "xyai", "falls", ",", "'s", "\n", "é", "über-corp!",
]  # fmt: skip
PRICES = [
    0.01, 1.0, 50.0, 98.99, 99.0, 99.5, 100.0, 100.0, 100.0, 101.0, 101.01, 103.456, 250.0, 1e7, 99_999_999.996, 1e12, 0.0, -5.0,
    float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
MINUTES = [-90, -60, -5, -0.001, 0, 0, 0.001, 5, 5, 30, 59.999, 60, 61, 119.5]
INITIAL = [None, 0.0, -1.0, 100.0, 100.0, 55.5, 1e-9, float("nan"), float("inf")]
VOLUMES = [None, None, 0.0, 12.345, 1e14, float("nan")]
PROBABILITIES = [0.0, 1.0, 0.5, 0.25, 0.123456, 1e-7, 0.99996, float("nan"), 1.5]
DAYS_LATER = 60 * 24 * 3

minutes = st.sampled_from(MINUTES)
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)


@st.composite
def markets(draw: st.DrawFn) -> Tables:
    """Every table that a market's outcomes are read from, around rows.WINDOW; rows of a table have equal columns."""
    companies = draw(st.lists(st.sampled_from(COMPANIES), unique=True, max_size=6))
    asked = draw(st.lists(st.integers(1, 6), unique=True, max_size=4))
    bare = draw(st.lists(st.sampled_from(["m1", "m2", "0x3"]), unique=True, max_size=2))
    traded = [f"q{number}" for number in asked if draw(st.booleans())] + bare
    return {
        "Organization": [organization(slug, name, draw(st.sampled_from(INITIAL))) for slug, name in companies],
        "StockPrice": _shuffled(draw, [_price(draw, number, companies) for number in _some(draw, 24, companies)]),
        "Question": [_question(draw, number) for number in asked],
        "Market": [_market(draw, slug) for slug in traded],
        "PredictionPriceHistory": _shuffled(draw, [_history(draw, number, traded) for number in _some(draw, 12, traded)]),
        "WorldEvent": _shuffled(draw, _events(draw)),
    }  # fmt: skip


def _shuffled(draw: st.DrawFn, rows: list[Any]) -> list[Any]:
    chance: random.Random = draw(st.randoms(use_true_random=False))
    chance.shuffle(rows)
    return rows


def _some(draw: st.DrawFn, most: int, wanted: Any) -> range:
    """So many numbers as are drawn; none where nothing is ``wanted``."""
    return range(draw(st.integers(0, most)) if wanted else 0)


def _price(draw: st.DrawFn, number: int, companies: list[tuple[str, str]]) -> dict[str, Any]:
    slug = draw(st.sampled_from(companies))[0]
    return price(number, slug, draw(st.sampled_from(PRICES)), draw(minutes), volume=draw(st.sampled_from(VOLUMES)))


def _question(draw: st.DrawFn, number: int) -> dict[str, Any]:
    moments = st.sampled_from([*MINUTES, -1000, DAYS_LATER])
    created, updated = (START + timedelta(minutes=draw(moments)) for _ in range(2))
    return question(number, created=created, answer=draw(st.sampled_from([None, True, False])), updated=updated)


def _market(draw: st.DrawFn, slug: str) -> dict[str, Any]:
    moments = st.sampled_from([*MINUTES, DAYS_LATER])
    return market(
        slug, resolved=draw(st.booleans()), resolution=draw(st.sampled_from([None, True, False])),
        createdAt=START + timedelta(minutes=draw(moments)), endDate=START + timedelta(minutes=draw(moments)),
    )  # fmt: skip


def _history(draw: st.DrawFn, number: int, traded: list[str]) -> dict[str, Any]:
    kind = draw(st.sampled_from(["trade"] * 9 + ["resolution"]))
    return history(number, draw(st.sampled_from(traded)), draw(st.sampled_from(PROBABILITIES)), draw(minutes), kind)


def _events(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = [_event(draw, number) for number in range(draw(st.sampled_from([0, 0, 1, 2, 5, 8])))]
    many: bool = draw(st.booleans())
    again = range(100, 125) if found and many else ()
    return found + [found[0] | {"id": f"e{number}", "description": f"{found[0]['description']} {number}"} for number in again]


def _event(draw: st.DrawFn, number: int) -> dict[str, Any]:
    actors: list[str | None] | None = draw(st.none() | st.lists(st.none() | texts, max_size=2))
    return event(number, draw(minutes), draw(texts), actors, draw(st.sampled_from([None, 1, 2, 3, 99])))
