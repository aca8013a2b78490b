"""Groups of episodes whose true skill is known, for benchmarks/judge.py, and how well scores recover it."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scipy.stats import spearmanr, t

RULES = (
    "You trade stocks and prediction markets. Each minute you see prices, headlines and your positions, and answer with one action as "
    "JSON. Fees are 0.1 % of the size; a position may be closed at any time; at the end of the hour everything is valued at the last price."
)
_COMPANIES = ("OpenLIE", "MetaVerse Holdings", "TeslaBot", "NeuraDrift", "Anthropig", "Amazoom")
_NEWS = ("denies the merger", "recalls its robots", "beats expectations", "loses its chief", "opens a plant on the moon", "is sued again")


@dataclass(frozen=True)
class Episode:
    """One agent's hour: what it was shown and what it answered, step by step; the last answer tells a scripted judge its skill."""

    agent: str
    skill: float
    steps: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Group:
    """The agents of an hour; no two have the same skill."""

    window: str
    episodes: tuple[Episode, ...]

    @property
    def skills(self) -> list[float]:
        """True skill by place."""
        return [episode.skill for episode in self.episodes]


def groups(count: int, size: int, seed: int) -> list[Group]:
    """So many groups; the same for the same seed."""
    rng = random.Random(seed)
    return [_group(rng, number, size) for number in range(count)]


def _group(rng: random.Random, number: int, size: int) -> Group:
    window = f"2026-{1 + number // 672:02d}-{1 + number // 24 % 28:02d}T{number % 24:02d}:00"
    skills = [place / 100 for place in rng.sample(range(101), size)]
    return Group(window, tuple(_episode(rng, f"agent-{number}-{place}", skill) for place, skill in enumerate(skills)))


def _episode(rng: random.Random, agent: str, skill: float) -> Episode:
    steps = []
    for minute in range(4):
        company = rng.choice(_COMPANIES)
        price, cash = rng.uniform(20, 400), rng.uniform(0, 9000)
        shown = f"Minute {minute}. {company} {rng.choice(_NEWS)}. {company} stands at ${price:.2f}; cash ${cash:.2f}."
        answer = {"action": rng.choice(("buy", "sell", "hold")), "ticker": company, "usd": rng.randrange(50, 900)}
        steps.append((shown, json.dumps(answer)))
    return Episode(agent, skill, (*steps[:-1], (steps[-1][0], f"{steps[-1][1]} skill={skill:.2f}")))


@dataclass(frozen=True)
class Recovered:
    """How scores follow the true skill: Spearman's rank correlation, its mean over the groups with scores and a 95 % interval."""

    rank_correlation: float
    low: float
    high: float
    lost: int


def recovered(asked: Sequence[Group], scores: Sequence[Sequence[float] | None]) -> Recovered:
    """``scores`` in the order of each group's episodes, None of a group without; scores that rank nothing correlate with nothing."""
    found = [_correlation(group.skills, given) for group, given in zip(asked, scores, strict=True) if given is not None]
    if len(found) < 2:
        return Recovered(found[0] if found else 0.0, 0.0, 0.0, len(asked) - len(found))
    half = float(t.ppf(0.975, len(found) - 1)) * stdev(found) / len(found) ** 0.5
    return Recovered(mean(found), mean(found) - half, mean(found) + half, len(asked) - len(found))


def _correlation(skills: Sequence[float], scores: Sequence[float]) -> float:
    if not all(map(math.isfinite, scores)) or len(set(scores)) < 2:
        return 0.0
    return float(spearmanr(skills, scores).statistic)


def misplaced(asked: Sequence[Group], scores: Sequence[Sequence[float] | None]) -> float:
    """The share of scores that are another agent's, where the judge says each one's skill exactly."""
    wrong = [
        not abs(skill - score) <= 1e-6  # not a number is wrong too
        for group, given in zip(asked, scores, strict=True)
        if given is not None
        for skill, score in zip(group.skills, given, strict=True)
    ]
    return sum(wrong) / len(wrong) if wrong else 0.0
