"""Hours as one picture: a cell each, coloured by state.

A column is a day once they span more than a week.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from markupsafe import Markup

from babylon_rl.windows import HOUR, window_of, window_start

MOST_HOURS = 10_000
ONE_ROW_HOURS = 7 * 24
# In the order of an hour's life; a gap between hours has no state.
MEANINGS = {
    "pending": "not over yet", "thin": "too few agents for a group", "ready": "ready to be judged",
    "waiting": "waits for its judge", "scored": "judged", "trained": "a version learned from it", "quarantined": "set aside: look at it",
}  # fmt: skip


@dataclass(frozen=True)
class HourStrip:
    """Cells of hours as SVG paths of unit width, by state.

    ``codes`` is by hour the state's place in MEANINGS, ``-`` for a gap.
    """

    first: str
    last: str
    rows: int
    columns: int
    paths: Mapping[str, Markup]
    counts: Mapping[str, int]
    codes: str


def hour_strip(states: Mapping[str, str]) -> HourStrip | None:
    """Draw the states of hours (window -> state), MOST_HOURS back from the newest; None without hours."""
    if not states:
        return None
    last = window_start(max(states))
    first = max(window_start(min(states)), last - (MOST_HOURS - 1) * HOUR)
    rows = 1 if last - first < ONE_ROW_HOURS * HOUR else 24
    if rows > 1:
        first -= timedelta(hours=first.hour)
    length = (last - first) // HOUR + 1
    days = [str(first.date() + timedelta(days=day)) for day in range(-(-(length + first.hour) // 24))]
    windows = [f"{day}T{hour:02}:00" for day in days for hour in range(24)][first.hour : first.hour + length]
    by_place = [states.get(window) for window in windows]
    paths: dict[str, list[str]] = {state: [] for state in MEANINGS}
    place = 0
    while place < length:
        end = place + 1
        # Equal neighbours within a column are one stroke.
        while end < length and end % rows and by_place[end] == by_place[place]:
            end += 1
        state = by_place[place]
        if state is not None:
            paths[state].append(f"M{place // rows}.5 {place % rows}v{end - place}")
        place = end
    places = {state: str(number) for number, state in enumerate(MEANINGS)}
    counts = Counter(state for state in by_place if state is not None)
    return HourStrip(
        first=window_of(first),
        last=window_of(last),
        rows=rows,
        columns=-(-length // rows),
        paths={state: Markup("".join(strokes)) for state, strokes in paths.items() if strokes},  # of digits alone
        counts={state: counts[state] for state in MEANINGS if counts[state]},
        codes="".join("-" if state is None else places[state] for state in by_place),
    )
