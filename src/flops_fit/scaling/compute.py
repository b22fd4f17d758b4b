"""Compute: measured FLOPs per token as a function of N, and the size that spends a budget best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flops_fit.errors import InputError
from flops_fit.scaling.forms import FORMS, Form
from flops_fit.scaling.law import Law, losses
from flops_fit.scaling.table import Runs

Array = NDArray[np.float64]

SAME_SIZE = 1.25      # a size whose N differs by more than this factor is not named as the answer
PROPORTIONAL = 0.05   # f/N constant within 5%: one ratio says it all, the rest is rounding of D
SEARCH = (65, *[17] * 7)  # points of the grids in log N, each one step wide of the last: ends within 1e-6 of log N
LEAST_FALL = 0.05     # exponent of D below which a law that bends says that data hardly matter
SAME_PARAMS = 1.01    # rows whose N differ by less are one model


def say_flops(value: float) -> str:
    """2.5e+11 -> '2.5e11': compute as people write it."""
    return f"{value:.3g}".replace("e+", "e") if value >= 1e6 else f"{value:g}"


@dataclass(frozen=True, slots=True)
class FlopsPerToken:
    """f(N): FLOPs of training on one token, from m measured models. Eq. S7.

    Between the rows log f is linear in log N; beyond both ends f is proportional to N.
    """

    params: tuple[float, ...]           # increasing
    flops_per_token: tuple[float, ...]  # forward and backward
    sizes: tuple[float, ...] = ()       # value of the size parameter of each row; () when unknown

    def __post_init__(self) -> None:
        increasing = all(a < b for a, b in zip(self.params, self.params[1:], strict=False))
        if not self.params or not increasing or min(*self.params, *self.flops_per_token) <= 0:
            raise InputError(f"flops_per_token: params {self.params} must be increasing and above zero, with one "
                             "positive FLOPs per token each; sort the table and drop repeated rows")
        if len(self.flops_per_token) != len(self.params) or len(self.sizes) not in (0, len(self.params)):
            raise InputError(f"flops_per_token: {len(self.params)} params, {len(self.flops_per_token)} FLOPs, "
                             f"{len(self.sizes)} sizes; give one of each a row (sizes may be left out)")

    @classmethod
    def six_n(cls) -> Self:
        """f = 6 N, the rule of Kaplan et al. 2020; it leaves out attention and is an assumption that must be said."""
        return cls((1.0,), (6.0,))

    @classmethod
    def from_runs(cls, runs: Runs) -> Self:
        """The table that the runs themselves hold: C/D of each model, once per N."""
        ratio = runs.flops / runs.tokens / runs.params
        sizes_known = not np.isnan(runs.size).any()
        if ratio.max() / ratio.min() - 1 < PROPORTIONAL and not sizes_known:
            return cls((1.0,), (float(np.median(ratio)),))
        rows: list[tuple[float, float, float]] = []
        group: list[int] = []
        order = np.argsort(runs.params, kind="stable").tolist()
        for row in [*order, None]:
            if group and (row is None or runs.params[row] >= SAME_PARAMS * runs.params[group[0]]):
                n = float(np.median(runs.params[group]))
                rows.append((n, n * float(np.median(ratio[group])), float(np.median(runs.size[group]))))
                group = []
            if row is not None:
                group.append(row)
        params, flops, sizes = zip(*rows, strict=True)
        return cls(params, flops, sizes if sizes_known else ())

    def __call__(self, params: ArrayLike) -> Array:
        """FLOPs per token of models with N = params, same shape. Eq. S7."""
        x = np.log(np.asarray(params, dtype=np.float64))
        grid, values = np.log(self.params), np.log(self.flops_per_token)
        beyond = np.minimum(x - grid[0], 0.0) + np.maximum(x - grid[-1], 0.0)
        return cast(Array, np.exp(np.interp(x, grid, values) + beyond))

    def nearest(self, params: float) -> tuple[float, float] | None:
        """(size, its N) of the measured model nearest to N, or None when unknown or more than a factor 1.25 away."""
        away = np.abs(np.log(np.array(self.params) / params))
        row = int(away.argmin())
        return (self.sizes[row], self.params[row]) if self.sizes and away[row] <= np.log(SAME_SIZE) else None


def optimum(law: Law, compute: ArrayLike, flops_per_token: FlopsPerToken) -> tuple[Array, Array, Array]:
    """(params, tokens, loss) that minimise the law at each compute C: argmin over N of L(N, C/f(N)). Eq. S8, S9.

    `compute` is in FLOPs, any shape; the three answers have that shape. Fresh data: no token is repeated.
    """
    c = np.asarray(compute, dtype=np.float64)
    n, d, loss = optima(FORMS[law.form], law.vector()[None], c.reshape(-1), flops_per_token)
    return n.reshape(c.shape), d.reshape(c.shape), loss.reshape(c.shape)


def optima(form: Form, laws: Array, compute: Array, flops_per_token: FlopsPerToken) -> tuple[Array, Array, Array]:
    """`optimum` of many laws: (K, p) and compute (m,) -> three arrays (K, m). Eq. S8, S9.

    Closed form where L falls with a sum of one power of N and one of D, else by search in log N.
    """
    exponents = form.exponents(laws)
    if exponents is None:
        return minimise_over_n(lambda n, d: sane_losses(form, laws, n, d), len(laws), compute, flops_per_token)
    e, a, b = (laws[:, form.index(name)] if name in form.names else np.zeros(len(laws)) for name in ("E", "A", "B"))
    n, d, loss = _closed(np.column_stack([e, a, b, *exponents]), compute, flops_per_token)
    return n, d, loss ** laws[:, form.index(form.power), None] if form.power else loss


def sane_losses(form: Form, laws: Array, params: Array, tokens: Array) -> Array:
    """Losses (K, ...) of law k at its own N and D (K, ...), inf where they mean nothing and are not to be chosen.

    That is below one token; below the shift, where a law says that data hardly matters; and where an exponent of D
    that changes with N has turned round, so that data would do harm. Far from the runs all three offer a giant model
    that saw a single token.
    """
    def column(name: str) -> Array:
        return laws[:, form.index(name)].reshape(-1, *[1] * (params.ndim - 1))

    found = losses(form, laws, params, np.maximum(tokens, 1.0), each=True)
    sane = tokens >= (np.maximum(column("shift"), 1.0) if form.warp == "shift" else 1.0)
    if "bend" in form.where:
        sane &= column("beta") - column("bend") * np.log(params) > LEAST_FALL
    return np.where(sane, found, np.inf)


def n_opt_exponents(form: Form, laws: Array, compute: float) -> Array:
    """a of N_opt ~ C^a where C = 6 N D, for K laws (K, p) -> (K,). Eq. S8.

    Where N_opt is no power of C, the local exponent over a factor e about `compute` FLOPs.
    """
    exponents = form.exponents(laws)
    if exponents is not None:
        return exponents[1] / (exponents[0] + exponents[1])
    n, _, _ = optima(form, laws, compute * np.exp([-0.5, 0.5]), FlopsPerToken.six_n())
    return cast(Array, np.log(n[:, 1] / n[:, 0]))


def _closed(laws: Array, compute: Array, flops_per_token: FlopsPerToken) -> tuple[Array, Array, Array]:
    """Of E + A/N^alpha + B/D^beta: f is a power law between two rows of its table, so on each piece the optimum has a
    closed form; the best of the pieces is the exact global optimum.
    """
    grid, values = np.log(flops_per_token.params), np.log(flops_per_token.flops_per_token)
    slopes = np.concatenate([[1.0], np.diff(values) / np.diff(grid), [1.0]])
    left = np.concatenate([[-np.inf], grid])
    right = np.concatenate([grid, [np.inf]])
    anchor, height = np.concatenate([grid[:1], grid]), np.concatenate([values[:1], values])  # a knot of each piece
    e, a, b, alpha, beta = (column[:, None, None] for column in laws.T)
    s = np.maximum(slopes, 1e-9)
    log_k = height - s * anchor                                   # f(N) = k N^s on the piece
    log_c = np.log(compute)[None, :, None]
    x = (np.log(alpha * a) - np.log(s * beta * b) + beta * (log_c - log_k)) / (alpha + s * beta)
    x = np.clip(x, left, right)                                   # (K, m, pieces)
    y = log_c - (height + slopes * (x - anchor))
    loss = e + a * np.exp(-alpha * x) + b * np.exp(-beta * y)
    best = loss.argmin(axis=2)[:, :, None]
    x = np.take_along_axis(x, best, axis=2)[:, :, 0]
    n = np.exp(np.clip(x, 0.0, _largest(compute, flops_per_token)))  # at least one parameter, at least one token
    d = compute / flops_per_token(n)
    return n, d, e[:, :, 0] + a[:, :, 0] * n ** -alpha[:, :, 0] + b[:, :, 0] * d ** -beta[:, :, 0]


def minimise_over_n(cost: Callable[[Array, Array], Array], count: int, compute: Array, flops_per_token: FlopsPerToken,
                    ) -> tuple[Array, Array, Array]:
    """(N, D, cost) of least cost(N, D) on C = f(N) D, by a grid in log N that closes in. Eq. S9b.

    `cost` maps N and D, (count, m, points) each, to the same shape; count is the number of laws.
    """
    log_c = np.log(compute)[None, :, None]
    low = np.broadcast_to(0.0, (count, len(compute))).copy()
    high = np.broadcast_to(_largest(compute, flops_per_token), low.shape).copy()
    x = value = low
    for points in SEARCH:
        grid = low[:, :, None] + (high - low)[:, :, None] * np.linspace(0, 1, points)   # (K, m, points)
        n = np.exp(grid)
        found = cost(n, np.exp(log_c) / flops_per_token(n))
        best = found.argmin(axis=2)[:, :, None]
        x, value = (np.take_along_axis(part, best, axis=2)[:, :, 0] for part in (grid, found))
        step = (high - low) / (points - 1)
        low, high = np.maximum(x - step, low), np.minimum(x + step, high)
    n = np.exp(x)
    return n, compute / flops_per_token(n), value


def _largest(compute: Array, flops_per_token: FlopsPerToken) -> Array:
    """log of the N that spends C on a single token, (m,): by bisection, f grows."""
    low, high = np.zeros(len(compute)), np.full(len(compute), 700.0)
    for _ in range(60):
        middle = (low + high) / 2
        over = np.log(flops_per_token(np.exp(middle))) > np.log(compute)
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return low
