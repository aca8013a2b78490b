"""The success criteria of a training, as rows of the report: yes, no, or unknown, each with its numbers.

Each compares the candidate with the reference in the same markets: yes when the whole interval of the difference says so, no when the
whole interval says the contrary, else unknown. They describe; the gate decides. Left out: a correction for their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from babylon_rl.evaluation.comparison import Comparison, Standing
from babylon_rl.evaluation.statistics import Interval, mean_interval, paired_interval
from babylon_rl.store.benchmarks import MarketResult

YES, NO, UNKNOWN = "yes", "no", "unknown"
BETTER_PNL = 0.10
Count = Callable[[MarketResult], tuple[int, int]]  # hits and trials in one market


@dataclass(frozen=True)
class Criterion:
    """``met`` is yes, no or unknown."""

    name: str
    met: str
    words: str


def criteria(comparison: Comparison) -> tuple[Criterion, ...]:
    """The four criteria; none when the candidate was not compared."""
    if comparison.candidate is None or comparison.reference is None or comparison.candidate == comparison.reference:
        return ()
    ours, theirs = comparison.standing(comparison.candidate), comparison.standing(comparison.reference)
    confidence = comparison.confidence
    closed = _share_gain(ours, theirs, lambda result: (result.wins, result.wins + result.losses), confidence)
    right = _share_gain(ours, theirs, lambda result: (result.predictions_right, result.predictions), confidence)
    return (
        _better_pnl(ours, theirs, confidence),
        _share("better win rate", closed, "of the orders closed with a gain or a loss"),
        _fewer_errors(ours, theirs, confidence),
        _share("better timing", right, "of the orders in the direction that the market took over their tick"),
    )


def _better_pnl(ours: Standing, theirs: Standing, confidence: float) -> Criterion:
    """Whether ours is above theirs by BETTER_PNL of what theirs wins or loses."""
    factor = 1 + BETTER_PNL if theirs.pnl.mean >= 0 else 1 - BETTER_PNL
    beyond = paired_interval(ours.pnls_usd, [factor * usd for usd in theirs.pnls_usd], confidence=confidence)
    wanted = factor * theirs.pnl.mean
    words = f"{ours.pnl.mean:+.1f} where {wanted:+.1f} is asked: {beyond.mean:+.1f} beyond it [{beyond.low:+.1f}, {beyond.high:+.1f}]"
    return Criterion(f"{BETTER_PNL:.0%}+ better P&L", _met(beyond), words)


def _fewer_errors(ours: Standing, theirs: Standing, confidence: float) -> Criterion:
    errors = ours.invalid + ours.refused, theirs.invalid + theirs.refused
    if not any(errors):
        return Criterion("fewer errors", UNKNOWN, "neither made one: no unusable answer and no refused order")
    gain = _share_gain(theirs, ours, lambda result: (result.invalid + result.refused, result.decisions), confidence)
    return _share("fewer errors", gain, f"of the decisions ({errors[0]} errors against {errors[1]})")


def _share(name: str, gain: Interval | None, of_what: str) -> Criterion:
    if gain is None:
        return Criterion(name, UNKNOWN, "one of the two traded in no market")
    points = f"{100 * gain.mean:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    return Criterion(name, _met(gain), f"{points} {of_what}")


def _met(beyond: Interval) -> str:
    return YES if beyond.low > 0 else NO if beyond.high <= 0 else UNKNOWN


def _share_gain(ours: Standing, theirs: Standing, count: Count, confidence: float) -> Interval | None:
    """The difference of two shares of the same markets, clustered by market: ratio estimates, linearised (Cochran, Sampling
    Techniques, 1977, chapter 6), in the interval of means. None when one of them is a share of nothing."""
    parts = []
    for standing in (ours, theirs):
        hits, trials = np.array([count(result) for result in standing.results], dtype=np.float64).T
        if not trials.sum():
            return None
        share = hits.sum() / trials.sum()
        parts.append(share + (hits - share * trials) / trials.mean())
    linear: Sequence[float] = (parts[0] - parts[1]).tolist()
    return mean_interval(linear, confidence=confidence)
