"""How far runs lie apart that differ in their seed alone, by learning rate: the noise that a law must see through.

    python experiments/vit-cifar/noise.py CIFAR10     about 10 minutes on 2 idle cores; writes noise.csv
"""

from __future__ import annotations

import csv
import dataclasses
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from flops_fit.recipes.vit_cifar import study
from flops_fit.runs.executors import ProcessExecutor
from flops_fit.runs.watch import Quiet
from flops_fit.scaling.rules import LrRule
from flops_fit.study import Sweep

SIZE, SEEDS, BUDGETS = 20, (0, 1, 2, 3), (4e11, 1.2e12)
COEFFICIENTS = (0.25, 0.4, 0.65)  # of N^-0.5


def main() -> None:
    given = study(sys.argv[1])
    sweep = Sweep(given, executor="processes", workers=2, watch=Quiet())
    wanted = {}
    for coefficient in COEFFICIENTS:
        rules = sweep.rules(LrRule(coefficient, n_exponent=-0.5, d_exponent=0.0))
        for run in rules.runs(sweep.sizes.at(SIZE), BUDGETS):
            wanted |= {dataclasses.replace(run, seed=seed): coefficient for seed in SEEDS}
    losses: dict[tuple[int, int, float], dict[int, float]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as folder:
        task = sweep.trainer.on(threads=1, checkpoints=Path(folder))
        for result in ProcessExecutor(2).run(list(wanted), task, lambda event: None):
            spec = result.spec
            losses[spec.size, spec.tokens, wanted[spec]][spec.seed] = result.loss or float("nan")
            print(spec.size, spec.tokens, wanted[spec], spec.seed, result.loss, flush=True)
    with (Path(__file__).parent / "noise.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["size", "images", "lr_coefficient", "loss_mean", "loss_deviation", "loss_by_seed"])
        for (size, images, coefficient), found in sorted(losses.items()):
            values = [found[seed] for seed in SEEDS]
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            each = " ".join(f"{loss:.4f}" for loss in values)
            writer.writerow([size, images, coefficient, f"{mean:.4f}", f"{deviation:.4f}", each])


if __name__ == "__main__":
    main()
