"""What an hour's market records mean, written down a second time: the plain reading that property tests hold the fast one against.

Takes the rows as they were inserted (dicts by column, by table) and nothing of the package that it judges. Where the rules leave a
choice, the comment says which one this is.
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

Row = dict[str, Any]
Tables = dict[str, list[Row]]
_MOST_CHANGE = 1e12  # percent: where means stay numbers


def market_of(window: str, tables: Tables, band: float = 1.0) -> dict[str, Any]:
    """``stocks`` and ``predictions`` of one hour with all their fields, in order; empty where nothing was recorded."""
    start = datetime.strptime(window, "%Y-%m-%dT%H:00")
    end = start + timedelta(hours=1)
    happened = [event for event in _sorted(tables["WorldEvent"], "timestamp") if start <= event["timestamp"] < end]
    stocks = _stocks(tables, start, end, happened, band)
    predictions = _predictions(tables, start, end, happened)
    moved = any(row.pop("moved") for row in stocks) | any(row.pop("moved") for row in predictions)
    if not happened and not moved:
        return {"stocks": [], "predictions": [], "mean": None, "volatility": None}
    changes = [stock["change_percent"] for stock in stocks]
    mean = math.fsum(changes) / len(changes) if changes else None
    return {
        "stocks": stocks,
        "predictions": predictions,
        "mean": mean,
        "volatility": statistics.pstdev(changes) if changes else None,
    }


def _sorted(rows: list[Row], moment: str) -> list[Row]:
    return sorted(rows, key=lambda row: (row[moment], row["id"]))


def _last(rows: list[Row], until: Callable[[Row], bool]) -> Row | None:
    found = [row for row in rows if until(row)]
    return found[-1] if found else None


def _is_number(value: float | None) -> bool:
    return value is not None and abs(value) <= 1e300  # a price that is no finite number is as good as absent


def _stocks(tables: Tables, start: datetime, end: datetime, happened: list[Row], band: float) -> list[Row]:
    found = []
    seen: Counter[str] = Counter()
    for company in sorted(tables["Organization"], key=lambda row: row["id"]):
        own = [row for row in tables["StockPrice"] if row["organizationId"] == company["id"] and row["timestamp"] < end]
        prices = _sorted([row for row in own if _is_number(row["price"])], "timestamp")
        if not prices:
            continue
        ticker = company["id"].upper().replace("-", "")[:12]
        seen[ticker] += 1
        volumes = [row["volume"] for row in own if row["timestamp"] >= start and _is_number(row["volume"])]
        before = _last(prices, lambda row: row["timestamp"] <= start)
        first, flags = _start_price(before, company["initialPrice"], [row["price"] for row in prices if row["timestamp"] > start])
        last = prices[-1]["price"]
        first = last if first is None else first
        change = max(-_MOST_CHANGE, min(_MOST_CHANGE, (last - first) / first * 100)) if first > 0 else 0.0
        found.append(
            {
                "ticker": ticker if seen[ticker] == 1 else f"{ticker}~{seen[ticker]}",
                "organization_id": company["id"],
                "start_price": first,
                "end_price": last,
                "change_percent": change,
                "sentiment": "BULLISH" if change > band else "BEARISH" if change < -band else "NEUTRAL",
                "news": _news(happened, {company["name"], company["id"], ticker}),
                "volume": sum(volumes) if volumes else None,
                "from_first": bool(flags),
                "moved": prices[-1]["timestamp"] >= start,
            }
        )
    return found


def _start_price(before: Row | None, initial: float | None, inside: list[float]) -> tuple[float | None, bool]:
    """The start price, and whether it is the hour's own first; one that is not positive is passed over."""
    if before is not None and before["price"] > 0:
        return before["price"], False
    if initial is not None and 0 < initial < math.inf:
        return initial, False
    return (inside[0] if inside else None), True


def _news(happened: list[Row], names: set[str]) -> list[str]:
    def named(event: Row) -> bool:
        return any(_says(text, name) for text in (event["description"], *(event["actors"] or ())) if text is not None for name in names)

    return [event["description"] for event in happened if named(event)][:20]


def _says(text: str, name: str) -> bool:
    """True where ``text`` holds ``name`` as whole words, whatever the case."""
    text, name, at = text.lower(), name.lower(), -1
    while (at := text.find(name, at + 1)) >= 0:
        around = text[at - 1 : at] + text[at + len(name) : at + len(name) + 1]
        if not any(letter.isalnum() or letter == "_" for letter in around):
            return True
    return False


def _predictions(tables: Tables, start: datetime, end: datetime, happened: list[Row]) -> list[Row]:
    markets = {row["id"]: row for row in tables["Market"]}
    asked = [_question(row, markets.pop(row["id"], None)) for row in sorted(tables["Question"], key=lambda row: row["questionNumber"])]
    asked += [_bare_market(markets[slug]) for slug in sorted(markets)]
    found = []
    for question in asked:
        history = _sorted([row for row in tables["PredictionPriceHistory"] if row["marketId"] == question["market_id"]], "createdAt")
        official = [row["createdAt"] for row in history if row["eventType"] == "resolution"]
        resolved = official[0] if official else question.pop("answered")
        question.pop("answered", None)
        if question.pop("created") >= end or (resolved is not None and resolved < start):
            continue
        prices = [row for row in history if _is_number(row["yesPrice"])]
        before = _last(prices, lambda row: row["createdAt"] <= start)
        last = _last(prices, lambda row: row["createdAt"] < end)
        number = question["question_number"]
        found.append(
            question
            | {
                "start_probability": before["yesPrice"] if before else 0.5,
                "end_probability": last["yesPrice"] if last else 0.5,
                "resolved_at": resolved,
                "news": [event["description"] for event in happened if number is not None and event["relatedQuestion"] == number][:20],
                "moved": bool(last and last["createdAt"] >= start),
            }
        )
    return found


def _question(row: Row, market: Row | None) -> Row:
    """The question's own answer comes before its market's."""
    own = row["resolvedOutcome"]
    answer = own if own is not None else _answer(market)
    return {
        "market_id": row["id"],
        "question_number": row["questionNumber"],
        "question": row["text"],
        "outcome": _said(answer),
        "created": row["createdDate"],
        "answered": row["updatedAt"] if own is not None else None,
    }


def _bare_market(row: Row) -> Row:
    """Resolved, without a history row that says when: at its endDate."""
    return {
        "market_id": row["id"],
        "question_number": None,
        "question": row["question"],
        "outcome": _said(_answer(row)),
        "created": row["createdAt"],
        "answered": row["endDate"] if row["resolved"] else None,
    }


def _answer(market: Row | None) -> bool | None:
    return market["resolution"] if market is not None and market["resolved"] else None


def _said(answer: bool | None) -> str:
    return "UNRESOLVED" if answer is None else "YES" if answer else "NO"
