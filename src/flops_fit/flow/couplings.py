"""Which noise goes with which data (docs/math.md, F5-F7). One signature: (noise, data, labels) -> noise, reordered.

A minibatch coupling pairs the rows of one batch; all but "independent" bend the noise that a data point sees towards
it, so that paths cross less (Tong et al. 2023, arXiv 2302.00482; Pooladian et al. 2023, arXiv 2304.14772).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flops_fit.errors import InputError

Coupling = Callable[[Tensor, Tensor, Tensor | None], Tensor]

SINKHORN_STEPS = 200  # of the entropic plan; it stops earlier when both margins hold to MARGIN
MARGIN = 1e-3  # largest relative error of a row's mass
PRICE_BLUR, PRICE_STEPS = 0.04, 8  # of the prices that shorten the search: the quickest tried, 256 to 1024 rows


def independent(noise: Tensor, data: Tensor, labels: Tensor | None = None) -> Tensor:
    """Every noise with every data point: the order they came in."""
    return noise


def optimal(noise: Tensor, data: Tensor, labels: Tensor | None = None) -> Tensor:
    """The pairing of least total squared distance in the batch (F5).

    With labels (B,) noise must stay as likely under every label, or the model would learn what the label tells from the
    noise (a bias of conditional models): rows are then paired within their label only.
    """
    order = np.empty(len(data), dtype=np.int64)
    for rows in _groups(noise, data, labels):
        order[rows] = rows[_assigned(noise[rows], data[rows])]
    return noise[torch.from_numpy(order).to(noise.device)]


@dataclass(frozen=True)
class Entropic:
    """Pairs drawn from the entropic plan (F6; Cuturi 2013, arXiv 1306.0895) instead of the optimal one.

    Args:
        blur: the regularisation as a share of the mean cost; towards 0 the optimal plan, towards infinity independent.
    """

    blur: float = 0.05

    def __post_init__(self) -> None:
        if not self.blur > 0:
            raise InputError(f"blur: got {self.blur}; allowed is a share of the mean cost above 0, such as 0.05")

    def __call__(self, noise: Tensor, data: Tensor, labels: Tensor | None = None) -> Tensor:
        order = torch.empty(len(data), dtype=torch.int64, device=noise.device)
        for rows in _groups(noise, data, labels):
            where = torch.from_numpy(rows).to(noise.device)
            order[where] = where[torch.multinomial(self.plan(noise[where], data[where]), 1)[:, 0]]
        return noise[order]

    def plan(self, noise: Tensor, data: Tensor) -> Tensor:
        """(B, B) probabilities: row i the noise that goes with data i; rows and columns sum to 1 each."""
        cost = squared_distances(data, noise).double()  # (B, B)
        score = -cost / (self.blur * cost.mean() + torch.finfo(cost.dtype).tiny)  # equal rows cost nothing
        rows = columns = torch.zeros(len(data), dtype=score.dtype, device=score.device)
        for _ in range(SINKHORN_STEPS):
            rows = -torch.logsumexp(score + columns, dim=1)
            columns = -torch.logsumexp(score + rows[:, None], dim=0)
            plan = (score + rows[:, None] + columns).exp()
            if bool((plan.sum(dim=1) - 1).abs().max() < MARGIN):
                break
        return plan


COUPLINGS: dict[str, Callable[[], Coupling]] = {
    "independent": lambda: independent, "optimal": lambda: optimal, "entropic": Entropic,
}  # fmt: skip


def coupling_named(name: str) -> Coupling:
    if name not in COUPLINGS:
        raise InputError.unknown("coupling", name, COUPLINGS)
    return COUPLINGS[name]()


def transport_cost(noise: Tensor, data: Tensor) -> float:
    """Mean squared distance of the pairs (B, ...), in squared units of the data: what a coupling lowers."""
    return float((noise - data).flatten(1).square().sum(dim=1).mean())


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(B, B'): |a_i - b_j|^2 of flattened rows, by one matrix product."""
    a, b = _wide(a), _wide(b)
    return (a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)).clamp(min=0)


def _wide(x: Tensor) -> Tensor:
    """(B, D) in float32 at least: the products of half the digits pair other rows."""
    return x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))


def _groups(noise: Tensor, data: Tensor, labels: Tensor | None) -> list[np.ndarray]:
    """Row numbers of each label; all of them without labels."""
    n = len(data)
    if noise.shape != data.shape:
        raise InputError(f"noise: got shape {tuple(noise.shape)}; allowed is that of data, {tuple(data.shape)}")
    if labels is None:
        return [np.arange(n)]
    if labels.shape != (n,):
        raise InputError(f"labels: got shape {tuple(labels.shape)}; allowed is one label a row, ({n},)")
    values = labels.cpu().numpy()
    return [np.flatnonzero(values == value) for value in np.unique(values)]


def _assigned(noise: Tensor, data: Tensor) -> np.ndarray:
    """For each data row its noise row. Only the product enters: the norms are the same in every pairing."""
    cost = -(_wide(data) @ _wide(noise).T).cpu()  # (B, B)
    if not math.isfinite(cost.sum().item()):
        raise InputError("data: got NaN, infinity or numbers too large to multiply; allowed are finite rows")
    return cast(np.ndarray, linear_sum_assignment(_priced(cost).numpy())[1])


def _priced(cost: Tensor) -> Tensor:
    """(B, B) with the same best pairing, found sooner: a price is taken from each row and column, as F5 allows.

    The prices are those of an entropic plan that a few steps have brought near (F6).
    """
    cost = cost - cost.amin(dim=1, keepdim=True)
    blur = PRICE_BLUR * cost.mean() + torch.finfo(cost.dtype).tiny
    near = torch.exp((-cost / blur).clamp(min=-40))  # nothing smaller, so that no price overflows
    column = torch.ones_like(cost[0])
    for _ in range(PRICE_STEPS):
        column = 1 / ((1 / (near @ column)) @ near)
    cost = cost - blur * column.log()
    cost = cost - cost.amin(dim=1, keepdim=True)
    return cost - cost.amin(dim=0)
