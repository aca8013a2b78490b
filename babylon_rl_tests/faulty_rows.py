"""Rows of all five producers with faults, for hypothesis: what a game has written in months, in one hour.

A row is made by its producer without a fault, and then a few of its fields, columns or characters are spoilt. The text of stepsJson is
what counts: markers such as ``@1e400@`` become what no JSON writer writes.
"""

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from babylon_rl.store.connection import Connection
from babylon_rl_tests.odd_values import (
    ACTIONS,
    CHATS,
    COLUMNS,
    HARMLESS,
    JUNK,
    MARKERS,
    METADATA,
    NO_CHATS,
    PIECES,
    REQUIRED,
    TELLING,
    WHOLE_TEXTS,
    Path,
)
from babylon_rl_tests.rows import START, WINDOW, make_call, make_log

Row = dict[str, Any]

AGENTS = ["agent-1", "agent-2", "test-agent-1", "Zoë", "agent-10", "a"]
WINDOWS = [f"2025-11-15T{hour:02}:00" for hour in range(8, 13)]


def _step(place: int, start: datetime, pnl: Any, action: str, calls: Any, **changes: Any) -> Row:
    step = {
        "stepNumber": place,
        "timestamp": (start - datetime(1970, 1, 1)) // timedelta(milliseconds=1) + 10_000 * place,
        "environmentState": {"agentBalance": 1000, "agentPnL": pnl, "openPositions": 1, "activeMarkets": 3},
        "providerAccesses": [{"providerName": "AGENT_WALLET", "data": {}, "purpose": "context"}],
        "llmCalls": calls,
        "action": {"actionType": action, "parameters": {"ticker": "$BTC"}, "success": True},
        "reward": 0,
    } | changes
    return {name: value for name, value in step.items() if value is not ...}


# Each producer's step: its place, when the row started, its P&L; then columns that its rows differ in.
Producer = tuple[Callable[[int, datetime, Any], Row], Row, int]
PRODUCERS: dict[str, Producer] = {
    "production": (
        lambda place, start, pnl: _step(place, start, pnl, ("TRADING_DECISION", "CREATE_POST", "CREATE_COMMENT")[place % 3], []),
        {"scenarioId": "2025-11-15T09:00"}, 3,
    ),
    "test agent": (
        lambda place, start, pnl: _step(
            place, start, pnl, ("BUY_SHARES", "SELL_SHARES", "HOLD")[place % 3],
            [make_call(userPrompt=f"Step {place}?", response=f"{place}!"), make_call(userPrompt="Why?", purpose="other")][: 1 + place % 2],
        ),
        {"finalPnL": 0.0}, 7,
    ),
    "fixture": (
        lambda place, start, pnl: _step(place, start, pnl, "SELL_SHARES", [make_call(latencyMs=1234.5678, userPrompt="Fixture?")]),
        {"scenarioId": "trading-bullish-market"}, 3,
    ),
    "benchmark": (lambda place, start, pnl: _step(place, start, pnl, "HOLD", []), {"scenarioId": "benchmark-week-12"}, 2),
    "plugin": (
        lambda place, start, pnl: _step(
            place, start, pnl, ("TRADING_DECISION", "pending")[place % 4 == 3],
            [make_call(callId=f"9f{place}", topP=1, purpose=("action", "response", "other")[place % 3], userPrompt=f"P{place}")],
            stepId=f"uuid-{place}", observation={"a": [1]}, done=False,
        ),
        {"windowId": None, "finalPnL": None}, 5,
    ),
}  # fmt: skip


def _put(step: Row, path: Path, value: Any) -> None:
    """Set, or with ``...`` remove, a field of a step; where the path leads nowhere, nothing."""
    holder: Any = step
    for name in path[:-1]:
        if isinstance(name, str):
            holder = holder.get(name) if isinstance(holder, dict) else None
        else:
            holder = holder[name] if isinstance(holder, list) and len(holder) > name else None
    if not isinstance(holder, dict):
        return
    if value is ...:
        holder.pop(path[-1], None)
    else:
        holder[path[-1]] = value


