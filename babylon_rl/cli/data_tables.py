"""Tables of the commands in cli/data.py, for terminals of 80 columns."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from babylon_rl.cli.output import print_fitting, table
from babylon_rl.types import count_reasons

if TYPE_CHECKING:
    from rich.console import Console

    from babylon_rl.market.outcomes import WindowOutcomes
    from babylon_rl.types import Rejection, WindowReading, WindowSummary

NEWS_SHOWN = 3


def print_windows(out: "Console", summaries: "Sequence[WindowSummary]") -> None:
    """Print one line per hour; message sources only if there is room."""
    columns = ["window", "state", "rows", "new", "rejected", "agents", "usable"]
    sources = ["embedded", "logs", "synthetic"]
    rows = [[f.window, f.state, f.rows, f.new_trainable, f.rows - f.eligible, f.agents, f.usable_episodes] for f in summaries]
    pnls = [_rounded(f.avg_pnl) for f in summaries]
    wide = [[*row, *f.message_sources.values(), pnl] for row, f, pnl in zip(rows, summaries, pnls, strict=True)]
    narrow = [[*row, pnl] for row, pnl in zip(rows, pnls, strict=True)]
    print_fitting(out, table(None, [*columns, *sources, "mean P&L $"], wide), table(None, [*columns, "P&L $"], narrow))


def print_episodes(out: "Console", reading: "WindowReading") -> None:
    """Print one line per episode; start and end only if there is room."""
    wide, narrow = [], []
    for e in reading.episodes:
        name, pnl, usable = [e.agent_id, len(e.trajectory_ids), e.steps], round(e.window_pnl, 2), "yes" if e.usable else "no"
        did = [e.wins, e.losses, e.trades, e.posts]
        wide.append([*name, round(e.start_pnl, 2), round(e.end_pnl, 2), pnl, *did, e.trainable_sequences, usable])
        narrow.append([*name, pnl, *did, usable])
    did_columns = ["wins", "losses", "trades", "posts"]
    print_fitting(
        out,
        table(None, ["agent", "rows", "steps", "start $", "end $", "P&L $", *did_columns, "to train", "usable"], wide),
        table(None, ["agent", "rows", "steps", "P&L $", *did_columns, "usable"], narrow),
    )


def print_rejected(out: "Console", found: "Sequence[Rejection]", rows: int) -> None:
    """Print one line per rejected row of ``rows``, and the count of each reason."""
    listed = [[r.window, r.trajectory_id, r.reason, r.detail] for r in found]
    out.print(table(None, ["window", "trajectory", "reason", "detail"], listed))
    if found:
        counted = ", ".join(f"{number} {reason}" for reason, number in count_reasons(found).items())
        out.print(f"{len(found)} of {rows} rows rejected: {counted}.", markup=False)


def print_outcomes(out: "Console", found: "WindowOutcomes") -> None:
    """Print the hour's stocks and questions, their first news, and the market's totals."""
    # Stocks with their news, then questions with theirs, then flags and totals.
    stocks = [
        [s.ticker, s.name, round(s.start_price, 2), round(s.end_price, 2), round(s.change_percent, 2), s.sentiment, len(s.news)]
        for s in found.stocks
    ]
    out.print(table(None, ["ticker", "name", "start $", "end $", "change %", "sentiment", "news"], stocks))
    _print_news(out, [(s.ticker, s.news) for s in found.stocks])
    questions = [
        [p.question_number, p.question, round(p.start_probability, 4), round(p.end_probability, 4), p.outcome, len(p.news)]
        for p in found.predictions
    ]
    out.print()
    out.print(table(None, ["no.", "question", "start", "end", "outcome", "news"], questions))
    _print_news(out, [(f"no. {p.question_number}" if p.question_number is not None else p.market_id, p.news) for p in found.predictions])
    out.print()
    for flagged in found.flags:
        out.print(f"{flagged['subject']} is flagged: {flagged['flag'].replace('_', ' ')}.", markup=False)
    if found.mean_change is not None and found.volatility is not None:
        out.print(f"The market as a whole: mean change {found.mean_change:+.2f} %, volatility {found.volatility:.2f} %.")


def _print_news(out: "Console", news: "Iterable[tuple[str, tuple[str, ...]]]") -> None:
    rows: list[list[str]] = []
    for subject, descriptions in news:
        said = [text if times == 1 else f"{text} ({times} times)" for text, times in Counter(descriptions).items()]
        shown = said if len(said) <= NEWS_SHOWN + 1 else [*said[:NEWS_SHOWN], f"and {len(said) - NEWS_SHOWN} more; --json has them all"]
        rows += [[subject if position == 0 else "", line] for position, line in enumerate(shown)]
    if rows:
        out.print()
        out.print(table(None, ["news of", "what happened"], rows))


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 2)
