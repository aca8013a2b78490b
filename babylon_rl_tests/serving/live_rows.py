"""Rows that live agents leave: calls through the gateway, and their hours as the pipeline reads them."""

import itertools
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from babylon_rl.windows import window_of

_numbers = itertools.count(1)
Connection = psycopg.Connection[tuple[Any, ...]]


def insert_calls(
    connection: Connection,
    version: str | None,
    at: datetime,
    agents: Iterable[str],
    *,
    calls: int = 1,
    failed: int = 0,
    latency_ms: float = 100,
) -> None:
    """Calls of each agent that routing gave to a version; the first ``failed`` of each were answered by the base instead."""
    rows = [
        (
            f"call-{next(_numbers)}",
            at,
            agent,
            version,
            None if number < failed else version,
            "timeout" if number < failed else None,
            latency_ms,
        )
        for agent in agents
        for number in range(calls)
    ]
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO babylon_rl.gateway_calls"
            ' ("callId", "at", "agentId", "chosenVersion", "version", "arm", "fallback", "status", "latencyMs")'
            " VALUES (%s, %s, %s, %s, %s, 'rollout', %s, 200, %s)",
            rows,
        )
    connection.commit()


def insert_hour(
    connection: Connection,
    at: datetime,
    pnls: dict[str, float],
    *,
    holds: int = 10,
    buys: int = 10,
    sells: int = 10,
    refused: int = 0,
    sides: bool = True,
) -> None:
    """One hour of agents as it was read, each with so many decisions; the last ``refused`` of its trades were not carried out.

    Without ``sides`` no trade says which side it took.
    """
    window = window_of(at)
    connection.execute(
        'INSERT INTO babylon_rl.windows ("window", "rows", "eligible", "newTrainable", "agents", "episodes", "usableEpisodes", "ready",'
        ' "state", "rejected", "messageSources", "trainableSequences", "dataVersion", "groupVersion", "rowVersion", "computedAt")'
        " VALUES (%s, 1, 1, 1, 1, 1, 1, TRUE, 'ready', '{}', '{}', 1, 'x', 'x', 'x', %s) ON CONFLICT DO NOTHING",
        [window, at],
    )
    with connection.cursor() as cursor:
        cursor.executemany(
            'INSERT INTO babylon_rl.episodes ("window", "agentId", "trajectoryIds", "usedIds", "steps", "startPnl", "endPnl",'
            ' "windowPnl", "wins", "losses", "trades", "posts", "messageSources", "usable", "trainableSequences", "actions", "content")'
            " VALUES (%s, %s, '{}', '{}', 5, 0, %s, %s, 0, 0, 0, 0, '{}', TRUE, 1, %s, 'x')",
            [(window, agent, pnl, pnl, Jsonb({"HOLD": holds, "TRADING_DECISION": buys + sells})) for agent, pnl in pnls.items()],
        )
        cursor.executemany(
            "INSERT INTO babylon_rl.action_outcomes"
            ' ("window", "trajectoryId", "step", "agentId", "actionType", "executed", "kind", "target", "side")'
            " VALUES (%s, %s, %s, %s, 'TRADING_DECISION', %s, 'stock', 'x', %s)",
            [
                (window, f"t-{agent}", step, agent, step < buys + sells - refused, ("UP" if step < buys else "DOWN") if sides else None)
                for agent in pnls
                for step in range(buys + sells)
            ],
        )
    connection.commit()


def hours_after(start: datetime, count: int) -> list[datetime]:
    """The beginnings of the ``count`` hours after ``start``."""
    return [start + timedelta(hours=number + 1) for number in range(count)]