def _steps_text(steps: list[Any], plain: bool) -> str:
    text = json.dumps(steps, ensure_ascii=plain)
    for marker, written in MARKERS.items():
        text = text.replace(marker, written)
    return text


def _fields(values_of: list[tuple[Path, list[Any]]]) -> st.SearchStrategy[tuple[Path, Any]]:
    return st.sampled_from(values_of).flatmap(lambda field: st.tuples(st.just(field[0]), st.sampled_from(field[1])))


# About one row in six is rejected for a field; most have a field or two that must not reject them.
_ODD_FIELDS = st.one_of(
    st.just([]),
    st.lists(_fields(TELLING), min_size=1, max_size=4),
    st.lists(_fields(TELLING), min_size=1, max_size=4),
    st.lists(st.sampled_from([(("action", "actionType"), kind) for kind in ACTIONS]), min_size=1, max_size=4),
    st.lists(_fields(HARMLESS), min_size=1, max_size=2),
    st.lists(_fields(REQUIRED), min_size=1, max_size=1),
)
PNLS = st.sampled_from([0, 1, 2.5, -3, 10, 80.0, -80.0, 1000.25])
MINUTES_OF_HOUR = st.sampled_from([0, 1, 1, 2, 2, 5, 30, 59.99, 60, 61, -0.001, -5, 119])


@st.composite
def trajectories(draw: st.DrawFn, number: int, *, faulty: bool = True) -> Row:
    """A row of trajectories, the ``number``-th; about every second one has a fault somewhere."""
    producer = draw(st.sampled_from([*PRODUCERS, "production", "production", "test agent", "plugin"]))
    make, columns, most = PRODUCERS[producer]
    start = START + timedelta(minutes=draw(MINUTES_OF_HOUR))
    pnls = draw(st.lists(PNLS, min_size=0 if producer == "benchmark" else 1, max_size=most))
    steps: list[Any] = [make(place, start, pnl) for place, pnl in enumerate(pnls)]
    for path, value in draw(_ODD_FIELDS) if faulty and steps else ():
        _put(steps[draw(st.integers(0, len(steps) - 1))], path, value)
    if faulty and steps and draw(st.integers(0, 29)) == 0:
        steps[-1] = draw(st.sampled_from(JUNK))
    if faulty and draw(st.integers(0, 19)) == 0:
        for step in steps:
            _put(step, ("action", "actionType"), "pending") if isinstance(step, dict) else None
    text = _steps_text(steps, draw(st.booleans()))
    odd: Row = {}
    if faulty and draw(st.integers(0, 3)) == 0:
        for name in draw(st.lists(st.sampled_from(list(COLUMNS)), min_size=1, max_size=2)):
            odd[name] = draw(st.sampled_from(COLUMNS[name]))
    if faulty and draw(st.integers(0, 15)) == 0:
        text = draw(st.one_of(st.sampled_from(WHOLE_TEXTS), mutations(text)))
    return _row(f"t{number}", draw(st.sampled_from(AGENTS)), start, text) | columns | odd


def _row(trajectory_id: str, agent: str, start: datetime, text: str) -> Row:
    return {
        "id": f"row-{trajectory_id}", "trajectoryId": trajectory_id, "agentId": agent, "startTime": start,
        "endTime": start + timedelta(seconds=30), "durationMs": 30_000, "windowId": WINDOW, "windowHours": 1, "scenarioId": WINDOW,
        "stepsJson": text, "rewardComponentsJson": "{}", "metricsJson": "{}", "metadataJson": "{}", "totalReward": 0.0, "episodeLength": 1,
        "finalStatus": "completed", "finalPnL": None, "tradesExecuted": None, "postsCreated": None, "isTrainingData": True,
        "isEvaluation": False, "usedInTraining": False, "createdAt": start, "updatedAt": start,
    }  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn, text: str) -> str:
    """``text`` with up to three of its characters or pieces removed, doubled, cut off or replaced; anything that TEXT can hold."""
    for _ in range(draw(st.integers(1, 3))):
        here = draw(st.integers(0, len(text)))
        head, there = text[:here], here + draw(st.integers(1, 30))
        kind = draw(st.sampled_from(["cut", "remove", "double", "insert", "insert", "replace", "replace", "turn"]))
        if kind == "cut":
            text = head
        elif kind == "remove":
            text = head + text[there:]
        elif kind == "double":
            text = text[:there] + text[here:]
        elif kind == "turn":
            text = head + text[here:there][::-1] + text[there:]
        else:
            text = head + draw(st.sampled_from(PIECES)) + text[here + (kind == "replace") :]
    return text


