"""A measured number with its interval; what was not measured has no number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flops_fit.errors import InputError
from flops_fit.records import Record

DRAWS = 2000
AT_ONCE = 100  # resamples in memory together
LEVEL = 0.95
Z = 1.959964  # standard deviations to either side that hold LEVEL of a normal

Statistic = Callable[[NDArray[np.int64]], float]  # of row numbers, with repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Record):
    """Value and 95% interval from n rows."""

    name: str
    value: float
    lo: float
    hi: float
    n: int

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} (95% {self.lo:.4g} to {self.hi:.4g}, n = {self.n:,})"

    def to_json(self) -> dict[str, Any]:
        """Without its name, which is the key of the table it stands in."""
        return {"value": self.value, "lo": self.lo, "hi": self.hi, "n": self.n}


def table(metrics: Sequence[Metric]) -> dict[str, dict[str, Any]]:
    return {metric.name: metric.to_json() for metric in metrics}


def mean_of(name: str, values: NDArray[np.floating[Any]], draws: int = DRAWS, seed: int = 0) -> Metric:
    """The mean of a number a row (n,), resampled by row."""
    return ratio_of(name, values, np.ones(len(values)), draws, seed)


def ratio_of(
    name: str, top: NDArray[np.floating[Any]], bottom: NDArray[np.floating[Any]], draws: int = DRAWS, seed: int = 0
) -> Metric:
    """sum(top) / sum(bottom) of two numbers a row (n,) each, resampled by row; 0 where there is nothing below."""
    both = np.stack((np.asarray(top, np.float64), np.asarray(bottom, np.float64)), axis=1)  # (n, 2)
    dice, n, found = np.random.default_rng(seed), len(both), []
    _check(name, n)
    for left in range(draws, 0, -AT_ONCE):
        sums = both[dice.integers(0, n, (min(left, AT_ONCE), n))].sum(axis=1)  # (draws at once, 2)
        found.append(sums)
    found.append(both.sum(axis=0, keepdims=True))
    sums = np.concatenate(found)
    ratios = np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] != 0)
    lo, hi = np.quantile(ratios[:-1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Metric(name=name, value=float(ratios[-1]), lo=float(lo), hi=float(hi), n=n)


def bootstrapped(name: str, statistic: Statistic, n: int, draws: int = DRAWS, seed: int = 0) -> Metric:
    """The statistic of all n rows, and the interval of its value in resamples of them (Efron 1979), by percentiles.

    Raises:
        InputError: fewer than two rows.
    """
    _check(name, n)
    dice = np.random.default_rng(seed)
    found = [statistic(dice.integers(0, n, n)) for _ in range(draws)]
    lo, hi = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Metric(name=name, value=statistic(np.arange(n)), lo=float(lo), hi=float(hi), n=n)


def _check(name: str, n: int) -> None:
    if n < 2:
        raise InputError(f"{name}: got {n} rows; an interval needs at least 2")


def centred(name: str, value: float, resampled: Sequence[float], n: int) -> Metric:
    """A distance between sets, >= 0, with the spread of its resamples about itself: what sets of that size are apart.

    Resamples repeat rows, so all of them are further apart than the sets: their quantiles would not hold the value.
    """
    off = np.asarray(resampled) - np.mean(resampled)
    lo, hi = np.quantile(off, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Metric(name=name, value=value, lo=max(0.0, value + float(lo)), hi=value + float(hi), n=n)


def share_of(name: str, hits: NDArray[np.bool_]) -> Metric:
    """The share of rows that are True, with Wilson's score interval (1927): 0 in n does not say that there are none."""
    _check(name, len(hits))
    n, share = len(hits), float(np.mean(hits))
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * (share * (1 - share) / n + Z**2 / (4 * n**2)) ** 0.5
    lo, hi = max(0.0, middle - half), min(1.0, middle + half)
    return Metric(name=name, value=share, lo=min(lo, share), hi=max(hi, share), n=n)  # rounding may put it outside


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their order (Holm 1979, Scandinavian J. of Statistics 6, 65-70)."""
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected
