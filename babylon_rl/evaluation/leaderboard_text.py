"""The leaderboard for readers: cells under COLUMNS, and a Markdown document of one screen."""

from babylon_rl.evaluation.leaderboard import Leaderboard, Line
from babylon_rl.evaluation.statistics import Interval

COLUMNS = ("", "who", "P&L, $ an hour", "against the base", "win rate", "right direction", "invalid", "hold", "gate")
FOOTER = (
    "P&L in dollars of one market hour, mean and 95 % interval over the markets; differences to the base are paired market by market. "
    "Intervals are one at a time: the first of many looks better than it is. The gate's column is its decision against the version's own "
    "reference, over as many markets as its report says. The oracle knows the future, the news reader how often news are true."
)


def cells(line: Line, reference: str | None) -> list[str]:
    """One line under COLUMNS."""
    standing = line.standing
    against = "the base" if standing.model == reference else _interval(standing.improvement)
    decision = "-" if line.gated is None else line.gated.decision.replace("_", " ")
    return [
        str(line.place),
        f"{standing.model} ({standing.role})" if standing.role != standing.model else standing.model,
        _interval(standing.pnl),
        against,
        _percent(standing.win_rate),
        _percent(standing.accuracy),
        f"{standing.shares['invalid']:.1%}",
        f"{standing.shares['hold']:.0%}",
        decision,
    ]


def markdown(board: Leaderboard) -> str:
    """It as Markdown."""
    grid = [COLUMNS, ["---"] * len(COLUMNS), *(cells(line, board.reference) for line in board.lines)]
    parts = ["\n".join("| " + " | ".join(row) + " |" for row in grid)]
    if board.unranked:
        parts.append("\n".join(["Not ranked:", "", *(f"* {one.version}: {one.reason}" for one in board.unranked)]))
    parts.append(f"{board.markets} unseen markets. {FOOTER}")
    return "\n\n".join(parts) + "\n"


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:+.0f} [{interval.low:+.0f}, {interval.high:+.0f}]"


def _percent(share: Interval | None) -> str:
    return "-" if share is None else f"{share.mean:.0%}"
