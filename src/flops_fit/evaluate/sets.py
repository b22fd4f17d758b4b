"""Distances between two sets of vectors, and whether one repeats the other (docs/math.md, V1-V4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.evaluate.metric import Metric, centred, share_of
from flops_fit.flow.loss import check_finite

PROJECTIONS = 256  # directions of the sliced distance
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the kernel, in units of the median distance of the second set
DRAWS = 400  # resamples of statistics that cost a matrix each
SLICED_DRAWS = 100  # each sorts all projections
AT_ONCE = 256  # rows whose distances are in memory together
NEIGHBOURS = 2000  # training rows whose nearest neighbours say what is near
CLOSE = 0.05  # of the training set's own nearest neighbours lie nearer than what counts as a repeat


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| (V1; Szekely and Rizzo 2013): 0 between equal sets, and between these only."""
    _check(a, b)
    return _between(_distances(a, b), _distances(a, a), _distances(b, b))


def mmd(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy with Gaussian kernels of several widths (V2; Gretton et al. 2012), >= 0."""
    _check(a, b)
    within = _distances(b, b)
    unit = _unit(within)
    return -_between(*(_kernel(one, unit) for one in (_distances(a, b), _distances(a, a), within)))


def sliced_wasserstein(a: Tensor, b: Tensor, seed: int = 0) -> float:
    """Root mean square over directions of the Wasserstein-2 distance of the projections (V3; Rabin et al. 2011)."""
    _check(a, b)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(a.shape[1], PROJECTIONS, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    first, second = ((rows.double().cpu() @ directions).T.numpy() for rows in (a, b))  # (PROJECTIONS, n) each
    return float(np.sqrt(np.mean([_wasserstein(x, y) for x, y in zip(first, second, strict=True)])))


def compared(name: str, a: Tensor, b: Tensor) -> list[Metric]:
    """Energy distance, MMD and sliced Wasserstein distance of `a` to `b`, rows of both resampled."""
    _check(a, b)
    across, first, second = (_distances(*pair) for pair in ((a, b), (a, a), (b, b)))
    kernels = [_kernel(one, _unit(second)) for one in (across, first, second)]

    def of(parts: tuple[NDArray[np.float64], ...], sign: int) -> Metric:
        label = f"{'energy_distance' if sign > 0 else 'mmd'}_{name}"
        return _two_sets(label, sign, *parts)

    energy = of(tuple(one.numpy() for one in (across, first, second)), 1)
    kernel = of(tuple(one.numpy() for one in kernels), -1)
    return [energy, kernel, _sliced(name, a, b)]


def _sliced(name: str, a: Tensor, b: Tensor) -> Metric:
    dice = np.random.default_rng(0)

    def resampled(rows: Tensor) -> Tensor:
        return rows[torch.from_numpy(dice.integers(0, len(rows), len(rows)))]

    found = [sliced_wasserstein(resampled(a), resampled(b)) for _ in range(SLICED_DRAWS)]
    return centred(f"sliced_wasserstein_{name}", sliced_wasserstein(a, b), found, len(a))


def _two_sets(
    label: str, sign: int, across: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> Metric:
    """`sign` times what is between them, the rows of both sets resampled."""
    dice = np.random.default_rng(0)

    def statistic(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> float:
        chosen = across[np.ix_(rows, columns)], first[np.ix_(rows, rows)], second[np.ix_(columns, columns)]
        return sign * _between(*chosen)

    n, m = len(first), len(second)
    found = [statistic(dice.choice(n, n), dice.choice(m, m)) for _ in range(DRAWS)]
    return centred(label, statistic(np.arange(n), np.arange(m)), found, n)


def memorised(samples: Tensor, training: Tensor, held_out: Tensor, also: Tensor | None = None) -> list[Metric]:
    """Share of samples nearer to a training row than `CLOSE` of those are to each other; the same of held-out rows.

    A model that invents has the held-out rows' rate; one that repeats has 1 (V4). Training rows that come twice do not
    say what is near.

    Args:
        also: other forms of training rows, such as mirror images, which are as good to repeat; they do not say either.
    """
    _check(samples, training)
    _check(held_out, training)
    some = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[:NEIGHBOURS]
    own = nearest(training[some], training, at=some)[0]
    near = float(own[own > 0].quantile(CLOSE)) if bool((own > 0).any()) else 0.0
    known = training if also is None else torch.cat((training, also))
    return [
        share_of(name, (nearest(rows, known)[0] <= near).cpu().numpy())
        for name, rows in (("memorised", samples), ("memorised_held_out", held_out))
    ]


def nearest(rows: Tensor, among: Tensor, at: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(n,) distance of each row (n, D) to the nearest of `among` (m, D), and (n,) which that is; where these hold the
    rows themselves, `at` these places: to another one."""
    found, places = [], []
    known = among.double()
    lengths = known.square().sum(dim=1)  # (m,)
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE].double()
        far = lengths - 2 * some @ known.T  # (AT_ONCE, m), by one product: squared distances but for |some|^2
        if at is not None:
            far[torch.arange(len(some)), at[start : start + AT_ONCE]] = float("inf")
        places.append(far.argmin(dim=1))
        found.append((some - known[places[-1]]).norm(dim=1))  # exact, so that a copy is at 0
    return torch.cat(found), torch.cat(places)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) float64."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").cpu()


