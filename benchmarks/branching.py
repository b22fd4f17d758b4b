"""Several D out of one run against a run for each: gpt-python both ways, at the same sizes and budgets.

    python benchmarks/branching.py              about 25 minutes on 2 cores; resumable, in outputs/branching
    python benchmarks/branching.py --seeds 2    the mean over seeds

The separate runs follow their own rules: batch, learning rate and warmup of each run's own D, decay over half of it.
Printed are the FLOPs that were really spent, the differences of the losses at the shared points and the exponents.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from record import record

from flops_fit.recipes import load
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import ProcessExecutor
from flops_fit.runs.journal import Journal
from flops_fit.runs.watch import default_watch
from flops_fit.scaling.fit import fit
from flops_fit.scaling.plan import plan_sweep
from flops_fit.scaling.rules import LrRule
from flops_fit.study import Sweep

FOLDER = Path("outputs/branching")
BUDGETS = (3e11, 4e11, 5.4e11, 7.3e11, 9.8e11, 1.3e12, 1.8e12, 2.4e12)  # closer than the recipe's: branches are cheap


def sweep(schedule: str, seed: int) -> Sweep:
    study = dataclasses.replace(load("gpt-python"), schedule=schedule, seed=seed, compute_budgets=BUDGETS)
    return Sweep(study, executor="processes", workers=2, watch=default_watch())


def run(one: Sweep, specs: list[RunSpec], folder: Path) -> list[RunResult]:
    """All specs by this sweep's trainer, in a journal of their own; in their order."""
    with Journal.open(folder, one.prepared.identity) as journal:
        task = one.trainer.on(threads=1, checkpoints=folder.resolve() / "checkpoints")
        todo = [spec for spec in specs if spec.key not in journal.results]
        one.watch.begin(todo, reused=len(specs) - len(todo))
        for result in ProcessExecutor(workers=2).run(todo, task, one.watch.event):
            journal.append(result)
            one.watch.done(result)
        one.watch.end()
        return [dataclasses.replace(journal.results[spec.key], spec=spec) for spec in specs]


def pair(seed: int) -> tuple[list[RunResult], list[RunResult]]:
    """(branches, separate runs) at the same sizes and budgets."""
    branched, separate = sweep("wsd-branch", seed), sweep("wsd", seed)
    rules, own = (one.rules(LrRule.of(one.study.lr)) for one in (branched, separate))
    planned = list(plan_sweep(branched.prepared.budgets, branched.sizes, rules)[0])
    alone = [own.spec(separate.sizes.at(spec.size), spec.budget) for spec in planned]
    return run(branched, planned, FOLDER / f"branch-{seed}"), run(separate, alone, FOLDER / f"separate-{seed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    seeds = range(parser.parse_args().seeds)
    pairs = [pair(seed) for seed in seeds]
    spent = sum(r.spent for branches, _ in pairs for r in branches) / sum(r.spent for _, alone in pairs for r in alone)
    points = list(zip(*[[b.loss / a.loss - 1 for b, a in zip(*both, strict=True)] for both in pairs], strict=True))
    mean = [statistics.fmean(point) for point in points]
    found: dict[str, Any] = {
        "runs": len(mean), "seeds": len(seeds), "flops_ratio": round(spent, 4),
        "loss_mean_difference": round(statistics.fmean(mean), 5),
        "loss_rms_difference": round(float(np.sqrt(np.mean(np.square(mean)))), 5),
        "loss_largest_difference": round(max(mean, key=abs), 5),
    }
    for name, results in (("branches", pairs[0][0]), ("separate", pairs[0][1])):
        result = fit(results, bootstrap=1000)
        found[name] = {
            "n_opt_exponent": round(result.n_opt_exponent, 4),
            "interval": [round(end, 4) for end in result.intervals["n_opt_exponent"]],
            "rms": round(result.law_fit.rms, 5), "alpha": round(result.law.alpha, 4), "beta": round(result.law.beta, 4),
        }  # fmt: skip
    for spec, difference in zip([r.spec for r in pairs[0][0]], mean, strict=True):
        print(f"{spec.budget:9.2g} size {spec.size:4d}  D/N {spec.tokens / spec.params:6.1f}  {difference:+.2%}")
    record("branching", found)


if __name__ == "__main__":
    main()
