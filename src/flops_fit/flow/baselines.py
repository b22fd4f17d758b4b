"""Velocities that need no training: what a network must beat to have learned anything (docs/math.md, F15-F17)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.flow.loss import check_finite
from flops_fit.flow.paths import Path, Schedule


def zero(x: Tensor, t: Tensor) -> Tensor:
    """What an untrained network predicts: on unit-variance data its loss is 2."""
    return torch.zeros_like(x)


@dataclass(frozen=True)
class Gaussian:
    """Data taken for N(mean, S), S = U diag(variances) U' + rest (I - U U'): its velocity is known exactly (F15).

    The best linear predictor of the velocity, and the best of all for data that is Gaussian.
    """

    mean: Tensor  # (D,)
    variances: Tensor  # (K,) along the columns of `basis`, descending
    basis: Tensor  # (D, K) orthonormal; K = 0: isotropic
    rest: float  # variance of every other direction
    shrinkage: float = 0.0  # share of S that is the mean variance times I
    note: str = ""  # what a reader must know of the fit

    def velocity(self, path: Path) -> Callable[[Tensor, Tensor], Tensor]:
        """(x (B, ...), t (B,)) -> E[velocity | x_t = x] on that path."""
        return partial(self._velocity, path)

    def _velocity(self, path: Path, x: Tensor, t: Tensor) -> Tensor:
        rows = x.flatten(1)  # (B, D)
        if rows.shape[1] != len(self.mean):
            raise InputError(f"x: got rows of {rows.shape[1]} numbers; the Gaussian is of {len(self.mean)}")
        at = path.at(t, rows)
        off = rows - at.alpha * self.mean
        whole = self.basis.shape[1] == len(self.mean)  # then no other direction is left, whose gain may be infinite
        elsewhere = 0.0 if whole else _gain(at, x.new_tensor([self.rest]))  # (B, 1)
        along = _gain(at, self.variances) - elsewhere  # (B, K)
        v = at.d_alpha * self.mean + elsewhere * off + (along * (off @ self.basis)) @ self.basis.T
        return v.view_as(x)

    def isotropic(self) -> Gaussian:
        """The same mean, and its mean variance in every direction: what `isotropic` makes of the same data."""
        (dims,), known = self.mean.shape, len(self.variances)
        level = (float(self.variances.sum()) + self.rest * (dims - known)) / dims
        return Gaussian(self.mean, self.variances[:0], self.basis[:, :0], level)


def _gain(at: Schedule, variance: Tensor) -> Tensor:
    """(B, K): regression of the velocity on x_t along directions of these variances (F16)."""
    spread = at.alpha.square() * variance + at.sigma.square()
    return (at.d_alpha * at.alpha * variance + at.d_sigma * at.sigma) / spread.clamp(min=torch.finfo(spread.dtype).tiny)


def isotropic(data: Tensor) -> Gaussian:
    """Mean and one variance for all directions, of data (n, ...)."""
    rows = _rows(data)
    mean = rows.mean(dim=0)
    return Gaussian(mean, mean[:0], mean.new_zeros(len(mean), 0), float((rows - mean).square().mean()))


def full_covariance(data: Tensor, shrinkage: float | None = None) -> Gaussian:
    """Mean and covariance of data (n, ...), shrunk towards its mean variance: (1 - s) S + s mean(diag S) I (F17).

    Args:
        shrinkage: s, 0 to 1; None: by Ledoit and Wolf (2004, J. Multivariate Analysis 88).
    """
    rows = _rows(data)
    n, dims = rows.shape
    mean = rows.mean(dim=0)
    centred = rows - mean
    share = _ledoit_wolf(centred) if shrinkage is None else shrinkage
    if not 0 <= share <= 1:
        raise InputError(f"shrinkage: got {share}; allowed is 0 (none) to 1 (isotropic), or None for Ledoit and Wolf's")
    if share == 0 and n <= dims:
        raise InputError(f"shrinkage: got 0 with {n} samples of {dims} numbers, whose covariance is singular; "
                         "allowed is a share above 0, or None for Ledoit and Wolf's")  # fmt: skip
    variances, basis = _principal(centred)
    level = float(centred.square().mean())
    return _shrunk(mean, variances, basis, level, share, f"covariance of {n} samples in {dims} dimensions")


def shrunk(data: Tensor, shrinkages: Sequence[float]) -> list[Gaussian]:
    """`full_covariance` with each of these shrinkages, above 0; decomposed once."""
    if wrong := [share for share in shrinkages if not 0 < share <= 1]:
        raise InputError(f"shrinkages: got {wrong[0]}; allowed are shares above 0, up to 1 (isotropic)")
    rows = _rows(data)
    mean = rows.mean(dim=0)
    centred = rows - mean
    (variances, basis), level = _principal(centred), float(centred.square().mean())
    what = f"covariance of {len(rows)} samples in {rows.shape[1]} dimensions"
    return [_shrunk(mean, variances, basis, level, share, what) for share in shrinkages]


def _shrunk(mean: Tensor, variances: Tensor, basis: Tensor, level: float, share: float, what: str) -> Gaussian:
    note = f"{what}, shrunk by {share:.3g}"
    return Gaussian(mean, (1 - share) * variances + share * level, basis, share * level, share, note)


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """(variances (K,), basis (D, K)) of centred rows (n, D), by the smaller Gram matrix: K is D, or below n."""
    n, dims = centred.shape
    if n > dims:
        variances, basis = torch.linalg.eigh(centred.T @ centred / n)  # ascending
        return variances.flip(0).clamp(min=0), basis.flip(1)
    squares, left = torch.linalg.eigh(centred @ centred.T)  # (n,), (n, n)
    squares, left = squares.flip(0)[: n - 1].clamp(min=0), left.flip(1)[:, : n - 1]
    keep = squares > squares[0] * n * torch.finfo(squares.dtype).eps
    squares, left = squares[keep], left[:, keep]
    return squares / n, centred.T @ left / squares.sqrt()


def _ledoit_wolf(centred: Tensor) -> float:
    """The shrinkage of least expected squared error, estimated from the rows themselves (n, D)."""
    n, dims = centred.shape
    gram = centred @ centred.T / n if n <= dims else None
    small = centred.T @ centred / n if gram is None else gram  # of the same trace and norm
    level = float(small.diagonal().sum()) / dims
    away = float(small.square().sum()) / dims - level**2  # |S - level I|^2 / D
    fourth = float(centred.square().sum(dim=1).square().sum()) / n**2 / dims
    noise = min(fourth - float(small.square().sum()) / n / dims, away)
    return min(1.0, max(0.0, noise / away)) if away > 0 else 1.0


def _rows(data: Tensor) -> Tensor:
    check_finite("data", data)
    if len(data) < 2:
        raise InputError(f"data: got {len(data)} samples; a Gaussian needs at least 2")
    return data.flatten(1)
