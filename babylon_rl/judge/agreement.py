"""How far the orders in which a group was shown agree: per episode, for the group, and in rank."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Agreement:
    """The mean of some orders' scores and how they differ. Scores and differences are 0..1.

    ``disagreement`` is the mean absolute difference between two orders, over all pairs of orders; the group's is the mean over its
    episodes. ``tau`` is Kendall's (b), the mean over the pairs in which both orders rank at all; None where none does.
    """

    scores: Mapping[str, float]
    by_agent: Mapping[str, float]
    disagreement: float
    tau: float | None


def agreement(orders: Sequence[Mapping[str, float]]) -> Agreement:
    """What some orders (agent id -> score, all with the same agents) come to together; in order of agent id.

    Raises:
        ValueError: there is no order, or an empty one.
    """
    if not orders or not orders[0]:
        raise ValueError("There are no scores to agree on.")
    agents = sorted(orders[0])
    scores = {agent: math.fsum(order[agent] for order in orders) / len(orders) for agent in agents}
    pairs = list(combinations(orders, 2))
    by_agent = {agent: math.fsum(abs(one[agent] - two[agent]) for one, two in pairs) / max(1, len(pairs)) for agent in agents}
    taus = [tau for one, two in pairs if (tau := kendall_tau(one, two)) is not None]
    whole = math.fsum(by_agent.values()) / len(agents)
    return Agreement(scores, by_agent, whole, math.fsum(taus) / len(taus) if taus else None)


def kendall_tau(one: Mapping[str, float], two: Mapping[str, float]) -> float | None:
    """Kendall's tau-b between two orders' scores, -1..1; None where one of them does not rank (a single agent, or all the same)."""
    from scipy.stats import kendalltau

    agents = sorted(one)
    if min(len({order[agent] for agent in agents}) for order in (one, two)) < 2:
        return None
    return float(kendalltau([one[agent] for agent in agents], [two[agent] for agent in agents]).statistic)
