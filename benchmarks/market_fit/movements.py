"""How prices and probabilities moved: volatility, persistence, what events did to them, and what orders were placed.

Moves are log returns of prices and changes of log-odds of probabilities, summed by tick. Moves that an order caused are left out of
the volatility of stocks (and counted as impact), so that a recorded price can be compared with one before anybody traded.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from benchmarks.market_fit.rows import Clock, EventRow, Recording
from benchmarks.market_fit.series import (
    Persistence,
    correlation,
    grouped,
    kurtosis,
    lag_one,
    logit,
    numbered,
    persistence,
    response,
    rms,
    share,
)
from benchmarks.market_fit.texts import names


@dataclass(frozen=True)
class StockFit:
    """Volatilities are standard deviations of log returns per square root of an hour, by company; None: nothing to measure.

    ``lag_one`` and ``absolute_lag_one`` correlate a tick's move (its size) with the next one's.
    ``response`` is the mean move of a named company in the direction that an event points in, 1 to 10 ticks after it, ``response_error``
    the standard error of the last.
    """

    volatility: tuple[tuple[str, float], ...]
    changes_per_hour: float
    lag_one: float | None
    persistence: tuple[Persistence, ...]
    absolute_lag_one: float | None
    correlation: float | None
    excess_kurtosis: float | None
    trade_impact: float | None
    named_events: int
    response: tuple[float, ...]
    response_error: float | None

    @property
    def volatilities(self) -> tuple[float, ...]:
        """In rising order."""
        return tuple(sorted(value for _, value in self.volatility))

    @property
    def median(self) -> float:
        """The usual company's volatility."""
        return statistics.median(self.volatilities)


@dataclass(frozen=True)
class QuestionFit:
    """Moves are in log-odds of YES, volatilities per square root of an hour, ``quiet_volatility`` without the ticks of an event.

    ``answered_share`` of the pointed events saw their question move within a tick, ``agreeing_share`` of those in the direction that
    the event points in; of silent events, agreeing is with the answer. ``response`` is the mean move in the direction pointed in.
    """

    questions: int
    open_probability: float | None
    depth: float | None
    volatility: float
    quiet_volatility: float
    lag_one: float | None
    moves_per_hour: float
    move: float | None
    drift_to_answer: float
    pointed_events: int
    answered_share: float | None
    agreeing_share: float | None
    silent_answered_share: float | None
    silent_agreeing_share: float | None
    response: tuple[float, ...]
    response_error: float | None


@dataclass(frozen=True)
class TradeFit:
    """Orders of agents of one kind of market; quartiles in dollars, leverage as (value, share)."""

    market: str
    per_hour: float
    usd: tuple[float, float, float]
    leverage: tuple[tuple[float, float], ...]
    held_minutes: float | None


def fit_stocks(recording: Recording) -> StockFit | None:
    """None when no price ever changed."""
    moves: dict[str, list[tuple[datetime, float]]] = {}
    impacts: list[float] = []
    for company, rows in grouped([(row.company, row.at, row.price, row.traded) for row in recording.prices]).items():
        for (_, before, _), (at, price, traded) in pairwise(rows):
            if price != before:
                if traded:
                    impacts.append(abs(math.log(price / before)))
                else:
                    moves.setdefault(company, []).append((at, math.log(price / before)))
    clock = recording.clock
    grid = {company: clock.grid(found) for company, found in sorted(moves.items())}
    flat = {company: [move for session in sessions for move in session] for company, sessions in grid.items()}
    flat = {company: values for company, values in flat.items() if any(values)}
    if not flat:
        return None
    grid = {company: grid[company] for company in flat}
    root = math.sqrt(3600 / clock.tick_s)
    scaled = [value / scale for values in flat.values() if (scale := rms(values)) for value in values if value]
    about = [(event, name) for event in recording.events for name in names(event.text, flat)]
    curve, error = response(clock, grid, about)
    return StockFit(
        volatility=tuple((company, rms(values) * root) for company, values in flat.items()),
        changes_per_hour=sum(len(found) for found in moves.values()) / len(flat) / clock.hours,
        lag_one=lag_one(grid),
        persistence=persistence(grid, clock.tick_s),
        absolute_lag_one=lag_one({name: [[abs(move) for move in session] for session in grid[name]] for name in grid}),
        correlation=correlation(list(flat.values())),
        excess_kurtosis=kurtosis(scaled),
        trade_impact=statistics.median(impacts) if impacts else None,
        named_events=sum(event.points != 0 for event, _ in about),
        response=curve,
        response_error=error,
    )


