"""Running sums of the report: each judged group is reduced to a few numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from babylon_rl.judge.reliability_measures import Estimate, Moments, length_moments, mean_estimate
from babylon_rl.judge.reliability_ranks import FEWEST_RANKED, centred_ranks, spearman
from babylon_rl.store.judge_report import JudgedEpisode, JudgedHour

PLACES = 5  # from the first fifth of a request to the last
PNL_RANKS = 5
MOST_POINTS = 2_000
MOST_USD = 1e9  # larger amounts are clipped: they cannot be squared or drawn
Bins = list[list[tuple[float, float]]]  # of each bin (place, value), the means of one group each


@dataclass(frozen=True)
class HourPoint:
    """Points of one hour in the plots: disagreement, tau, rank correlation with P&L.

    None where orders or scores do not rank.
    """

    window: str
    disagreement: float | None
    tau: float | None
    pnl_correlation: float | None


@dataclass
class Groups:
    """Sums over the groups so far.

    Every ``every``-th hour leaves its episodes as points (P&L in dollars, score) for a plot.
    """

    every: int = 1
    episodes: int = 0
    flagged: int = 0
    masked: int = 0
    gains: list[float] = field(default_factory=list)
    without_pnl_ranks: int = 0
    hours: list[HourPoint] = field(default_factory=list)
    slopes: list[tuple[float, float]] = field(default_factory=list)
    by_place: Bins = field(default_factory=lambda: [[] for _ in range(PLACES)])
    by_pnl_rank: Bins = field(default_factory=lambda: [[] for _ in range(PNL_RANKS)])
    mean_places: list[float] = field(default_factory=list)
    lengths: list[Moments] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)

    def add(self, hour: JudgedHour, episodes: Sequence[JudgedEpisode]) -> None:
        """Add one group."""
        with_pnl = [episode for episode in episodes if episode.pnl_usd is not None and math.isfinite(episode.pnl_usd)]
        pnls = [max(-MOST_USD, min(MOST_USD, episode.pnl_usd or 0.0)) for episode in with_pnl]
        scores = [episode.score for episode in with_pnl]
        # agreement between orders and with P&L, one point per hour
        correlation = spearman(scores, pnls)
        self.without_pnl_ranks += correlation is None
        several = hour.orders > 1
        self.hours.append(HourPoint(hour.window, hour.disagreement if several else None, hour.tau if several else None, correlation))
        if len(self.hours) % self.every == 0:
            self.points += zip(pnls, scores, strict=True)
        # flagged passages, and their gain
        self.episodes += len(episodes)
        self.flagged += sum(episode.flags > 0 for episode in episodes)
        self.masked += hour.masked is True
        gains = [episode.gain for episode in episodes if episode.gain is not None and episode.flags]
        self.gains += [_mean(gains)] if gains else []
        # place, P&L rank and length, each as a mean per group
        self._add_places(episodes)
        if correlation is not None:
            _bin(self.by_pnl_rank, list(zip(_shares(pnls), scores, strict=True)))
        if len(with_pnl) >= FEWEST_RANKED and all(episode.shown_tokens > 0 for episode in with_pnl):
            self.lengths.append(length_moments(scores, [float(episode.shown_tokens) for episode in with_pnl], pnls))

    def _add_places(self, episodes: Sequence[JudgedEpisode]) -> None:
        """Add places and scores as differences from the episode's mean over its orders.

        With a single order, the difference is from the group's mean.
        """
        seen = [e for e in episodes if e.order_scores and len(e.order_scores) == len(e.places)]
        if not seen:
            return
        placed = [(_mean(e.places), _mean(e.order_scores)) for e in seen]
        self.mean_places.append(_variance([place for place, _ in placed]))
        # one order: an episode has no mean of its own, so that of the group stands in
        if max(len(e.places) for e in seen) == 1:
            middle = (_mean([place for place, _ in placed]), _mean([score for _, score in placed]))
            placed = [middle] * len(seen)
        pairs = [
            (place, place - own_place, score - own_score)
            for episode, (own_place, own_score) in zip(seen, placed, strict=True)
            for place, score in zip(episode.places, episode.order_scores, strict=True)
        ]
        self.slopes.append((math.fsum(x * y for _, x, y in pairs), math.fsum(x * x for _, x, _ in pairs)))
        _bin(self.by_place, [(place, deviation) for place, _, deviation in pairs])

    @property
    def mean_place_deviation(self) -> float:
        """Standard deviation of the mean places of a group's episodes; 0 with reversed pairs."""
        return math.sqrt(_mean(self.mean_places)) if self.mean_places else 0.0

    @staticmethod
    def estimates(bins: Bins) -> Iterator[tuple[float, Estimate]]:
        """Yield the mean place (0..1) and the estimate of each bin that is not empty."""
        for pairs in bins:
            estimate = mean_estimate([value for _, value in pairs])
            if estimate is not None:
                yield _mean([place for place, _ in pairs]), estimate


def _bin(bins: Bins, pairs: Sequence[tuple[float, float]]) -> None:
    """Add the mean of one group's places (0..1) and values in each bin."""
    by_bin: dict[int, list[tuple[float, float]]] = {}
    for place, value in pairs:
        by_bin.setdefault(min(len(bins) - 1, int(place * len(bins))), []).append((place, value))
    for number, own in by_bin.items():
        bins[number].append((_mean([place for place, _ in own]), _mean([value for _, value in own])))


def _shares(values: Sequence[float]) -> list[float]:
    """Ranks from 0 (least) to 1."""
    return [rank + 0.5 for rank in centred_ranks(values)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    middle = _mean(values)
    return _mean([(value - middle) ** 2 for value in values])
