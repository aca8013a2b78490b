"""Builders of a game's market rows around rows.WINDOW: organizations, prices, questions, markets, probabilities, events."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from babylon_rl.store.connection import Connection
from babylon_rl_tests.rows import START, insert

HOUR_BEFORE = START - timedelta(hours=1)


def organization(slug: str, name: str | None = None, initial: float | None = 100.0) -> dict[str, Any]:
    """A company; its initial price in dollars."""
    return {"id": slug, "name": name or slug.title(), "description": "", "type": "company", "initialPrice": initial, "updatedAt": START}


def price(number: int, slug: str, value: float, minute: float, **columns: Any) -> dict[str, Any]:
    """A price of a company, so many minutes into WINDOW."""
    moment = START + timedelta(minutes=minute)
    return {"id": f"p{number}", "organizationId": slug, "price": value, "change": 0, "changePercent": 0, "timestamp": moment} | columns


def question(
    number: int, *, created: datetime = HOUR_BEFORE, answer: bool | None = None, updated: datetime = HOUR_BEFORE
) -> dict[str, Any]:
    """A question, open from ``created``; ``answer`` is the official one, ``outcome`` (True) the hidden one."""
    return {
        "id": f"q{number}", "questionNumber": number, "text": f"Will {number}?", "scenarioId": 1, "outcome": True, "rank": 1,
        "createdDate": created, "resolutionDate": START + timedelta(days=3), "resolvedOutcome": answer, "updatedAt": updated,
    }  # fmt: skip


def market(slug: str, **columns: Any) -> dict[str, Any]:
    """A prediction market."""
    return {
        "id": slug, "question": f"Market {slug}?", "liquidity": 1, "endDate": START + timedelta(days=3), "createdAt": HOUR_BEFORE,
        "updatedAt": START,
    } | columns  # fmt: skip


def history(number: int, slug: str, yes: float, minute: float, kind: str = "trade") -> dict[str, Any]:
    """A probability of a market, so many minutes into WINDOW."""
    return {
        "id": f"h{number}", "marketId": slug, "yesPrice": yes, "noPrice": 1 - yes, "yesShares": 1, "noShares": 1, "liquidity": 1,
        "eventType": kind, "source": "user", "createdAt": START + timedelta(minutes=minute),
    }  # fmt: skip


def event(
    number: int, minute: float, text: str = "Nothing", actors: Sequence[str | None] | None = None, about: int | None = None
) -> dict[str, Any]:
    """A world event, so many minutes into WINDOW."""
    moment = START + timedelta(minutes=minute)
    return {"id": f"e{number}", "eventType": "news", "description": text, "actors": actors, "relatedQuestion": about, "timestamp": moment}


def fill(connection: Connection, **tables: list[dict[str, Any]]) -> None:
    """Write rows, by table."""
    for table, rows in tables.items():
        insert(connection, table, rows)
