"""The results of all seeds as the page and its pictures read them: lines of standings, and differences market by market."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from babylon_rl.errors import UsageError
from babylon_rl.evaluation.statistics import Interval, Spread, mean_interval, paired_interval, spread_of

Document = dict[str, Any]
BASE, STRATEGY = "base", "strategy"


@dataclass(frozen=True)
class Point:
    """What one generation of one seed came to; 0 is the base. ``row`` is None where no version came of it."""

    seed: int
    generation: int
    row: Document | None
    about: Document


@dataclass(frozen=True)
class OverSeeds:
    """How much versions of several seeds earn more than others, in dollars an hour; the mean has two intervals for two questions.

    Attributes:
        each: by seed, over markets; 95 % at one look.
        markets: these versions in other markets of the kind: averaged over the seeds in each market, markets are the draws.
        seeds: other trainings in these markets: averaged over the markets in each seed, seeds are the draws. Without ends for one seed.
    """

    each: Mapping[int, Interval]
    markets: Interval
    seeds: Interval


def require_comparable(results: Sequence[Document]) -> None:
    """Raises UsageError: seeds were played in other markets, as by another BENCHMARK_MARKETS, or their scripts earned other sums."""
    first = {row["model"]: row for row in results[0]["standings"]}
    for result in results[1:]:
        for row in result["standings"]:
            if row["markets"] != first[BASE]["markets"] or (row["role"] == STRATEGY and row["pnls"] != first[row["model"]]["pnls"]):
                raise UsageError(
                    f"Seed {result['seed']} and seed {results[0]['seed']} were not played in the same markets ({row['model']}): "
                    "BENCHMARK_MARKETS or the market's code changed between them. Remove the older one's directory under evidence/ "
                    "in the state directory, then run the command again."
                )


def points(result: Document) -> list[Point]:
    """The learning curve of a seed, the base first."""
    rows = {row["model"]: row for row in result["standings"]}
    found = [Point(result["seed"], 0, rows[BASE], {})]
    for generation in result["generations"]:
        found.append(Point(result["seed"], generation["generation"], rows.get(generation["modelVersion"]), generation))
    return found


def newest(result: Document) -> Document | None:
    """The row of the newest version, None where no generation brought one."""
    trained = [point.row for point in points(result)[1:] if point.row is not None]
    return trained[-1] if trained else None


def scripts(results: Sequence[Document]) -> list[Document]:
    """The rows of those that no seed changes."""
    return [row for row in results[0]["standings"] if row["role"] == STRATEGY]


def base_of(result: Document) -> Document:
    """The row of the base."""
    return next(row for row in result["standings"] if row["model"] == BASE)


def parent_of(result: Document, point: Point) -> Document | None:
    """The row of the version from which a generation's training went on: the base for the first."""
    name = point.about.get("parentVersion") or BASE
    return next((row for row in result["standings"] if row["model"] == name), None)


def difference(ours: Document, theirs: Document) -> Interval:
    """Dollars an hour that one earned more than the other, market by market; 95 %."""
    return paired_interval(ours["pnls"], theirs["pnls"])


def spread(ours: Document, theirs: Document) -> Spread:
    """How much that difference varies between markets."""
    return spread_of(np.subtract(ours["pnls"], theirs["pnls"]))


def over_seeds(pairs: Mapping[int, tuple[Document, Document]]) -> OverSeeds:
    """The differences of several seeds (seed -> ours and theirs) together; 95 %."""
    each = {seed: difference(ours, theirs) for seed, (ours, theirs) in pairs.items()}
    ours, theirs = (np.mean([pair[side]["pnls"] for pair in pairs.values()], axis=0) for side in (0, 1))
    return OverSeeds(each, paired_interval(ours, theirs), mean_interval([found.mean for found in each.values()]))
