"""The interval that estimates come with, what may enter one, and the quantiles that they need."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
Floats = npt.NDArray[np.float64]
Values = Sequence[float] | Floats


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, from ``count`` independent observations (snapshots, when repeats are clustered)."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def finite(values: Values, what: str = "values", fewest: int = 1) -> Floats:
    """The values as an array.

    Raises:
        ValueError: there are fewer than ``fewest``, or one is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size < fewest or not np.isfinite(x).all():
        wrong = [str(value) for value in x.ravel() if not np.isfinite(value)][:3]
        at_least = f", {fewest} at least" if fewest > 1 else ""
        raise ValueError(f"Finite {what} are needed{at_least}: there are {x.size}{', with ' + ', '.join(wrong) if wrong else ''}.")
    return x


def differences(ours: Values, theirs: Values) -> Floats:
    """``ours - theirs``, pair by pair.

    Raises:
        ValueError: they are not of the same length, empty, or not finite.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} values cannot be paired.")
    return np.asarray(finite(ours) - finite(theirs), dtype=np.float64)


def codes_of(clusters: Sequence[Hashable], count: int) -> npt.NDArray[np.int64]:
    """The cluster of every value as a number 0.. in order of first appearance.

    Raises:
        ValueError: there is not one label for each of ``count`` values.
    """
    if len(clusters) != count:
        raise ValueError(f"{count} values cannot have {len(clusters)} cluster labels: one each is needed.")
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in clusters], dtype=np.int64)


def cluster_means(values: Floats, clusters: Sequence[Hashable] | None) -> Floats:
    """One mean for every cluster, in order of first appearance; the values themselves without ``clusters``."""
    if clusters is None:
        return values
    codes = codes_of(clusters, values.size)
    return np.asarray(np.bincount(codes, weights=values) / np.bincount(codes), dtype=np.float64)


def tail(confidence: float) -> float:
    """The probability below the upper end: 0.975 for 95 %.

    Raises:
        ValueError: ``confidence`` is not a probability between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"A confidence lies between 0 and 1, not at {confidence}.")
    return 1 - (1 - confidence) / 2


def normal_quantile(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))


def student_quantile(probability: float, degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))
