"""Odd but eligible rows of an hour: short prompts, duplicates, wrong clocks, impossible P&L.

Decided row by row while an hour is read, and gathered here; babylon_rl.windows keeps it as ``quality``.
"""

import functools
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from babylon_rl.episodes.steps import CallFacts, StepFacts, as_number
from babylon_rl.episodes.types import Trajectory
from babylon_rl.store.trajectories import TrajectoryRow
from babylon_rl.windows import HOUR, window_start

# Limits in characters, milliseconds, multiples of the stake, dollars, and ids per list.
LONG_SYSTEM_PROMPT = 50
LONG_USER_PROMPT = 100
CLOCK_TOLERANCE_MS = 5 * 60_000
MOST_LEVERAGE = 10
LEAST_STAKE_USD = 1000.0
MOST_NAMED = 20
_NUMBERS = frozenset((int, float))
_EPOCH = datetime(1970, 1, 1)
_MILLISECOND = timedelta(milliseconds=1)


def is_short(call: CallFacts) -> bool:
    """Return True if a prompt of the call is too short.

    A system prompt of at most 50 characters, or a user prompt of at most 100.
    """
    system, user = call.system_prompt, call.user_prompt
    return not (isinstance(system, str) and len(system) > LONG_SYSTEM_PROMPT and isinstance(user, str) and len(user) > LONG_USER_PROMPT)


def is_skewed(row: TrajectoryRow, steps: Sequence[StepFacts]) -> bool:
    """Return True if a row's times contradict each other.

    It ends before it starts, its "windowId" is another hour than that of both its start and its end, or a step was taken more than five
    minutes before the start or after the end.
    """
    start, end = row.start_time, row.end_time
    # One of start and end must lie in the row's own hour.
    opens, closes = _bounds(row.window)
    if end < start or not (opens <= start <= closes or opens <= end <= closes):
        return True
    # Fast path: all timestamps are numbers. Otherwise only the numbers among them count.
    began = [step.timestamp for step in steps]
    try:
        first, last = min(began), max(began)
    except TypeError:
        first = last = None
    if first.__class__ not in _NUMBERS or last.__class__ not in _NUMBERS:
        numbers = [ms for moment in began if (ms := as_number(moment)) is not None]
        if not numbers:
            return False
        first, last = min(numbers), max(numbers)
    return bool(first < _ms(start) - CLOCK_TOLERANCE_MS or last > _ms(end) + CLOCK_TOLERANCE_MS)


@functools.lru_cache(maxsize=4096)
def _bounds(window: str) -> tuple[datetime, datetime]:
    return window_start(window), window_start(window) + (HOUR - datetime.resolution)


def _ms(moment: datetime) -> float:
    return (moment - _EPOCH) / _MILLISECOND


def jumps(steps: Sequence[StepFacts], end_pnl: float) -> bool:
    """Return True if the P&L jumps by more than the agent could win or lose.

    From one step to the next, or to the end. The limit is MOST_LEVERAGE times the stake: the largest agentBalance of the row so far, and at
    least the game's starting balance, because an agent with all its money in positions has a small one.
    """
    pnls = [step.environment_state.agent_pnl for step in steps]
    pnls.append(end_pnl)
    # Nearly all rows: no single change can exceed the whole range.
    if max(pnls) - min(pnls) <= MOST_LEVERAGE * LEAST_STAKE_USD:
        return False
    # The limit grows with the largest balance so far.
    most = LEAST_STAKE_USD
    for step, (before, after) in zip(steps, pairwise(pnls), strict=True):
        most = max(most, step.environment_state.agent_balance)
        if abs(after - before) > MOST_LEVERAGE * most:
            return True
    return False


def quality(agents: Sequence[Sequence[Trajectory]], odd_hours: int) -> dict[str, Any]:
    """Build the quality document of one hour's eligible trajectories.

    ``agents`` holds the trajectories by agent, in order; ``odd_hours`` counts rows of another length than 1 h. Lists name at most
    MOST_NAMED ids in order, beside the full counts.
    """
    duplicates: list[str] = []
    jumping: list[str] = []
    for own in agents:
        duplicates += _repeated(own)
        if any([row.jumped for row in own]) or any([_jumps_between(before, after) for before, after in pairwise(own)]):
            jumping.append(own[0].agent_id)
    skewed = [row.trajectory_id for own in agents for row in own if row.skewed]
    # None: the row has no recorded call.
    judged = [row.short_prompts for own in agents for row in own if row.short_prompts is not None]
    return {
        "shortPrompts": sum(judged),
        "prompts": len(judged),
        "duplicates": sorted(duplicates)[:MOST_NAMED],
        "duplicateRows": len(duplicates),
        "clockSkew": sorted(skewed)[:MOST_NAMED],
        "skewedRows": len(skewed),
        "pnlJumps": jumping[:MOST_NAMED],
        "jumpingAgents": len(jumping),
        "otherLengths": odd_hours,
    }


def _repeated(own: Iterable[Trajectory]) -> list[str]:
    seen: set[str] = set()
    repeated = []
    for row in own:
        if row.recorded in seen:
            repeated.append(row.trajectory_id)
        seen.add(row.recorded)
    return repeated


def _jumps_between(before: Trajectory, after: Trajectory) -> bool:
    return abs(after.start_pnl - before.end_pnl) > MOST_LEVERAGE * max(before.stake, LEAST_STAKE_USD)
