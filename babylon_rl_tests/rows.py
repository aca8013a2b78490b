"""Builders of a game's rows: every field has a plain value, and a test names the ones that it is about."""

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from babylon_rl.store.connection import Connection

WINDOW = "2025-11-15T10:00"
START = datetime(2025, 11, 15, 10)
AFTER = datetime(2025, 11, 15, 12)


def make_call(**changes: Any) -> dict[str, Any]:
    """One LLM call as the recorder writes it."""
    call = {
        "model": "qwen/qwen3-32b",
        "systemPrompt": "You trade.",
        "userPrompt": "What now?",
        "response": '{"action": "hold"}',
        "temperature": 0.7,
        "maxTokens": 300,
        "purpose": "action",
    }
    return {name: value for name, value in (call | changes).items() if value is not ...}


def make_step(
    number: int = 0, *, pnl: Any = 0.0, action: str = "TRADING_DECISION", success: Any = True, calls: Any = (), **changes: Any
) -> dict[str, Any]:
    """One completed step, 10 s after the one before."""
    return {
        "stepNumber": number,
        "timestamp": (START - datetime(1970, 1, 1)) // timedelta(milliseconds=1) + 10_000 * number,
        "environmentState": {"agentBalance": 1000, "agentPnL": pnl, "openPositions": 1},
        "providerAccesses": [],
        "llmCalls": list(calls) if isinstance(calls, tuple | list) else calls,
        "action": {"actionType": action, "parameters": {}, "success": success},
        "reward": 0,
    } | changes


def make_trajectory(
    trajectory_id: str = "t1", agent: str = "agent-1", *, steps: Any = None, minute: float = 5, **columns: Any
) -> dict[str, Any]:
    """A row of trajectories; ``steps`` is a list of steps or the text of stepsJson, ``minute`` when in WINDOW it started."""
    start = START + timedelta(minutes=minute)
    recorded = [make_step(number, calls=[make_call()]) for number in range(5)] if steps is None else steps
    return {
        "id": f"row-{trajectory_id}",
        "trajectoryId": trajectory_id,
        "agentId": agent,
        "startTime": start,
        "endTime": start + timedelta(seconds=30),
        "durationMs": 30_000,
        "windowId": WINDOW,
        "scenarioId": WINDOW,
        "stepsJson": recorded if isinstance(recorded, str) else json.dumps(recorded),
        "rewardComponentsJson": "{}",
        "metricsJson": "{}",
        "metadataJson": "{}",
        "totalReward": 0.0,
        "episodeLength": 1,
        "finalStatus": "completed",
        "finalPnL": None,
        "createdAt": start,
        "updatedAt": start,
    } | columns


def make_log(trajectory_id: str, call: int = 0, *, step: int = 0, **columns: Any) -> dict[str, Any]:
    """A row of llm_call_logs as the recorder writes it."""
    return {
        "id": f"log-{trajectory_id}-{step}-{call}",
        "trajectoryId": trajectory_id,
        "stepId": f"{trajectory_id}-step-{step}",
        "callId": f"{trajectory_id}-call-{step}-{call}",
        "timestamp": START + timedelta(seconds=10 * step + call),
        "model": "qwen/qwen3-32b",
        "purpose": "action",
        "systemPrompt": "You trade.",
        "userPrompt": "What now?",
        "response": "hold",
        "temperature": 0.7,
        "maxTokens": 300,
        "createdAt": START,
    } | columns


def insert(connection: Connection, table: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows into one of the game's tables; agents of trajectories are made where they are absent."""
    some = list(rows)
    if table == "trajectories":
        users = [{"id": agent, "updatedAt": START} for agent in sorted({row["agentId"] for row in some})]
        _insert(connection, '"User"', users, " ON CONFLICT DO NOTHING")
    _insert(connection, table if table.islower() else f'"{table}"', some, "")


def _insert(connection: Connection, table: str, rows: list[dict[str, Any]], suffix: str) -> None:
    for row in rows:
        columns = ", ".join(f'"{name}"' for name in row)
        connection.execute(f"INSERT INTO public.{table} ({columns}) VALUES ({', '.join(['%s'] * len(row))}){suffix}", list(row.values()))


def make_group(agents: int = 5, *, window_minute: float = 5) -> list[dict[str, Any]]:
    """A ready window's rows: every agent earns ten dollars more than the one before."""
    steps = [make_step(number, calls=[make_call()]) for number in range(5)]
    return [
        make_trajectory(f"t{number}", f"agent-{number}", steps=steps, minute=window_minute + number, finalPnL=10.0 * number)
        for number in range(agents)
    ]
