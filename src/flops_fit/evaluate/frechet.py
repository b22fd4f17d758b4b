"""Frechet distance of two sets of features (docs/math.md, V6), by singular values: no matrix root is taken."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flops_fit.evaluate.metric import LEVEL, Metric, centred
from flops_fit.evaluate.sets import checked, checked_pairs

DRAWS = 200  # decompositions: enough for the width of an interval, few enough for a thousand rows of a thousand numbers

Gaussian = tuple[Tensor, Tensor]  # mean (D,) and a factor F (r, D) of the covariance F'F, r <= min(n, D)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features (n, D) and (m, D), in their squared unit.

    Heusel et al. 2017 (arXiv 1706.08500), Eq. 6, with covariances over n - 1 and float64 as the official scores have
    them. It falls with n and m, so compare only what has the same; D > n is allowed and makes that worse.

    Raises:
        InputError: other shapes, fewer than two rows, or numbers that are not finite.
    """
    first, second = checked(a, b)
    return _apart(*(_gaussian(rows, torch.ones(len(rows))) for rows in (first, second)))


def frechet(name: str, a: Tensor, b: Tensor) -> Metric:
    """The distance with the interval of what sets of n and m rows are apart, rows of both resampled; n is that of `a`.

    Read it beside the floor, the distance of two real sets of these sizes; near that the interval is too wide.
    Takes `DRAWS` decompositions of min(n, D) x min(m, D) numbers, and where n > D as many of n x D.
    """
    first, second = checked(a, b)
    dice = np.random.default_rng(0)

    def resampled(rows: Tensor) -> Gaussian:
        n = len(rows)
        return _gaussian(rows, torch.from_numpy(np.bincount(dice.integers(0, n, n), minlength=n)))

    found = [_apart(resampled(first), resampled(second)) for _ in range(DRAWS)]
    return centred(f"frechet_{name}", frechet_distance(a, b), found, len(a))


def frechet_difference(a: Tensor, b: Tensor, real: Tensor) -> Metric:
    """Distance of `a` (n, D) to `real` (m, D) less that of `b` (n, D). Row i of both has one cause (the same noise), so
    all three are resampled with the same rows in `a` and in `b`; the interval is that of the difference."""
    first, second, reference = checked_pairs(a, b, real)
    dice, sizes = np.random.default_rng(0), (len(first), len(reference))

    def difference(rows: Tensor, columns: Tensor) -> float:
        known = _gaussian(reference, columns)
        return _apart(_gaussian(first, rows), known) - _apart(_gaussian(second, rows), known)

    def resampled() -> float:
        return difference(*(torch.from_numpy(np.bincount(dice.integers(0, n, n), minlength=n)) for n in sizes))

    value, off = difference(*(torch.ones(n) for n in sizes)), np.array([resampled() for _ in range(DRAWS)])
    lo, hi = value + np.quantile(off - off.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Metric(name="frechet_difference", value=value, lo=float(lo), hi=float(hi), n=len(first))


def _gaussian(rows: Tensor, counts: Tensor) -> Gaussian:
    """Of a set that holds each of the rows (n, D) as often as `counts` (n,) says. Rows that it holds often enter once,
    with the root of their number: a resample has .63 n different ones."""
    n, kept = int(counts.sum()), counts > 0
    weights = counts[kept].double()[:, None]  # (n', 1)
    rows = rows[kept]
    mean = (weights * rows).sum(dim=0) / n
    factor = (weights / (n - 1)).sqrt() * (rows - mean)  # (n', D)
    if len(factor) > len(mean):
        factor = torch.linalg.qr(factor, mode="r").R  # (D, D), and F'F as before
    return mean, factor


def _apart(a: Gaussian, b: Gaussian) -> float:
    """S_a S_b = F_a'F_a F_b'F_b has the eigenvalues of (F_a F_b')(F_a F_b')', so that the trace of its root is the sum
    of the singular values of F_a F_b': exact where covariances lack rank, while roots of eigenvalues that rounding
    leaves of a zero would add up."""
    (mean_a, factor_a), (mean_b, factor_b) = a, b
    crossed = torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    apart = (mean_a - mean_b).square().sum() + factor_a.square().sum() + factor_b.square().sum() - 2 * crossed
    return max(0.0, float(apart))  # rounding may leave less
