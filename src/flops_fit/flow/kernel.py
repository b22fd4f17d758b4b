"""The velocity of remembered data, with a handful of trained numbers (docs/math.md, F19): what few data ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flops_fit.errors import InputError
from flops_fit.flow.baselines import full_covariance
from flops_fit.flow.paths import Schedule, path_named
from flops_fit.flow.precondition import rotated

FOLDS = 5  # parts of the training data, each told by the other four
FEWEST = 2 * FOLDS
KNOTS = 12  # along the axes, from the widest to the narrowest, of a number that changes from axis to axis
TIMES = 6  # knots along t
FIRST = (0.9, 0.6, 0.95, 0.8)  # bandwidths that the heads begin with, again from the first after the last
EQUAL = 1e-5  # relative difference of variances that are the same but for rounding
UNSHARP = -2.0  # logarithm of the share of the log-likelihoods that the first weights believe


class Memory(NamedTuple):
    """Data in the principal axes of their Gaussian."""

    mean: Tensor  # (D,) along the axes
    variances: Tensor  # (D,)
    rows: Tensor  # (n, D) less the mean
    axes: Tensor  # (D, D): columns

    @classmethod
    def of(cls, values: Tensor) -> Memory:
        axes, along = rotated(full_covariance(values))
        return cls(along.mean, along.variances, values @ axes - along.mean, axes)


def folded(values: Tensor, seed: int = 0) -> tuple[Tensor, list[Memory]]:
    """((n,) a fold for each row of values (n, D), as even as can be; what the other folds remember, for each).

    Raises:
        InputError: too few rows.
    """
    if len(values) < FEWEST:
        told = f"data: got {len(values)} vectors, which are told by each other in {FOLDS} folds"
        raise InputError(f"{told}; give at least {FEWEST}")
    generator = torch.Generator().manual_seed(seed)
    folds = torch.empty(len(values), dtype=torch.int64)
    folds[torch.randperm(len(values), generator=generator)] = torch.arange(len(values)) % FOLDS
    return folds, [Memory.of(values[folds != fold]) for fold in range(FOLDS)]


class KernelVelocity(nn.Module):
    """`forward(x (B, D), t (B,), labels (B,) or None) -> (B, D)`: expected velocity of a mixture around each row.

    A head takes the data for N(m + sqrt(1 - h^2) (row - m), h^2 S), a row drawn at random, with its own bandwidth h
    and scale of S along each axis, and its own trust in the likelihoods at each t; heads are mixed by axis and time.
    With one head and h = 1 it is the Gaussian (F15), with h -> 0 it repeats its rows.

    Trained on the rows that it remembers it would learn to repeat them. So the data are cut into FOLDS, and where
    `labels` (the fold of each row of x) are given, each row is told by memories and axes of the other folds alone.

    Args:
        heads: the size parameter; 102 numbers each.
        mean, variances: (D,) of the data along their principal axes (`rotated`).
        rows: (n, D) data less their mean, along those axes.
        path: name of the path.
        others: for training, for each fold what the others remember (`folded`).
    """

    def __init__(
        self, heads: int, mean: Tensor, variances: Tensor, rows: Tensor, path: str = "linear",
        others: Sequence[Memory] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        if rows.dim() != 2 or len(rows) < 2 or rows.shape[1] != len(mean):
            told = f"rows: got shape {tuple(rows.shape)} for {len(mean)} axes"
            raise InputError(f"{told}; allowed is (n, D) with at least 2 rows: give more data")
        self.path, self.heads = path_named(path), heads
        self.register_buffer("mean", mean)
        self.register_buffer("variances", variances)
        self.register_buffer("rows", rows)
        begin = torch.tensor([FIRST[head % len(FIRST)] for head in range(heads)])[:, None]
        self.bandwidth = nn.Parameter(torch.logit(begin).expand(heads, KNOTS).clone())  # before the sigmoid
        self.scale = nn.Parameter(torch.zeros(heads, KNOTS))  # logarithm
        self.trust = nn.Parameter(torch.full((heads, TIMES), UNSHARP))  # logarithm
        self.mix = nn.Parameter(torch.zeros(heads, TIMES, KNOTS))  # before the softmax over heads
        self.folds = len(others)
        for fold, memory in enumerate(others):  # they move with the model and are not saved with it
            for name, value in memory._asdict().items():
                self.register_buffer(f"{name}_{fold}", value, persistent=False)

    def num_params(self) -> int:
        """N: what is trained; memories are data."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # distances in half precision tell rows apart badly
            return self._told(x, t, "") if labels is None else self._told_by_others(x, t, labels)

    def _told_by_others(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """(B, D): each row by what the other folds remember."""
        if not self.folds:
            raise InputError("labels: got the folds of the rows, but no fold was remembered; give `others`")
        if unknown := sorted(set(labels.tolist()) - set(range(self.folds))):
            raise InputError(f"labels: got fold {unknown[0]}; allowed are 0 to {self.folds - 1}")
        found = torch.zeros_like(x)
        for fold in range(self.folds):
            at = (labels == fold).nonzero()[:, 0]
            if len(at):
                axes = self.get_buffer(f"axes_{fold}")
                found = found.index_copy(0, at, self._told(x[at] @ axes, t[at], f"_{fold}") @ axes.T)
        return found

    def _told(self, x: Tensor, t: Tensor, memory: str) -> Tensor:
        mean, variances, rows = (self.get_buffer(f"{name}{memory}") for name in ("mean", "variances", "rows"))
        at = self.path.at(t, x)  # (B, 1) each
        ranks = _ranks(variances)  # (D,)
        off = x - at.alpha * mean
        shares = _between(_between(self.mix, t, dim=1), ranks, dim=2).softmax(dim=0)  # (heads, B, D)
        velocity = at.d_alpha * mean
        for head in range(self.heads):
            width = torch.sigmoid(_between(self.bandwidth[head], ranks)).square()  # h^2, (D,)
            spread = variances * _between(self.scale[head], ranks).exp()
            trust = _between(self.trust[head], t).exp()[:, None]  # (B, 1)
            velocity = velocity + shares[head] * _mixture(at, off, (1 - width).sqrt() * rows, width * spread, trust)
        return velocity


def _mixture(at: Schedule, off: Tensor, centres: Tensor, variances: Tensor, trust: Tensor) -> Tensor:
    """(B, D): expected velocity around centres (n, D) with these variances (D,), the mean being 0 (F19)."""
    precision = 1 / (at.alpha.square() * variances + at.sigma.square()).clamp(min=torch.finfo(off.dtype).tiny)  # (B, D)
    near = at.alpha * (off * precision) @ centres.T - at.alpha.square() / 2 * precision @ centres.square().T  # (B, n)
    centre = (trust * near).softmax(dim=1) @ centres  # (B, D)
    rest = precision * (off - at.alpha * centre)
    return at.d_alpha * (centre + at.alpha * variances * rest) + at.d_sigma * at.sigma * rest


def _ranks(variances: Tensor) -> Tensor:
    """(D,) where each axis stands between the widest, 0, and the narrowest, on a scale of logarithms.

    Axes in which the data do not move at all have the shrunk covariance's least variance, and the last knot for
    themselves: which of them a held-out row will need, no training row tells.
    """
    still = variances <= variances.min() * (1 + EQUAL)
    still = still & (still.sum() > 1)
    place = (~still).cumsum(dim=0).to(variances.dtype)  # 1, 2, ...
    known = place.max().clamp(min=1)
    along = place.clamp(min=1).log() / (known + 1).log() * (KNOTS - 2) / (KNOTS - 1)
    return torch.where(still, torch.ones_like(along), along)


def _between(knots: Tensor, where: Tensor, dim: int = 0) -> Tensor:
    """Knots along `dim` evenly over [0, 1], read along straight lines at `where` (k,), which takes its place."""
    last = knots.shape[dim] - 1
    place = (where * last).clamp(0, last)
    below = place.floor().long().clamp(max=last - 1)
    share = (place - below).reshape(-1, *(1,) * (knots.dim() - dim - 1))
    return knots.index_select(dim, below) * (1 - share) + knots.index_select(dim, below + 1) * share

