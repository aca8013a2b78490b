"""Groups too large for one request: overlapping sub-groups, and their scores on one scale.

Every sub-group holds the same few anchors. A part is moved and stretched so that its anchors have the mean and the deviation that they
have over all parts; that map rises, so the order inside a part stays as it was judged.
"""

import math
import random
from collections.abc import Mapping, Sequence

LEAST = 4  # episodes in a sub-group: two anchors, which fix a scale, and two to place on it
_SAME = 9  # decimals: sums of floats differ in the last bits


def split(agents: Sequence[str], most: int, seed: int) -> list[list[str]]:
    """Sub-groups of at most ``most`` agents which share a third of that as anchors; one group where all fit.

    Anchors and the rest are drawn by ``seed`` from the sorted agents, so that the same group splits the same way.

    Raises:
        ValueError: ``most`` is below LEAST, or an agent is there twice.
    """
    if most < LEAST:
        raise ValueError(f"A sub-group of {most} cannot be put on one scale with others; it takes {LEAST}.")
    ordered = sorted(agents)
    if len(set(ordered)) != len(ordered):
        raise ValueError("An agent is there twice.")
    if len(ordered) <= most:
        return [ordered]
    random.Random(seed).shuffle(ordered)
    anchors = max(2, most // 3)
    shared, rest = ordered[:anchors], ordered[anchors:]
    parts = math.ceil(len(rest) / (most - anchors))
    return [sorted(shared + rest[part::parts]) for part in range(parts)]


def merge(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One score from 0 to 1 for every agent of some parts, in order of agent; a single part stays as it is.

    With a judge whose scores in each part are a rising straight-line map of the same skill, the order is that of the skill.

    Raises:
        ValueError: there is no part, or no agent that all parts share.
    """
    if not parts:
        raise ValueError("There is nothing to merge.")
    if len(parts) == 1:
        return dict(sorted(parts[0].items()))
    anchors = sorted(set.intersection(*(set(part) for part in parts)))
    if not anchors:
        raise ValueError("The parts share no agent.")
    spreads = [_moments([part[agent] for agent in anchors]) for part in parts]
    middle = math.fsum(mean for mean, _ in spreads) / len(parts)
    width = math.fsum(deviation for _, deviation in spreads) / len(parts)
    gathered: dict[str, list[float]] = {}
    for part, (mean, deviation) in zip(parts, spreads, strict=True):
        stretch = width / deviation if deviation > 1e-9 and width > 1e-9 else 1.0
        for agent, score in part.items():
            gathered.setdefault(agent, []).append(middle + (score - mean) * stretch)
    return _within({agent: math.fsum(scores) / len(scores) for agent, scores in sorted(gathered.items())})


def _moments(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def _within(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores, pressed together as far as it takes for all to lie in 0 to 1."""
    low, high = min(0.0, *scores.values()), max(1.0, *scores.values())
    return {agent: round((score - low) / (high - low), _SAME) for agent, score in scores.items()}