def _between(across: Any, first: Any, second: Any) -> float:
    """2 mean(across) - mean(first) - mean(second), of distances or of kernels (tensors or arrays)."""
    return float(2 * across.mean() - first.mean() - second.mean())


def _unit(distances: Tensor) -> float:
    """The median distance of different rows of a set (n, n); of rows that are nearly all equal the mean, of equal 1."""
    n = len(distances)
    others = distances[~torch.eye(n, dtype=torch.bool)]
    return float(others.median()) or float(others.mean()) or 1.0


def _kernel(distances: Tensor, unit: float) -> Tensor:
    parts = [torch.exp(-0.5 * (distances / (width * unit)).square()) for width in BANDWIDTHS]
    return torch.stack(parts).mean(dim=0)


def _wasserstein(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Squared W2 of two samples on a line, of any sizes: both quantile functions are steps."""
    x, y = np.sort(x), np.sort(y)
    if len(x) == len(y):
        return float(np.square(x - y).mean())
    edges = np.union1d(np.arange(len(x) + 1) / len(x), np.arange(len(y) + 1) / len(y))
    middles = (edges[1:] + edges[:-1]) / 2
    gaps = x[(middles * len(x)).astype(int)] - y[(middles * len(y)).astype(int)]
    return float((np.diff(edges) * gaps**2).sum())


def checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in float64 on the CPU, so that no device or precision changes a score.

    Raises:
        InputError: not (n, D) and (m, D), fewer than two rows, or numbers that are not finite.
    """
    _check(a, b)
    first, second = (rows.detach().cpu().double() for rows in (a, b))
    return first, second


def checked_pairs(a: Tensor, b: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `checked`, of two sets (n, D) whose rows i have one cause, and of a third (m, D).

    Raises:
        InputError: as `checked`, or a row has no partner.
    """
    first, reference = checked(a, real)
    second, _ = checked(b, real)
    if len(first) != len(second):
        raise InputError(f"b: got {len(second)} rows for {len(first)} of a; row i of both must have one cause")
    return first, second, reference


def _check(a: Tensor, b: Tensor) -> None:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        raise InputError(f"sets: got shapes {tuple(a.shape)} and {tuple(b.shape)}; allowed are (n, D) and (m, D)")
    if len(a) < 2 or len(b) < 2:
        raise InputError(f"sets: got {len(a)} and {len(b)} rows; a distance needs at least 2 in each")
    check_finite("sets", a)
    check_finite("sets", b)