@st.composite
def logs(draw: st.DrawFn, rows: list[Row]) -> list[Row]:
    """Rows of llm_call_logs of both producers, most of them of one of ``rows``."""
    found = []
    silent = [row["trajectoryId"] for row in rows if '"llmCalls": []' in row["stepsJson"]]
    owners = [*(silent or ["nobody"]) * 9, *(row["trajectoryId"] for row in rows), "nobody"]
    for number in range(draw(st.sampled_from([0, 2, 4, 8]))):
        owner = draw(st.sampled_from(owners))
        step = draw(st.integers(0, 3))
        log = make_log(owner, step=step, messagesJson=None, metadata=None)
        log |= {"id": f"log-{number}", "callId": f"{owner}-call-{step}-{number}", "userPrompt": f"Logged {number}?"}
        log |= {"timestamp": START + timedelta(seconds=draw(st.sampled_from([0, 60, 61, 70, 70, 80, 90, 125, 310, -400, 4000])))}
        if draw(st.booleans()):
            names = [
                log["stepId"],
                f"uuid-{number}",
                f"{owner}-step-99",
                "t0-step-0",
                f"{owner}-step-x",
                f"{owner}-step-",
                f"{owner}-step--1",
            ]
            log["stepId"] = draw(st.sampled_from(names))
            log["callId"] = f"{draw(st.sampled_from('cab'))}{number}"
        if draw(st.booleans()):
            log["purpose"] = draw(st.sampled_from(["action", "action", "response", "other", ""]))
            log["messagesJson"] = draw(st.one_of(st.sampled_from(CHATS), st.sampled_from(NO_CHATS)))
            log["userPrompt"] = draw(st.sampled_from(["", log["userPrompt"]]))
            log["metadata"] = draw(st.sampled_from(METADATA))
        for name in ("systemPrompt", "userPrompt", "response"):
            if draw(st.integers(0, 9)) == 0:
                log[name] = ""
        found.append(log)
    return found


@st.composite
def games(draw: st.DrawFn, *, most: int = 14, faulty: bool = True) -> tuple[list[Row], list[Row]]:
    """Rows of trajectories around rows.WINDOW, doubles among them, and of llm_call_logs."""
    rows = [draw(trajectories(number, faulty=faulty)) for number in range(draw(st.integers(min(most, 4), most)))]
    if draw(st.integers(0, 3)) == 0:
        double = draw(st.sampled_from(rows))
        rows.append(double | {"id": "row-double", "trajectoryId": "double"})
    return rows, draw(logs(rows))


def copy_in(connection: Connection, table: str, rows: Iterable[Row]) -> None:
    """Write rows of equal columns into one of the game's tables by COPY; agents of trajectories are made where they are absent."""
    some = list(rows)
    if not some:
        return
    if table == "trajectories":
        agents = sorted({row["agentId"] for row in some})
        connection.execute(
            """INSERT INTO public."User" (id, "updatedAt") SELECT unnest(%s::text[]), %s ON CONFLICT DO NOTHING""", (agents, START)
        )
    columns = ", ".join(f'"{name}"' for name in some[0])
    name = table if table.islower() else f'"{table}"'
    with connection.cursor().copy(f"COPY public.{name} ({columns}) FROM STDIN") as copy:
        for row in some:
            copy.write_row(list(row.values()))
