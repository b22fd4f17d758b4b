"""Kernel distance of two sets of features (docs/math.md, V7): unbiased, so that few rows do not raise it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flops_fit.evaluate.metric import LEVEL, Metric
from flops_fit.evaluate.sets import checked, checked_pairs

DRAWS = 400  # resamples: all of them together are one more product with each kernel
AT_ONCE = 512  # rows of a kernel that are in memory together

Places = tuple[Tensor, Tensor]  # (s,) in the first set and (s,) in the second: where the same row stands in both


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy of features (n, D) and (m, D) with the kernel (x.y / D + 1)^3, without bias.

    Binkowski et al. 2018 (arXiv 1801.01401), over all rows at once: torch-fidelity's and torchmetrics' with
    one subset of all rows. Sets that are drawn alike have 0 on average, so it may be negative.

    A row says nothing about its set when it meets itself, so such pairs are left out: within a set, as everywhere, and
    here also where both sets hold the same row, equal in every number. Sets without a common row have the published
    value; a set has 0 from itself, where the published one is below 0 and rewards copies.

    Raises:
        InputError: other shapes, fewer than two rows, or numbers that are not finite.
    """
    first, second = checked(a, b)
    return float(_distances(first, second, *(torch.ones(len(rows), 1).double() for rows in (first, second))))


def kid(name: str, a: Tensor, b: Tensor) -> Metric:
    """The distance with its interval, rows of both resampled; a row that came twice does not meet itself. n is of `a`.

    Where the sets are drawn alike the interval is too wide, as resamples of such statistics are (Arcones
    and Gine 1992, Annals of Statistics 20, 655-674).
    """
    first, second = checked(a, b)
    dice = np.random.default_rng(0)
    found = _distances(first, second, _weights(len(first), dice), _weights(len(second), dice))
    return _metric(f"kid_{name}", found, len(first))


def kid_difference(a: Tensor, b: Tensor, real: Tensor) -> Metric:
    """Distance of `a` (n, D) to `real` (m, D) less that of `b` (n, D). Row i of both has one cause (the same noise), so
    all three are resampled with the same rows in `a` and in `b`; the interval is that of the difference."""
    first, second, reference = checked_pairs(a, b, real)
    dice = np.random.default_rng(0)
    own, known = _weights(len(first), dice), _weights(len(reference), dice)
    found = _distances(first, reference, own, known) - _distances(second, reference, own, known)
    return _metric("kid_difference", found, len(first))


def _weights(n: int, dice: np.random.Generator) -> Tensor:
    """(n, DRAWS + 1): how often each row came in each resample; last once each."""
    counts = [np.bincount(dice.integers(0, n, n), minlength=n) for _ in range(DRAWS)]
    return torch.from_numpy(np.stack([*counts, np.ones(n)], axis=1)).double()


def _metric(name: str, found: Tensor, n: int) -> Metric:
    """(DRAWS + 1,) values of resamples, and last of the rows as they are."""
    values = found.numpy()
    lo, hi = np.nanquantile(values[:-1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])  # resamples of one row alone have none
    return Metric(name=name, value=float(values[-1]), lo=float(lo), hi=float(hi), n=n)


def _distances(a: Tensor, b: Tensor, counts_a: Tensor, counts_b: Tensor) -> Tensor:
    """(draws,), of sets that hold the rows as often as counts (n, draws) and (m, draws) say."""
    own = [_mean(rows, rows, counts, counts, _diagonal(rows)) for rows, counts in ((a, counts_a), (b, counts_b))]
    return own[0] + own[1] - 2 * _mean(a, b, counts_a, counts_b, _shared(a, b))


def _mean(a: Tensor, b: Tensor, counts_a: Tensor, counts_b: Tensor, same: Places) -> Tensor:
    """(draws,) mean kernel of a row of a and one of b, but for those that are the same; NaN where no pair is left."""
    sums = torch.zeros(counts_a.shape[1], dtype=torch.float64)
    for start in range(0, len(a), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        kernel = (a[some] @ b.T / a.shape[1] + 1) ** 3  # (AT_ONCE, m)
        sums += (counts_a[some] * (kernel @ counts_b)).sum(dim=0)
    met = counts_a[same[0]] * counts_b[same[1]]  # (s, draws)
    itself = (a[same[0]].square().sum(dim=1, keepdim=True) / a.shape[1] + 1) ** 3  # (s, 1)
    pairs = counts_a.sum(dim=0) * counts_b.sum(dim=0) - met.sum(dim=0)
    return (sums - (met * itself).sum(dim=0)) / pairs


def _diagonal(rows: Tensor) -> Places:
    return torch.arange(len(rows)), torch.arange(len(rows))


def _shared(a: Tensor, b: Tensor) -> Places:
    """Rows that are equal in every number, each used once: of two in a and one in b, one pair."""
    known: dict[bytes, list[int]] = {}
    for place, row in enumerate((a + 0.0).numpy()):  # + 0.0, since 0 and -0 are equal and look different
        known.setdefault(row.tobytes(), []).append(place)
    pairs = [
        (known[key].pop(), place)
        for place, key in enumerate(row.tobytes() for row in (b + 0.0).numpy())
        if known.get(key)
    ]
    both = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)  # (s, 2)
    return both[:, 0], both[:, 1]
