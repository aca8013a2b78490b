"""Agreement between the orders of a group: per episode, for the group, and in rank."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

_SAME = 1e-9  # sums of the same scores differ in the last bits


@dataclass(frozen=True)
class Agreement:
    """Mean scores over some orders, and their disagreement. All values are 0..1.

    ``disagreement`` is the mean absolute difference between two orders, over all pairs of orders; the group's is the mean over its
    episodes. ``tau`` is Kendall's tau-b, the mean over the pairs in which both orders rank at all; None where no pair does.
    """

    scores: Mapping[str, float]
    by_agent: Mapping[str, float]
    disagreement: float
    tau: float | None


@dataclass(frozen=True)
class Gain:
    """Score that flagged passages gained each agent: as shown, less with the passages masked.

    ``noise`` is the mean absolute difference between two orders of the masked group, on which the passages have no influence.
    """

    by_agent: Mapping[str, float]
    noise: float

    @property
    def largest(self) -> float:
        """The largest gain or loss, 0..1."""
        return max(map(abs, self.by_agent.values()))

    @property
    def beyond_noise(self) -> bool:
        """True where the passages moved a score by more than another order does.

        Then the masked scores count.
        """
        return self.largest > self.noise + _SAME


def agreement(orders: Sequence[Mapping[str, float]]) -> Agreement:
    """Agreement of some orders (agent id -> score, same agents in each), by agent.

    Raises:
        ValueError: there is no order, or an empty one.
    """
    if not orders or not orders[0]:
        raise ValueError("There are no scores to agree on.")
    agents = sorted(orders[0])
    scores = {agent: math.fsum(order[agent] for order in orders) / len(orders) for agent in agents}
    pairs = list(combinations(orders, 2))
    by_agent = {agent: math.fsum(abs(one[agent] - two[agent]) for one, two in pairs) / max(1, len(pairs)) for agent in agents}
    # pairs in which one order gives a single score to all have no tau
    taus = [tau for one, two in pairs if (tau := kendall_tau(one, two)) is not None]
    disagreement = math.fsum(by_agent.values()) / len(agents)
    return Agreement(scores, by_agent, disagreement, math.fsum(taus) / len(taus) if taus else None)


def gain(shown: Agreement, masked: Agreement) -> Gain:
    """Gain of flagged passages, from a group's judgements with and without them."""
    return Gain({agent: round(shown.scores[agent] - score, 9) for agent, score in masked.scores.items()}, masked.disagreement)


def kendall_tau(one: Mapping[str, float], two: Mapping[str, float]) -> float | None:
    """Kendall's tau-b between two orders' scores, -1..1.

    None where one order does not rank: a single agent, or equal scores for all.
    """
    agents = sorted(one)
    # the sign of each pair's difference; importing scipy.stats for it takes longer than all the rest of a report
    ranked = [np.sign(np.subtract.outer(scores, scores)) for scores in ([order[agent] for agent in agents] for order in (one, two))]
    first, second = ranked
    pairs = float(np.sum(first * first)) * float(np.sum(second * second))  # neither ties nor themselves, in both
    return float(np.sum(first * second)) / math.sqrt(pairs) if pairs else None
