"""How many FLOPs the textbook's transformer takes to a held-out loss, and how many ours does: same data, same size.

    python experiments/cats/against.py train --data FILE.parquet      every run, two at a time; finished ones stay
    python experiments/cats/against.py show                           the table, of against.csv

Both see cats at 32 px through a transformer of 192 x 6 over patches of 4 (4.2M parameters), 64 pictures a step, so that
what differs is the training. The textbook's (textbook.py) has AdamW at a constant rate and an average with decay .9999.
Ours has Muon, a rate that falls to zero, an average of the last steps and the recipe's times; no skips, one rate, and
around the network what a row says. The textbook's average of so short a run still knows how it began, so it is granted
the better of it and the weights as they are, and the best of five rates, found with the first seed. Losses are at
uniform times, of the same held-out pictures with the same noise, in float32; both train in bfloat16 where the CPU is
faster at it. FLOPs are those of all products of a step, Muon's among them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import textbook
import torch
from rows import command, read, spread, step_flops, work_off
from torch import Tensor

from flops_fit.data.cats import CLASSES, cat_pictures
from flops_fit.evaluate.flow import held_out_losses
from flops_fit.flow.paths import path_named
from flops_fit.recipes.dit_cats import Preset, training
from flops_fit.study.training import prepared
from flops_fit.train.engine import TrainingRun
from flops_fit.train.measure import count_flops
from flops_fit.train.precision import HALF, precision_of

FILE = Path(__file__).parent / "against.csv"
SIZE, BATCH, SEEDS = 32, 64, (0, 1, 2)
STEPS = 1000  # of the textbook's
RATES = (3e-3,)  # with every seed
FAR_RATES = (1e-4, 3e-4, 1e-3, 1e-2)  # with the first seed. The paper's: 1e-4, of 256 pictures a step, 400,000 steps
SHARES = (0.1, 0.42)  # of the textbook's steps that ours take; Muon makes a step of ours dearer
AROUND = ("none", "residual")  # ours; the second is the recipe's
OUR_RATE = 4e-3
Wanted = tuple[Callable[..., list["Row"]], str, int, float, str, int]  # and seed, rate, what is around it, steps


@dataclass(frozen=True)
class Row:
    who: str      # textbook or ours
    seed: int
    lr: float
    around: str   # what is around the network, of recipes.cats.PRECONDITIONS
    steps: int
    flops: float
    weights: str  # as they are, or averaged
    loss: float
    seconds: float


def measured(velocity: Callable[..., Tensor], data: Tensor, labels: Tensor) -> float:
    found = held_out_losses({"it": velocity}, path_named("linear"), data, conditions={"labels": labels})
    return float(found.by_name["it"].mean())


def of_textbook(data: str, seed: int, lr: float, around: str, steps: int) -> list[Row]:
    torch.set_num_threads(1)
    made = training(cat_pictures(data, SIZE), Preset(network="tinydit-32", steps=1, batch_size=1, lr=1, warmup_steps=0))
    train, held_out = made.dataset, made.held_out
    pixels, labels = held_out.plain(list(range(len(held_out)))), held_out.labels
    torch.manual_seed(seed)
    model = textbook.DiT(SIZE, 4, 192, 6, 3, len(CLASSES))
    model.half_in_training = precision_of("fast", torch.device("cpu")) == HALF
    order = torch.Generator().manual_seed(seed)

    def batch() -> tuple[Tensor, Tensor]:
        return train.batch(torch.randint(len(train), (BATCH,), generator=order).tolist())

    a_step = count_flops(lambda: textbook.loss(model, *batch()).backward())
    model.zero_grad()
    began = time.perf_counter()
    average = textbook.train(model, batch, steps, lr)
    taken = time.perf_counter() - began
    return [
        Row("textbook", seed, lr, around, steps, steps * a_step, name, measured(one.eval(), pixels, labels), taken)
        for name, one in (("as they are", model), ("averaged", average))
    ]


def of_ours(data: str, seed: int, lr: float, around: str, steps: int) -> list[Row]:
    torch.set_num_threads(1)
    preset = Preset(
        network="tinydit-32", steps=steps, batch_size=BATCH, lr=lr, warmup_steps=min(20, steps // 10), looks=1,
        compiled=False,
    )
    made = training(cat_pictures(data, SIZE), preset, seed=seed, precondition=around)
    made = replace(made, options=replace(made.options, learns_by=None))  # it stops for no reason of its own
    with tempfile.TemporaryDirectory() as folder:
        trainer, spec, _ = prepared(made, Path(folder))
    trainer = trainer.on(checkpoints=None, weights=None)
    a_step = step_flops(TrainingRun(trainer, spec))
    began = time.perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        run = TrainingRun(trainer, spec)
        reason = run.train(None)
    if reason:
        raise RuntimeError(reason)
    taken, held_out = time.perf_counter() - began, made.held_out
    pixels = held_out.plain(list(range(len(held_out))))
    with run.keeper.averaged(), torch.no_grad():
        loss = measured(run.model.eval(), pixels, held_out.labels)
    return [Row("ours", seed, lr, around, steps, steps * a_step, "averaged", loss, taken)]


def wanted() -> list[Wanted]:
    found: list[Wanted] = []
    for seed in SEEDS:
        rates = RATES + FAR_RATES if seed == SEEDS[0] else RATES
        found += [(of_textbook, "textbook", seed, rate, "none", STEPS) for rate in rates]
        found += [(of_ours, "ours", seed, OUR_RATE, kind, round(share * STEPS)) for kind in AROUND for share in SHARES]
    return found


def train(data: str) -> None:
    done = {(row["who"], row["seed"], row["lr"], row["around"], row["steps"]) for row in read(FILE)}
    left = [one for one in wanted() if one[1:] not in done]
    work_off(FILE, [(function, (data, *rest)) for function, _, *rest in left], workers=2)


def show() -> None:
    rows = read(FILE)
    whole = [row for row in rows if row["who"] == "textbook"]
    print("textbook")
    for rate in sorted(RATES + FAR_RATES):
        for name in ("as they are", "averaged"):
            losses = [r["loss"] for r in whole if r["lr"] == rate and r["weights"] == name]
            if losses:
                print(f"  lr {rate:g}, weights {name:<12} {spread(losses)}")
    best = {row["seed"]: min((r for r in whole if r["seed"] == row["seed"]), key=lambda r: r["loss"]) for row in whole}
    print("ours, against the best of the textbook with the same seed")
    for around, steps in sorted({(row["around"], row["steps"]) for row in rows if row["who"] == "ours"}):
        own = [r for r in rows if r["who"] == "ours" and (r["around"], r["steps"]) == (around, steps)]
        own = [row for row in own if row["seed"] in best]
        if not own:
            continue
        apart = [row["loss"] - best[row["seed"]]["loss"] for row in own]
        share = statistics.mean(row["flops"] / best[row["seed"]]["flops"] for row in own)
        losses = spread([row["loss"] for row in own])
        print(f"  {around} around it, {share:.3f} of the FLOPs: {losses}, {spread(apart)} from it, lower in "
              f"{sum(one < 0 for one in apart)} of {len(apart)}")  # fmt: skip


if __name__ == "__main__":
    command(__doc__, train, show)
