"""An episode within a token budget, always the same way.

A step shows what is new to its agent since the step before it that is shown in full. Where not all fits, the first, the last and the
decisions (trades that succeeded) are kept the longest, other steps are said in short, and what is left out is counted where it stood.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

LEAST_TOKENS = 160  # below this an episode cannot say what it was
_CUT = " [cut]"


@dataclass(frozen=True)
class StepText:
    """One step in words.

    ``seen`` are the lines that the agent was served, ``state`` what it had, ``said`` its words, ``done`` its action with parameters and
    result, ``short`` the action alone; ``decision`` is true for a trade that succeeded.
    """

    number: int
    seen: tuple[str, ...]
    state: str
    said: tuple[str, ...]
    done: str
    short: str
    decision: bool

    def full(self, before: "StepText | None", most: int | None) -> str:
        """The step in full, given the step before it that was shown in full; each part is cut to ``most`` characters."""
        state = f" ({self.state})" if self.state and (before is None or before.state != self.state) else ""
        parts = (self._news(before), *(f"said {text}" for text in self.said), f"did {self.done}")
        return f"{self.number}.{state} " + "\n ".join(_cut(part, most) for part in parts if part)

    def _news(self, before: "StepText | None") -> str:
        known = frozenset(before.seen) if before is not None else frozenset()
        news = [line for line in self.seen if line not in known]
        if len(news) == len(self.seen):
            return f"saw {_line(news)}" if news else ""
        return f"saw as before, and {_line(news)}" if news else "saw as before"


@dataclass(frozen=True)
class Condensed:
    """An episode's text, its tokens, and how many steps it leaves out."""

    text: str
    tokens: int
    left_out: int


def condense(steps: Sequence[StepText], budget: int, count: Callable[[str], int]) -> Condensed:
    """The episode in at most ``budget`` tokens, and never asked for fewer than LEAST_TOKENS."""
    budget = max(budget, LEAST_TOKENS)
    text = _written(steps, len(steps), len(steps), None)
    tokens = count(text)
    if tokens <= budget:
        return Condensed(text, tokens, 0)

    def write(full: int, shown: int) -> str:
        return _written(steps, full, shown, budget)

    shown = _most(len(steps), lambda number: count(write(0, number)) <= budget)
    full = _most(shown, lambda number: count(write(number, shown)) <= budget)
    text = write(full, shown)
    if count(text) > budget:  # tokens of very odd characters
        text = _cut(text, budget // 2)
    return Condensed(text, count(text), len(steps) - shown)


def _most(high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 0 to ``high`` that fits, where all below it do."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _written(steps: Sequence[StepText], full: int, shown: int, budget: int | None) -> str:
    """The text with the ``full`` most important steps in full and of the next up to ``shown`` the short form; ``budget`` bounds each."""
    rank = {place: number for number, place in enumerate(_by_importance(steps))}
    lines: list[str] = []
    before: StepText | None = None
    missing = 0
    for place, step in enumerate(steps):
        if rank[place] >= shown:
            missing += 1
            continue
        lines += _gap(missing)
        missing = 0
        if rank[place] < full:
            lines.append(step.full(before, budget))
            before = step if step.seen or before is None else replace(step, seen=before.seen)
        else:
            lines.append(f"{step.number}. {_cut(step.short, budget and budget // 4)}")
    return "\n".join([*lines, *_gap(missing)])


def _gap(missing: int) -> list[str]:
    return [f"[{missing} step{'s' if missing > 1 else ''} left out]"] if missing else []


def _by_importance(steps: Sequence[StepText]) -> list[int]:
    """Places: first, last, decisions, the rest; each kind from both ends towards the middle."""
    last = len(steps) - 1
    inner = sorted(range(1, last), key=lambda place: (not steps[place].decision, min(place, last - place), place))
    return list(dict.fromkeys([*([0, last] if steps else []), *inner]))


def _line(pieces: Sequence[str]) -> str:
    return " | ".join(pieces).replace("] | [", "][")


def _cut(text: str, characters: int | None) -> str:
    return text if characters is None or len(text) <= characters else text[:characters] + _CUT
