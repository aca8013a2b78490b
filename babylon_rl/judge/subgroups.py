"""Sub-groups of a group that is too large for one request, and their common scale.

Every sub-group holds the same few anchors. A part is shifted and stretched so that its anchors approach the mean and the deviation that
they have over all parts: fully where the anchors' scores fit such maps, and less where noise of the judge explains the difference,
which would otherwise reach every episode of the part. The map is increasing, so the order inside a part stays.
"""

import math
import random
from collections.abc import Mapping, Sequence

LEAST = 4  # episodes in a sub-group: two anchors, and two to place beside them
ENOUGH = 4  # anchors that tell a scale from noise
_NOTHING = 1e-9
_SAME = 9  # decimals: sums of floats differ in the last bits


def split(agents: Sequence[str], most: int, seed: int) -> list[list[str]]:
    """Split agents into overlapping sub-groups of at most ``most``; one group if all fit.

    They share a third of ``most`` as anchors, or up to ENOUGH of a half.

    Anchors and the rest are drawn by ``seed`` from the sorted agents, so that the same group splits the same way.

    Raises:
        ValueError: ``most`` is below LEAST, or an agent occurs twice.
    """
    if most < LEAST:
        raise ValueError(f"A sub-group of {most} cannot be put on one scale with others; it takes {LEAST}.")
    ordered = sorted(agents)
    if len(set(ordered)) != len(ordered):
        raise ValueError("An agent is there twice.")
    if len(ordered) <= most:
        return [ordered]
    random.Random(seed).shuffle(ordered)
    anchors = max(most // 3, min(ENOUGH, most // 2))
    shared, rest = ordered[:anchors], ordered[anchors:]
    parts = math.ceil(len(rest) / (most - anchors))
    # deal the rest like cards, so that the sizes of the parts differ by one at most
    return [sorted(shared + rest[part::parts]) for part in range(parts)]


def merge(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge the scores of some parts into one score (0..1) per agent.

    Agents are sorted. A single part stays as it is.

    With a judge whose scores in each part are a rising straight-line map of the same skill, the order is that of the skill. Two anchors
    or fewer tell how far parts lie apart, and nothing of their scale.

    Raises:
        ValueError: there are no parts, or they share no agent.
    """
    if not parts:
        raise ValueError("There is nothing to merge.")
    if len(parts) == 1:
        return dict(sorted(parts[0].items()))
    anchors = sorted(set.intersection(*(set(part) for part in parts)))
    if not anchors:
        raise ValueError("The parts share no agent.")
    gathered: dict[str, list[float]] = {}
    for part, (mean, to, stretch) in zip(parts, _maps([[part[agent] for agent in anchors] for part in parts]), strict=True):
        for agent, score in part.items():
            gathered.setdefault(agent, []).append(to + (score - mean) * stretch)
    return _within({agent: math.fsum(scores) / len(scores) for agent, scores in sorted(gathered.items())})


def _maps(anchors: Sequence[Sequence[float]]) -> list[tuple[float, float, float]]:
    """Map of each part: mean of its anchors, target of that mean, stretch."""
    moments = [_moments(scores) for scores in anchors]
    means, deviations = [mean for mean, _ in moments], [deviation for _, deviation in moments]
    middle, width, count = math.fsum(means) / len(means), math.fsum(deviations) / len(deviations), len(anchors[0])
    # two anchors give a shift but no scale
    scales = count > 2 and min(deviations) > _NOTHING
    aligned = [
        [(score - mean) * (width / deviation if scales else 1.0) for score in scores]
        for scores, (mean, deviation) in zip(anchors, moments, strict=True)
    ]
    # shift and stretch only by the share of the difference that noise does not explain
    noise = _disagreement(aligned, count - (2 if scales else 1))
    moved = _beyond(means, noise / count)
    stretched = _beyond([math.log(deviation) for deviation in deviations], noise / width**2 / (count - 1)) if scales else 0.0
    return [(mean, mean + moved * (middle - mean), (width / deviation) ** stretched if scales else 1.0) for mean, deviation in moments]


def _disagreement(aligned: Sequence[Sequence[float]], freedom: int) -> float:
    """Residual variance of one score after alignment; 0 if it cannot be estimated."""
    left = math.fsum(_spread(scores) for scores in zip(*aligned, strict=True))
    return left / (freedom * (len(aligned) - 1)) if freedom > 0 else 0.0


def _beyond(values: Sequence[float], noise: float) -> float:
    """Share of the variance of some values that exceeds ``noise``, the variance by noise alone."""
    variance = _spread(values) / (len(values) - 1)
    return max(0.0, 1.0 - noise / variance) if variance > _NOTHING**2 else 0.0


def _spread(values: Sequence[float]) -> float:
    """Sum of squares around the mean."""
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values)


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation."""
    return math.fsum(values) / len(values), math.sqrt(_spread(values) / len(values))


def _within(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores, compressed linearly if one lies outside 0 to 1."""
    low, high = min(0.0, *scores.values()), max(1.0, *scores.values())
    return {agent: round((score - low) / (high - low), _SAME) for agent, score in scores.items()}
