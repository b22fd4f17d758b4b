"""Does the best learning rate stay where it is while the GPT gets 16 times as wide? Standard and u-mup, same runs.

    python experiments/gpt-transfer/transfer.py          half an hour on 2 busy cores; goes on from results.csv
    python experiments/gpt-transfer/transfer.py --table  prints what results.csv holds

Each run trains 200 steps of 8 windows of 64 bytes. Learning rates lie a factor 2 apart, five about the same centre for
all widths, more where the best is at an end; the best one is the vertex of the parabola through three of them (Eq. P3).
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from flops_fit.data.batches import prepare
from flops_fit.data.stdlib import python_source
from flops_fit.models.gpt import GPT
from flops_fit.recipes.gpt_python import CONTEXT, next_byte_loss
from flops_fit.records import RunSpec
from flops_fit.runs.executors import ProcessExecutor
from flops_fit.scaling.rules import best_factor, search_factor
from flops_fit.train.engine import Trainer, TrainOptions
from flops_fit.train.loss import Objective
from flops_fit.train.measure import Measurer

WIDTHS = (16, 64, 256, 128, 32)  # the ends first: an interrupted experiment answers the question already
CENTRES = {"standard": 0.008, "u-mup": 0.5}  # learning rates that factor 1 stands for
STEPS, BATCH, HELD_OUT, SEED = 200, 8, 512, 0
DEPTH, HEAD_DIM = 2, 16
# AdamW decays a weight by lr x decay a step, which is another decay in another parameterization: none at all here
OPTIONS = TrainOptions(weight_decay=0.0)
FILE = Path(__file__).parent / "results.csv"
COLUMNS = ("parameterization", "width", "params", "lr", "loss", "seconds")

Row = dict[str, str]


def trainer(parameterization: str, width: int) -> Trainer:
    training, held_out = python_source(CONTEXT)
    source = prepare(training, held_out, held_out_samples=HELD_OUT)
    objective = Objective(next_byte_loss)
    shape = {"vocab_size": 256, "context": CONTEXT, "depth": DEPTH, "heads": max(1, width // HEAD_DIM)}
    kwargs = {**shape, "parameterization": parameterization}
    batch = next(source.batches(2, SEED))
    return Trainer(Measurer(GPT, "d_model", kwargs, objective, batch, CONTEXT), source, objective, OPTIONS)


def losses(parameterization: str, width: int, rates: Sequence[float], workers: int) -> list[float | None]:
    """Held-out losses at `rates`, from results.csv or trained and written to it; None where a run diverged."""
    known = {(row["parameterization"], row["width"], row["lr"]): row["loss"] for row in read()}
    keys = {rate: (parameterization, str(width), f"{rate:.4g}") for rate in rates}
    task = trainer(parameterization, width)
    measured = task.builder(width)  # type: ignore[operator]
    specs = [
        RunSpec(
            study="gpt-transfer", size=width, params=measured.params, flops_per_token=measured.flops_per_token,
            steps=STEPS, batch_size=BATCH, tokens=STEPS * BATCH * CONTEXT, lr=rate, seed=SEED, budget=0.0,
        )
        for rate in rates if keys[rate] not in known
    ]  # fmt: skip
    for result in ProcessExecutor(workers).run(specs, task.on(threads=1), lambda event: None):
        parts = (*keys[result.spec.lr][:2], measured.params, keys[result.spec.lr][2], result.loss)
        row = dict(zip(COLUMNS, [str(part) for part in parts] + [f"{result.seconds:.1f}"], strict=True))
        write(row)
        known[keys[result.spec.lr]] = row["loss"]
        print(row, flush=True)
    told = [known[keys[rate]] for rate in rates]
    return [None if loss == "None" else float(loss) for loss in told]


def read() -> list[Row]:
    if not FILE.exists():
        return []
    with FILE.open(newline="") as file:
        return list(csv.DictReader(file))


def write(row: Row) -> None:
    """One more line, so that an interrupted experiment loses the runs in flight alone."""
    new = not FILE.exists()
    with FILE.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def table() -> None:
    rows = sorted(read(), key=lambda row: (row["parameterization"], int(row["width"]), float(row["lr"])))
    print(f"{'':>10} {'width':>6} {'N':>10} {'best lr':>9} {'least loss':>10}   losses by learning rate")
    for name, group in itertools.groupby(rows, key=lambda row: row["parameterization"]):
        best = {}
        for width, runs in itertools.groupby(group, key=lambda row: int(row["width"])):
            tried = list(runs)
            by_lr = {float(r["lr"]): float("inf") if r["loss"] == "None" else float(r["loss"]) for r in tried}
            best[width] = best_factor(by_lr)
            told = "  ".join(f"{lr:.3g}: {loss:.3f}" for lr, loss in by_lr.items())
            params, least = tried[0]["params"], min(by_lr.values())
            print(f"{name:>10} {width:6} {params:>10} {best[width]:9.3g} {least:10.3f}   {told}")
        apart = max(best) / min(best)
        print(f"{name}: over {apart:g} x the width the best learning rate moves from {best[min(best)]:.3g} to "
              f"{best[max(best)]:.3g}; all of them lie within a factor {max(best.values()) / min(best.values()):.2f}")


def main() -> None:
    if "--table" not in sys.argv:
        for width, name in itertools.product(WIDTHS, CENTRES):

            def losses_of(factors: Sequence[float], name: str = name, width: int = width) -> list[float | None]:
                return losses(name, width, [factor * CENTRES[name] for factor in factors], workers=2)

            search_factor(losses_of)
    table()


if __name__ == "__main__":
    main()
