"""Parts of an hour by time, and each agent's P&L in them.

An hour is divided at whole minutes by the game's tick: the usual time between two decisions of an agent. A part is as many ticks as take
five minutes, and is merged with the next until two agents acted in it, as an agent alone has nobody to be compared with.
"""

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from statistics import median_low
from typing import NamedTuple

from babylon_rl.types import Episode, difference
from babylon_rl.windows import window_start

LEAST_MINUTES, LEAST_AGENTS, HOUR_MINUTES = 5, 2, 60


class Part(NamedTuple):
    """Stretch of an hour, from minute ``start`` to before minute ``end``."""

    start: int
    end: int


class PartResult(NamedTuple):
    """P&L of an agent in a part, in dollars, with the number of minutes in which it won or lost."""

    pnl: float
    wins: int
    losses: int


def time_of(window: str, minute: int) -> str:
    """Time of day in UTC of a minute of an hour, such as ``10:05``."""
    return f"{window_start(window) + timedelta(minutes=minute):%H:%M}"


def hour_parts(episodes: Sequence[Episode], most: int = HOUR_MINUTES) -> tuple[Part, ...]:
    """Divide an hour by the times of a group's episodes into ``most`` parts at most; one where no agent acted twice or times lack."""
    acted = [sorted({own.minute for own in episode.minutes}) for episode in episodes]
    spacings = [later - earlier for minutes in acted for earlier, later in pairwise(minutes)]
    if not spacings or not all(acted):
        return (Part(0, HOUR_MINUTES),)
    tick = median_low(spacings)
    length = -(-max(LEAST_MINUTES, -(-HOUR_MINUTES // most)) // tick) * tick
    parts, start = list[Part](), 0
    for end in range(length, HOUR_MINUTES + 1, length):
        if sum(any(start <= minute < end for minute in minutes) for minutes in acted) >= LEAST_AGENTS:
            parts.append(Part(start, end))
            start = end
    # What is left of the hour belongs to the last part.
    return (*parts[:-1], Part(parts[-1].start if parts else 0, HOUR_MINUTES))


def part_results(episode: Episode, parts: Sequence[Part]) -> dict[Part, PartResult]:
    """Return an agent's results by part; a part in which it did not act is absent.

    A part's P&L reaches to the agent's next step after it, or to the end of the hour: an open position counts by its value then, as far as
    the rows tell it, and the parts sum up to the window's P&L.
    """
    if not episode.minutes:
        return {parts[0]: PartResult(episode.window_pnl, episode.wins, episode.losses)}
    found = ((part, [own for own in episode.minutes if part.start <= own.minute < part.end]) for part in parts)
    acted = [(part, own) for part, own in found if own]
    ends = [own[0].start_pnl for _, own in acted[1:]] + [episode.end_pnl]
    return {
        part: PartResult(
            difference(end, own[0].start_pnl),
            sum(one.end_pnl > one.start_pnl for one in own),
            sum(one.end_pnl < one.start_pnl for one in own),
        )
        for (part, own), end in zip(acted, ends, strict=True)
    }
