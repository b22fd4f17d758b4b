"""How sure: the law refitted to resampled runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flops_fit.errors import FitError, InputError
from flops_fit.scaling.forms import evaluate, jacobian
from flops_fit.scaling.huber import minimise, residuals
from flops_fit.scaling.law import LawFit, centred
from flops_fit.scaling.table import Runs

Array = NDArray[np.float64]
Resampling = Literal["smooth", "cases", "noise"]

LEVEL = 0.95
DRAW_TOLERANCE = 1e-6  # of the gradient: coefficients to 1e-4 of their own uncertainty, two steps earlier
MANY_RUNS = 5000       # from here on the draws are normal: a resample would be, and costs minutes
MOST_CELLS = 50_000_000  # draws x runs that are held at once
WINDOW = 0.5           # of the median miss: where the density of small residuals is counted
MOST_FAILED = 0.5      # share of resamples without a fit above which the others say nothing either


@dataclass(frozen=True, eq=False)
class Draws:
    """K laws that the runs could as well have given."""

    laws: Array                         # (K, p) in the order of the form's names
    weights: Array = field(repr=False)  # (K, n) weight of each run in each draw; all 1 where losses were drawn
    failed: int                         # resamples without a converged fit; they are not among the K
    how: str                            # in words, for the checklist


def resample(runs: Runs, draws: int, seed: int, how: Resampling = "smooth") -> Array:
    """(draws, n) weights, n a row. Eq. S11.

    smooth: the Bayesian bootstrap (Rubin 1981), weights as gaps of n random points. cases: counts of a draw with
    replacement (Efron 1979) within each budget that the sweep was planned with; budgets that were inferred are no
    strata, a run alone in one would never be drawn more or less often. Small sweeps lose whole corners to a draw of
    cases, and its intervals cover too often.
    """
    rng, n = np.random.default_rng(seed), len(runs)
    if how == "noise":
        return np.ones((draws, n))
    if how == "smooth":
        gaps = rng.exponential(size=(draws, n))
        return cast(Array, gaps * (n / gaps.sum(axis=1, keepdims=True)))
    strata = runs.budget if runs.grouped else np.zeros(n)
    weights = np.zeros((draws, n))
    for value in np.unique(strata):
        rows = np.flatnonzero(strata == value)
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=draws)
    return weights


def bootstrap_law(
    runs: Runs,
    fit: LawFit,
    draws: int = 4000,             # K
    seed: int = 0,
    how: Resampling = "smooth",
    noise: float | None = None,    # for "noise": standard deviation of a seed in log loss; None: of the residuals
) -> Draws:
    """Refit to resamples; every draw starts from the fitted law. Eq. S11.

    "noise" draws losses about the law (parametric), the others weight the runs. Raises FitError when most fail.
    """
    if how not in get_args(Resampling):
        raise InputError(f"resampling: got {how!r}; allowed are {', '.join(get_args(Resampling))}")
    if noise is not None and (how != "noise" or not 0 < noise < np.inf):
        raise InputError(f'noise: got {noise} with resampling {how!r}; it is the standard deviation of a seed in log '
                         'loss, above 0, and only resampling="noise" uses it')
    if len(runs) > MANY_RUNS and noise is None:
        return _normal(runs, fit, draws, seed)
    if draws * len(runs) > MOST_CELLS:
        raise InputError(f"noise: {draws} draws of {len(runs)} losses are too many to hold; leave noise out, above "
                         f"{MANY_RUNS} runs the draws are normal, or ask for fewer with bootstrap")
    problem, centre = centred(runs, fit.form, fit.delta, fit.space)
    weights = resample(runs, draws, seed, how)
    if how == "noise":
        noise = noise or float(np.sqrt((fit.log_residuals**2).sum() / max(len(runs) - len(fit.theta), 1)))
        law = np.log(fit.law.loss(runs.params, runs.tokens, runs.unique))
        drawn = noise * np.random.default_rng(seed).standard_normal((draws, len(runs)))
        problem = replace(problem, z=law - centre.z + drawn)
    found = minimise(np.repeat(fit.theta[None], draws, axis=0), problem, weights, tolerance=DRAW_TOLERANCE)
    laws = centre.undo(fit.form, found.theta)
    good = found.converged & np.isfinite(laws).all(axis=1)
    if good.mean() < 1 - MOST_FAILED:
        raise FitError(f"runs: {int((~good).sum())} of {draws} resamples have no fit, so no interval can be given; add "
                       "runs over a wider range of params and tokens, or leave out those that spoil the fit")
    words = {"smooth": "weightings of the runs (Bayesian bootstrap)", "cases": "draws of runs within each budget",
             "noise": f"draws of losses about the law, noise {noise or 0:.3g}"}[how]
    return Draws(laws[good], weights[good], int((~good).sum()), f"{draws} {words}")


def _normal(runs: Runs, fit: LawFit, draws: int, seed: int) -> Draws:
    """What resampling tends to with many runs: theta ~ N(fit, H^-1 G H^-1), G = sum of squared pulls. Eq. S11b."""
    problem, centre = centred(runs, fit.form, fit.delta, fit.space)
    at = evaluate(fit.form, fit.theta[None], problem.points)
    rows, miss = jacobian(fit.form, fit.theta[None], at)[0], residuals(problem, at)[0]   # (p, n), (n,)
    if fit.space == "linear":
        rows = rows * np.exp(at.log_loss)
    pulls = rows * np.clip(miss, -problem.delta, problem.delta)
    # H counts the runs within delta; where these are few, a wider window tells their density better.
    window = max(problem.delta, WINDOW * float(np.median(np.abs(miss))))
    share = min(problem.delta / window, 1.0) if np.isfinite(window) else 1.0
    bread = np.linalg.pinv(share * (rows * (np.abs(miss) < window)) @ rows.T)
    sampled = np.random.default_rng(seed).multivariate_normal(fit.theta, bread @ (pulls @ pulls.T) @ bread, size=draws,
                                                              method="eigh")
    low, high = problem.bounds()
    return Draws(centre.undo(fit.form, np.clip(sampled, low, high)), np.empty((0, len(runs))), 0,
                 f"{draws} normal draws with the sandwich covariance of {len(runs)} runs, whatever the resampling")


def interval(values: ArrayLike) -> tuple[Array, Array]:
    """95% percentile interval over the first axis of bootstrap values (K, ...). Eq. S12.

    How often it holds the truth in simulated studies: benchmarks/coverage.py.
    """
    low, high = np.percentile(np.asarray(values), [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    return cast(Array, low), cast(Array, high)


def symmetric(draws: Array, estimate: Array) -> tuple[Array, Array]:
    """95% interval estimate +- h along axis 0 of `draws` (K, ...); estimate (...). Eq. S12b; Hall 1988.

    Extrapolated losses of resamples lie to one side of the estimate, because E is pushed to its bound on one side only.
    Plain percentiles inherit that side, and correcting for it (Efron 1981) covers too seldom;
    distances from the estimate know no side.
    """
    half = np.percentile(np.abs(draws - estimate), 100 * LEVEL, axis=0)
    return cast(Array, estimate - half), cast(Array, estimate + half)
