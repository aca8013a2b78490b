"""Results of all seeds, as read by the page and its plots: standings and paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from babylon_rl.errors import UsageError
from babylon_rl.evaluation.statistics.intervals import Interval, Spread, mean_interval, paired_interval, spread_of
from babylon_rl.market.simulation.prompt_reader import CEILINGS
from babylon_rl.market.simulation.strategies import NAMES

Document = dict[str, Any]
BASE, STRATEGY = "base", "strategy"
PNLS, EXPECTEDS = "pnls", "expecteds"  # of a row: dollars of every market


@dataclass(frozen=True)
class Point:
    """Result of one generation of one seed; generation 0 is the base.

    ``row`` is None if no version was trained.
    """

    seed: int
    generation: int
    row: Document | None
    about: Document


@dataclass(frozen=True)
class OverSeeds:
    """Differences between versions of several seeds, in dollars an hour.

    The mean has two intervals for two questions.

    Attributes:
        each: by seed, over markets; 95 % for a single analysis.
        markets: these versions in other markets of the kind: averaged over the seeds in each market, markets are the draws.
        seeds: other trainings in these markets: averaged over the markets in each seed, seeds are the draws. Without ends for one seed.
    """

    each: Mapping[int, Interval]
    markets: Interval
    seeds: Interval


def require_comparable(results: Sequence[Document]) -> None:
    """Refuse seeds that were not played in the same markets.

    Raises:
        UsageError: the number of markets differs, as with another BENCHMARK_MARKETS, or scripts earned other sums.
    """
    first = {row["model"]: row for row in results[0]["standings"]}
    for result in results[1:]:
        for row in result["standings"]:
            if row["markets"] != first[BASE]["markets"] or (_same_for_all(row) and row[PNLS] != first[row["model"]][PNLS]):
                raise UsageError(
                    f"Seed {result['seed']} and seed {results[0]['seed']} were not played in the same markets ({row['model']}): "
                    "BENCHMARK_MARKETS or the market's code changed between them. Remove the older one's line from the file of results, "
                    "and its directory under evidence/ in the state directory, then run the command again."
                )


def points(result: Document) -> list[Point]:
    """The learning curve of a seed, the base first."""
    rows = {row["model"]: row for row in result["standings"]}
    curve = [Point(result["seed"], 0, rows[BASE], {})]
    for generation in result["generations"]:
        curve.append(Point(result["seed"], generation["generation"], rows.get(generation["modelVersion"]), generation))
    return curve


def newest(result: Document) -> Document | None:
    """The row of the newest version; None without any trained version."""
    trained = [point.row for point in points(result)[1:] if point.row is not None]
    return trained[-1] if trained else None


def last_released(result: Document) -> Document | None:
    """The row of the version that agents have in the end; None where it is the base."""
    rows = {row["model"]: row for row in result["standings"]}
    return next((rows[one["modelVersion"]] for one in reversed(result["generations"]) if one["released"]), None)


def goes_on_otherwise(result: Document) -> bool:
    """Whether a version was refused before the last generation: without the gate, another one would have played on."""
    return any(one["modelVersion"] is not None and not one["released"] for one in result["generations"][:-1])


def scripts(results: Sequence[Document]) -> list[Document]:
    """The rows of scripted players, which are the same for all seeds; without the ceiling."""
    return [row for row in results[0]["standings"] if _same_for_all(row) and row["model"] not in CEILINGS]


def at_stake(result: Document) -> list[Document]:
    """The rows of scripts at the mean stake of the seed's last released version; none in games with one fixed stake."""
    return [row for row in result["standings"] if row["role"] == STRATEGY and not _same_for_all(row)]


def _same_for_all(row: Document) -> bool:
    """Whether a row is of a script that plays the same with every seed."""
    return row["role"] == STRATEGY and row["model"] in (*NAMES, *CEILINGS)


def ceiling(results: Sequence[Document]) -> Document | None:
    """The row of the best play by the prompt; None in results from before it played."""
    return next((row for row in results[0]["standings"] if row["model"] in CEILINGS), None)


def base_of(result: Document) -> Document:
    """The row of the base."""
    return next(row for row in result["standings"] if row["model"] == BASE)


def parent_of(result: Document, point: Point) -> Document | None:
    """The row of a generation's parent version; the base for the first."""
    name = point.about.get("parentVersion") or BASE
    return next((row for row in result["standings"] if row["model"] == name), None)


def difference(ours: Document, theirs: Document, of: str = PNLS) -> Interval:
    """Paired difference of P&L or of expected dollars an hour, with a 95 % interval over markets."""
    return paired_interval(ours[of], theirs[of])


def spread(ours: Document, theirs: Document) -> Spread:
    """Spread of the difference between markets."""
    return spread_of(np.subtract(ours[PNLS], theirs[PNLS]))


def over_seeds(pairs: Mapping[int, tuple[Document, Document]], of: str = PNLS) -> OverSeeds:
    """Combined differences of several seeds (seed -> ours and theirs), with 95 % intervals."""
    each = {seed: difference(ours, theirs, of) for seed, (ours, theirs) in pairs.items()}
    # Averaged over seeds in each market: the draws of this interval are markets.
    ours, theirs = (np.mean([pair[side][of] for pair in pairs.values()], axis=0) for side in (0, 1))
    return OverSeeds(each, paired_interval(ours, theirs), mean_interval([found.mean for found in each.values()]))
