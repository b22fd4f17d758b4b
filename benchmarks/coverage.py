"""Are the 95% intervals 95%? Counted in simulated studies whose law is known.

    python benchmarks/coverage.py [STUDIES]      400 studies of each of 8 kinds: about 8 minutes on 2 cores

Bar: between 92% and 97% for the exponent of N_opt, for N_opt and for the loss at 10 x the largest compute. 400 studies
know a coverage of 95% to +-1.1% (one standard error).
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from record import record

from flops_fit.scaling.compute import FlopsPerToken, optimum
from flops_fit.scaling.fit import fit
from flops_fit.scaling.law import Law
from flops_fit.scaling.table import Runs

SMALL = Law(E=0.7, A=400.0, B=100.0, alpha=0.45, beta=0.3)
LARGE = Law(E=1.817, A=478.0, B=2143.0, alpha=0.347, beta=0.367)  # near Hoffmann et al.'s runs
DESIGNS = ("5 budgets x 5 sizes", "9 budgets x 7 sizes", "grid of 6 N x 6 D", "5 budgets x 6 sizes, branches")
SHARED = 0.5               # of the variance of a branch, common to all branches of its size (a guess on the high side)
NOISES = (0.003, 0.01)     # standard deviation of a run in log loss
DRAWS = 400
ASKED = ("n_opt_exponent", "n_opt_at_10x", "loss_at_10x", "new_run_at_4x")
SIX_N = FlopsPerToken.six_n()


def isoflop(law: Law, budgets: np.ndarray, sizes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    best, _, _ = optimum(law, budgets, SIX_N)
    n = (best[:, None] * np.exp(np.linspace(-1.2, 1.2, sizes))).ravel()
    budget = np.repeat(budgets, sizes)
    return n, budget / (6 * n), budget


def branches(law: Law, budgets: np.ndarray, sizes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest rungs of one ladder at each budget, as a sweep of several D a trunk takes them."""
    best, _, _ = optimum(law, budgets, SIX_N)
    rungs = np.exp(np.arange(np.log(best[0]) - 1.6, np.log(best[-1]) + 1.6, 0.35))
    n = np.concatenate([rungs[np.argsort(np.abs(np.log(rungs / at)))[:sizes]] for at in best])
    budget = np.repeat(budgets, sizes)
    return n, budget / (6 * n), budget


def study(design: str, noise: float, seed: int) -> tuple[Law, Runs]:
    rng, shared = np.random.default_rng(seed), 0.0
    if design == DESIGNS[3]:
        law, shared = SMALL, SHARED
        n, d, budget = branches(law, 3e10 * 10 ** (0.25 * np.arange(5)), 6)
    elif design == DESIGNS[2]:
        law = LARGE
        n, d = (a.ravel() for a in np.meshgrid(np.geomspace(5e7, 1e9, 6), np.geomspace(2e9, 4e10, 6)))
        budget = None
    elif design == DESIGNS[1]:
        law = LARGE
        n, d, budget = isoflop(law, 1e18 * 2.0 ** np.arange(9), 7)
    else:
        law = SMALL
        n, d, budget = isoflop(law, 3e10 * 10 ** (0.5 * np.arange(5)), 5)
    trunk = np.unique(n, return_inverse=True)[1]
    common = rng.standard_normal(len(n))[trunk]  # the same for equal n
    miss = np.sqrt(1 - shared) * rng.standard_normal(len(n)) + np.sqrt(shared) * common
    loss = law.loss(n, d) * np.exp(noise * miss)
    return law, Runs.of(n, d, loss, budget=budget)


def covered(job: tuple[str, float, int]) -> list[bool]:
    """Which of ASKED the intervals of one study hold."""
    design, noise, seed = job
    law, runs = study(design, noise, seed)
    result = fit(runs, bootstrap=DRAWS, onset=0.0, law="chinchilla", seed=seed)
    far = 10 * float(runs.flops.max())
    answer, (n, _, loss) = result.predict(far), optimum(law, np.array([far]), SIX_N)
    nearer = result.predict(0.4 * far)
    new = float(law.loss(nearer.params, nearer.tokens)) * np.exp(noise * np.random.default_rng(~seed & 0xFFFF).normal())
    truth = {"n_opt_exponent": law.beta / (law.alpha + law.beta), "n_opt_at_10x": n[0], "loss_at_10x": loss[0],
             "new_run_at_4x": new}
    bands = {"n_opt_exponent": result.intervals["n_opt_exponent"], "n_opt_at_10x": answer.intervals["params"],
             "loss_at_10x": answer.intervals["expected_loss"], "new_run_at_4x": nearer.intervals["loss"]}
    return [bool(bands[name][0] <= truth[name] <= bands[name][1]) for name in ASKED]


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    table = {}
    with ProcessPoolExecutor() as pool:
        for design in DESIGNS:
            for noise in NOISES:
                hits = list(pool.map(covered, [(design, noise, seed) for seed in range(studies)], chunksize=10))
                shares = np.mean(hits, axis=0).round(4).tolist()
                table[f"{design}, noise {noise:.1%}"] = dict(zip(ASKED, shares, strict=True))
                print(f"{design}, noise {noise:.1%}: {shares}", file=sys.stderr)
    record("coverage", {"studies": studies, "draws": DRAWS, "asked": 0.95, "coverage": table})


if __name__ == "__main__":
    main()
