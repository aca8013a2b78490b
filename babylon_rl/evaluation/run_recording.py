"""Kept runs as rows of the game's database: a trajectory per run, marked so that nobody trains on it.

``scenarioId`` and ``windowId`` are ``benchmark-<snapshot>``, isEvaluation is true, isTrainingData false. Ids come from the result's: a run
that is recorded twice is there once.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from babylon_rl.evaluation.results import BENCHMARK, SUFFIX, Result, read_result
from babylon_rl.evaluation.run_files import DECISIONS, slug
from babylon_rl.recorder import Recording, TrajectoryRecorder
from babylon_rl.store import recording as rows
from babylon_rl.store.connection import Connection
from babylon_rl.versions import content_version

WINDOW_CHARACTERS = 50
_VERSION = re.compile(r"v\d+\.\d+\.\d+")


def record_runs(connection: Connection, files: Sequence[Path]) -> int:
    """Write the runs whose results are in ``files``, each with the decisions beside it; returns how many were new.

    Raises:
        MarketError: a file holds no result.
        SchemaMismatch: the database lacks the tables.
    """
    rows.require_recording_tables(connection)
    written = 0
    for path in files:
        with connection.transaction():
            written += _record(connection, read_result(path), path.with_name(path.name.removesuffix(SUFFIX) + DECISIONS))
    return written


def agent_id(result: Result) -> str:
    """The game user under whose id a result's agent is recorded."""
    return f"{BENCHMARK}{slug(result.agent_id)}"


def _record(connection: Connection, result: Result, decisions: Path) -> int:
    recording = recording_of(result, _decisions(decisions))
    if rows.stored_rows(connection, [recording.columns["id"]]):
        return 0
    rows.add_agents(connection, [(agent_id(result), result.agent_id)], _moment(result.start_time))
    rows.copy_rows(connection, "trajectories", [recording.columns])
    rows.copy_rows(connection, "llm_call_logs", [call.columns for call in recording.calls])
    return 1


def recording_of(result: Result, decisions: Iterator[dict[str, Any]]) -> Recording:
    """A run as one trajectory with a step for every tick, in the market's own time; rewards are dollars."""
    clock, kept = [_moment(result.start_time)], list[Recording]()
    recorder = TrajectoryRecorder(kept.append, _ids(result.id), lambda: clock[0])
    trajectory = recorder.start_trajectory(agent_id(result), window=_window(result), scenario=f"{BENCHMARK}{result.benchmark_id}"[:100])
    for turn in decisions:
        tick = int(turn["tick"])
        state = result.trajectory.states[tick]
        clock[0] = _moment(state.timestamp)
        pnl = state.equity - result.start_balance
        recorder.start_step(trajectory, balance=state.balance, pnl=pnl, open_positions=state.open_positions)
        if turn["call"] is not None:
            _call(recorder, trajectory, turn["call"])
        _complete(recorder, trajectory, turn, result.trajectory.rewards[tick])
    clock[0] = _moment(result.end_time)
    last = result.trajectory.states[-1]
    recorder.end_trajectory(trajectory, balance=last.balance, pnl=result.metrics.total_pnl, evaluation=True)
    return kept[0]


def _complete(recorder: TrajectoryRecorder, trajectory: str, turn: dict[str, Any], reward: float) -> None:
    outcome, action = turn["outcome"], turn["action"]
    kind, filled = action["action"], outcome["outcome"] == "filled"
    recorder.complete_step(
        trajectory,
        {"hold": "HOLD", "post": "POST"}.get(kind, "TRADING_DECISION"),
        {"method": kind, **{name: value for name, value in action.items() if name != "action"}},
        success=filled,
        reward=reward,
        result={name: value for name, value in outcome.items() if name != "outcome"} or {"held": True} if filled else None,
        error=None if filled else outcome["reason"],
    )


def _call(recorder: TrajectoryRecorder, trajectory: str, call: dict[str, Any]) -> None:
    tokens = call["prompt_tokens"]
    recorder.llm_call(
        trajectory,
        model=call["model"],
        messages=call["messages"],
        response=call["response"],
        temperature=call["temperature"],
        max_tokens=call["max_tokens"],
        action_type="TRADING_DECISION",
        latency_ms=call["latency_ms"],
        model_version=call["model"] if _VERSION.fullmatch(call["model"]) else None,
        response_format=call["response_format"],
        logprobs=call["logprobs"],
        tokens=(tokens, call["completion_tokens"] or 0) if tokens is not None else None,
    )


def _decisions(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _ids(result_id: str) -> Callable[[], str]:
    count = iter(range(10**9))
    return lambda: str(uuid5(NAMESPACE_URL, f"babylon-rl/benchmark/{result_id}/{next(count)}"))


def _window(result: Result) -> str:
    window = f"{BENCHMARK}{result.benchmark_id}"
    return window if len(window) <= WINDOW_CHARACTERS else f"{BENCHMARK}{content_version(result.benchmark_id)}"


def _moment(timestamp_ms: int) -> datetime:
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).replace(tzinfo=None)
