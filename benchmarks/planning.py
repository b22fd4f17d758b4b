"""Planning a sweep of 100,000 candidate runs: time and memory, and whether the FLOPs of a plan are exact.

    python benchmarks/planning.py

Candidates are the pairs of 1,000 budgets and 100 sizes of the built-in GPT; sizes are measured, nothing is trained.
Bars: 5 s, 1 GB.
FLOPs of the built-in GPT are compared with a count by hand, matrix by matrix.
"""

from __future__ import annotations

import resource
import time
from dataclasses import replace

import numpy as np
from record import record

from flops_fit.recipes import load
from flops_fit.runs.watch import Quiet
from flops_fit.scaling.plan import plan_sweep
from flops_fit.scaling.rules import LrRule
from flops_fit.study import Study, Sweep

BUDGETS, SIZES = 1000, 100


def by_hand(d: int, context: int, vocabulary: int) -> float:
    """FLOPs a token of one block, forward and backward: q-k-v, out, 4x network in and out, attention, tied head."""
    matrices = 3 * d * d + d * d + 2 * 4 * d * d + vocabulary * d
    attention = 2 * context * d  # q k' and its product with v, over the whole square as torch counts it
    return 3 * 2.0 * (matrices + attention)


def main() -> None:
    recipe: Study = load("gpt-python")
    sizes = tuple(8 * k for k in range(4, 4 + SIZES))
    budgets = tuple(np.geomspace(1e12, 1e15, BUDGETS))
    one_block = {**recipe.model_kwargs, "depth": 1, "heads": 4}
    study = replace(recipe, model_kwargs=one_block, compute_budgets=budgets, sizes=sizes, max_epochs=1e9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures: dict[str, object] = {"candidates": BUDGETS * SIZES}
    for schedule in ("wsd", "wsd-branch"):
        sweep = Sweep(replace(study, schedule=schedule), executor="inline", workers=1, watch=Quiet())
        started = time.perf_counter()
        for size in sizes:
            sweep.sizes.at(size)
        measured = time.perf_counter()
        specs, skipped = plan_sweep(sweep.prepared.budgets, sweep.sizes, sweep.rules(LrRule.of(study.lr)))
        figures[f"{schedule} seconds"] = round(time.perf_counter() - started, 2)
        figures[f"{schedule} seconds, of which measuring sizes"] = round(measured - started, 2)
        assert len(specs) + len(skipped) == BUDGETS * SIZES
    figures["gigabytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
    figures["of which before planning"] = round(before / 2**20, 3)
    exact = {m.flops_per_token / by_hand(m.size, 64, 256) - 1 for m in sweep.sizes.measured}
    figures["flops against a count by hand, largest relative difference"] = max(map(abs, exact))
    record("planning", figures)


if __name__ == "__main__":
    main()
