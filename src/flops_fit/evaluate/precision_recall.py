"""How much of what was generated looks real, and how much of what is real was generated (docs/math.md, V8 and V9)."""

from __future__ import annotations

import torch
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.evaluate.metric import Metric, mean_of, share_of
from flops_fit.evaluate.sets import checked

NEIGHBOURS = 5  # of Naeem et al.; Kynkaanniemi et al. take 3
AT_ONCE = 512  # rows whose distances are in memory together
ROUNDING = 1e-12  # of |x|^2 + |y|^2: what float64 may leave of the squared distance of a row to itself, D up to 4,000


def precision_recall(name: str, real: Tensor, generated: Tensor, k: int = NEIGHBOURS) -> list[Metric]:
    """precision, recall, density and coverage of features (n, D) and (m, D), each with `name` behind.

    Around each row of a set lies a ball that reaches to its k-th nearest other row. *Precision* is the share of
    generated rows in a ball of a real one, *recall* of real rows in a ball of a generated one (Kynkaanniemi et al.
    2019, arXiv 1904.06991, Eq. 1 and 2). *Density* is in how many balls of real rows a generated one lies, over k: 1 on
    average where both are drawn alike, more where the generated ones keep to the middle. *Coverage* is the share of
    real rows whose ball holds a generated one (Naeem et al. 2020, arXiv 2002.09797, section 3).

    Intervals are of the rows that are counted, the balls as they are. All four depend on k, n and m.

    Raises:
        InputError: other shapes, numbers that are not finite, or a set without k other rows.
    """
    real, generated = checked(real, generated)
    fewest = min(len(real), len(generated))
    if not 1 <= k < fewest:
        raise InputError(f"k: got {k} with {fewest} rows in a set; allowed are 1 to {fewest - 1}: give more rows")
    centre = real.mean(dim=0)  # short vectors round less
    real, generated = real - centre, generated - centre
    inside, held, covered = _meet(generated, real, _reach(real, k))
    recalled = _meet(real, generated, _reach(generated, k))[0]
    return [
        share_of(f"precision_{name}", inside.numpy()),
        share_of(f"recall_{name}", recalled.numpy()),
        mean_of(f"density_{name}", held.double().numpy() / k),
        share_of(f"coverage_{name}", covered.numpy()),
    ]


def _reach(rows: Tensor, k: int) -> Tensor:
    """(n,) squared distance of each row to the k-th nearest other one."""
    found = []
    for start in range(0, len(rows), AT_ONCE):
        lengths, product = _parts(rows[start : start + AT_ONCE], rows)
        far = lengths - product
        some = torch.arange(len(far))
        far[some, start + some] = float("inf")  # not the row itself
        found.append(far.kthvalue(k, dim=1).values)
    return torch.cat(found)


def _meet(points: Tensor, centres: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of the points (m, D): is it in a ball, edge included, and in how many, edge excluded; of each of the
    balls (n, D), edge included: does it hold a point?

    Edges matter only where the sets share rows. A row at its own centre is in its ball, though that be no wider than a
    point; but the row that a ball reaches to is not counted, or a set would have density 1 + 1/k from itself.
    """
    inside, held, covered = [], [], torch.zeros(len(centres), dtype=torch.bool)
    for start in range(0, len(points), AT_ONCE):
        lengths, product = _parts(points[start : start + AT_ONCE], centres)
        touching = lengths * (1 - ROUNDING) - product <= reach  # (AT_ONCE, n)
        inside.append(touching.any(dim=1))
        held.append((lengths * (1 + ROUNDING) - product < reach).sum(dim=1))
        covered |= touching.any(dim=0)
    return torch.cat(inside), torch.cat(held), covered


def _parts(some: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """|x|^2 + |y|^2 and 2 x.y, (s, n) each: their difference is the squared distance, by one product of matrices."""
    lengths = some.square().sum(dim=1)[:, None] + among.square().sum(dim=1)  # (s, n)
    return lengths, 2 * some @ among.T