def fit_questions(recording: Recording) -> QuestionFit | None:
    """None when no probability ever changed."""
    answers = {str(question.number): question.answer for question in recording.questions}
    rows = grouped([(str(row.question), row.at, row.yes, row.depth) for row in recording.probabilities])
    moves: dict[str, list[tuple[datetime, float]]] = {}
    for number, found in rows.items():
        pairs = pairwise(found)
        moves[number] = [(at, logit(yes) - logit(before)) for (_, before, _), (at, yes, _) in pairs if yes != before]
    clock = recording.clock
    grid = {number: clock.grid(found) for number, found in sorted(moves.items()) if found}
    if not grid:
        return None
    about = [(event, str(event.question)) for event in recording.events if str(event.question) in grid]
    pointed = [(event, number) for event, number in about if event.points]
    told = {(clock.tick(event.at), number) for event, number in pointed}
    silent = [(event, number) for event, number in about if (clock.tick(event.at), number) not in told]
    played = {number: max(1, sum(at >= found[0][0] for at in clock.starts)) * clock.tick_s / 3600 for number, found in rows.items()}
    noisy = {(clock.tick(event.at), number) for event, number in about}
    everything = [move for number in grid for _, move in moves[number]]
    quiet = [move for number in grid for tick, move in numbered(grid[number]) if (tick, number) not in noisy]
    total_hours = sum(played[number] for number in grid)
    curve, error = response(clock, grid, pointed)
    answered, agreeing = _answered(clock, moves, [(event, number, event.points) for event, number in pointed])
    silent_answered, silent_agreeing = _answered(clock, moves, [(event, number, 1 if answers[number] else -1) for event, number in silent])
    toward = sum((1 if answers[number] else -1) * move for number in grid for _, move in moves[number])
    depths = [row.depth for row in recording.probabilities if row.depth]
    return QuestionFit(
        questions=len(grid),
        open_probability=statistics.mean(found[0][1] for found in rows.values()),
        depth=statistics.median(depths) if depths else None,
        volatility=math.sqrt(sum(move * move for move in everything) / total_hours),
        quiet_volatility=rms(quiet) * math.sqrt(3600 / clock.tick_s),
        lag_one=lag_one(grid),
        moves_per_hour=len(everything) / total_hours,
        move=statistics.median(abs(move) for move in everything),
        drift_to_answer=toward / total_hours,
        pointed_events=len(pointed),
        answered_share=answered,
        agreeing_share=agreeing,
        silent_answered_share=silent_answered,
        silent_agreeing_share=silent_agreeing,
        response=curve,
        response_error=error,
    )


def fit_trades(recording: Recording) -> tuple[TradeFit, ...]:
    """One for each kind of market that somebody traded in."""
    fits = []
    for market in sorted({trade.market for trade in recording.trades}):
        found = [trade for trade in recording.trades if trade.market == market]
        levers = [trade.leverage for trade in found if trade.leverage is not None]
        held = [trade.held_minutes for trade in found if trade.held_minutes is not None]
        low, middle, high = statistics.quantiles([trade.usd for trade in found], n=4) if len(found) > 1 else (found[0].usd,) * 3
        shares = tuple((lever, levers.count(lever) / len(levers)) for lever in sorted(set(levers)))
        fits.append(
            TradeFit(market, len(found) / recording.clock.hours, (low, middle, high), shares, statistics.median(held) if held else None)
        )
    return tuple(fits)


def _answered(
    clock: Clock, moves: Mapping[str, list[tuple[datetime, float]]], about: Sequence[tuple[EventRow, str, int]]
) -> tuple[float | None, float | None]:
    """Shares of the events whose question moved within a tick of them, and of those moves the share in the wanted direction."""
    first: list[bool] = []
    for event, number, wanted in about:
        until = event.at + timedelta(seconds=clock.tick_s)
        move = next((move for at, move in moves[number] if event.at <= at < until), None)
        if move is not None:
            first.append(move * wanted > 0)
    return share(len(first), len(about)), share(sum(first), len(first))
