"""How long the warmup of a trunk should be: runs of four lengths off trunks that differ in nothing else, three seeds.

    python experiments/gpt-python/warmup.py     about 15 minutes on 2 cores; writes warmup.csv
"""

from __future__ import annotations

import csv
import dataclasses
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from flops_fit.recipes.gpt_python import study
from flops_fit.records import RunSpec
from flops_fit.runs.executors import ProcessExecutor
from flops_fit.runs.watch import Quiet
from flops_fit.study import Sweep

SIZES, SEEDS = (32, 64), (0, 1, 2)
REACH = (-2, -1, 0, 1)      # tokens a parameter of the runs: the recipe's times span to this power
SHARES = (0.02, 0.05, 0.1, 0.23)  # warmup as a share of the shortest of them


def specs(sweep: Sweep, size: int) -> dict[RunSpec, tuple[float, int]]:
    """Runs, with the share of the warmup and the power of the span that they stand for."""
    rules = sweep.rules(sweep.study.lr)
    measured = sweep.sizes.at(size)
    centre = rules.tokens_per_param * measured.params * measured.flops_per_token
    found = {}
    for power, spec in zip(REACH, rules.runs(measured, [centre * rules.span**power for power in REACH]), strict=True):
        for share in SHARES:
            shortest = rules.runs(measured, [centre * rules.span ** REACH[0]])[0].steps
            for seed in SEEDS:
                found[dataclasses.replace(spec, warmup_steps=round(share * shortest), seed=seed)] = (share, power)
    return found


def main() -> None:
    sweep = Sweep(study(), executor="processes", workers=2, watch=Quiet())
    wanted = {spec: label for size in SIZES for spec, label in specs(sweep, size).items()}
    losses: dict[tuple[int, float, int], list[tuple[RunSpec, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        task = sweep.trainer.on(threads=1, checkpoints=Path(folder))
        for result in ProcessExecutor(2).run(list(wanted), task, lambda event: None):
            share, power = wanted[result.spec]
            losses[result.spec.size, share, power].append((result.spec, result.loss or float("nan")))
            print(result.spec.size, share, power, result.spec.seed, result.loss, flush=True)
    with (Path(__file__).parent / "warmup.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["size", "params", "tokens_per_param", "steps", "warmup_steps", "share_of_run", "loss_mean",
                         "loss_seeds"])  # fmt: skip
        for (size, _, _), rows in sorted(losses.items()):
            spec, values = rows[0][0], sorted(loss for _, loss in rows)
            writer.writerow([size, spec.params, f"{spec.tokens / spec.params:.3g}", spec.steps, spec.warmup_steps,
                             f"{spec.warmup_steps / spec.steps:.3f}", f"{statistics.mean(values):.4f}",
                             " ".join(f"{loss:.4f}" for loss in values)])  # fmt: skip


if __name__ == "__main__":
    main()
