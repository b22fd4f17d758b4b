"""What each choice of the vit-cifar recipe is worth: one change at a time, at the same compute.

    python experiments/vit-cifar/ablate.py CIFAR10        about 10 minutes on 2 idle cores; CIFAR10: what --data takes

Writes results.csv beside this file after every pair of seeds, and goes on from it when it is called again.
"""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.data.batches import prepare
from flops_fit.data.images import Augment, Images, ImageSets, image_sets
from flops_fit.models.vit import VisionTransformer
from flops_fit.recipes.vit_cifar import BATCH, cross_entropy
from flops_fit.records import RunSpec
from flops_fit.runs.executors import ProcessExecutor
from flops_fit.train.engine import Trainer
from flops_fit.train.loss import Objective
from flops_fit.train.measure import Measurer

RESULTS = Path(__file__).parent / "results.csv"
SEEDS = (0, 1)
FEW = 4_000  # images, where the question is what repeats are worth


class UsualPositions(VisionTransformer):
    """Frequencies from 1 to 1/10,000 (Beyer et al. 2022)."""

    def __init__(self, d_model: int, **kwargs: int) -> None:
        super().__init__(d_model, **kwargs)
        side = self.image_size // self.patch
        angle = torch.arange(side)[:, None] * 1e-4 ** torch.linspace(0, 1, d_model // 4)
        line = torch.cat((angle.sin(), angle.cos()), dim=1)  # (side, D/2)
        grid = torch.cat((line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)), dim=2)
        self.register_buffer("positions", grid.reshape(side * side, d_model), persistent=False)


class LearnedPositions(VisionTransformer):
    """A learned vector a patch."""

    def __init__(self, d_model: int, **kwargs: int) -> None:
        super().__init__(d_model, **kwargs)
        start = 0.1 * torch.randn(self.positions.shape)
        del self.positions
        self.positions = nn.Parameter(start)


class Neighbours(VisionTransformer):
    """Each patch also sees its eight neighbours, channel by channel (a 3x3 convolution that starts at zero)."""

    def __init__(self, d_model: int, **kwargs: int) -> None:
        super().__init__(d_model, **kwargs)
        self.mix = nn.Parameter(torch.zeros(d_model, 1, 3, 3))

    def forward(self, images: Tensor) -> Tensor:
        x = self.embedding(self.patches(images))
        side = math.isqrt(x.shape[1])
        grid = x.transpose(1, 2).unflatten(2, (side, side))  # (B, D, side, side)
        x = x + F.conv2d(grid, self.mix, padding=1, groups=x.shape[2]).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x).mean(dim=1))


class WiderPatches(VisionTransformer):
    """Patches of 6x6 pixels, 4 apart, so that they overlap."""

    def __init__(self, d_model: int, **kwargs: int) -> None:
        super().__init__(d_model, **kwargs)
        self.embedding = nn.Linear(3 * 36, d_model)
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(3 * 36))
        nn.init.zeros_(self.embedding.bias)

    def patches(self, images: Tensor) -> Tensor:
        windows = F.pad(images, (1, 1, 1, 1)).unfold(2, 6, 4).unfold(3, 6, 4)  # (B, C, 8, 8, 6, 6)
        return windows.permute(0, 2, 3, 1, 4, 5).reshape(len(images), 64, -1)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run; the defaults are the recipe's, but augmented: so it was until the rows without it spoke against it."""

    variant: str
    size: int = 24
    compute: float = 1.5e11
    lr: float = 5e-3
    batch: int = BATCH
    model: type[VisionTransformer] = VisionTransformer
    model_kwargs: dict[str, int] = field(default_factory=dict)
    augment: Augment = "moved"
    images: int | None = None  # to train on; None: all

    @property
    def name(self) -> str:
        return f"{self.variant}, size {self.size}, {self.compute:g} FLOPs"


def rows() -> Iterator[Row]:
    small = Row(variant="the recipe's model")
    yield small
    yield replace(small, variant="positions of the usual frequencies", model=UsualPositions)
    yield replace(small, variant="learned positions", model=LearnedPositions)
    yield replace(small, variant="neighbours mixed in", model=Neighbours)
    yield replace(small, variant="overlapping patches", model=WiderPatches)
    yield replace(small, variant="patches of 8", size=36, model_kwargs={"patch": 8})
    yield replace(small, variant="not augmented", augment="none")
    yield replace(small, variant="mirrored only", augment="mirrored")
    for lr in (3e-3, 9e-3, 1.5e-2):
        yield replace(small, variant=f"lr {lr:g}", lr=lr)
    middle = Row(variant="batch 32", size=32, compute=3e11, lr=4e-3)
    yield middle
    yield replace(middle, variant="batch 16", batch=16)
    yield replace(middle, variant="batch 64", batch=64)
    yield replace(middle, variant="batch 64, lr x 2", batch=64, lr=8e-3)
    yield replace(middle, variant="depth 2", model_kwargs={"depth": 2})
    yield replace(middle, variant="depth 2 and narrower", size=24, model_kwargs={"depth": 2})
    long = Row(variant="new images", size=16, compute=8e10, lr=8e-3)
    yield long
    yield replace(long, variant="new images, not augmented", augment="none")
    yield replace(long, variant="9 times 4,000 images", images=FEW)
    yield replace(long, variant="9 times 4,000 images, not augmented", images=FEW, augment="none")


def trainer_and_spec(row: Row, sets: ImageSets) -> tuple[Trainer, RunSpec]:
    whole = sets.training
    chosen = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))[: row.images or len(whole)]
    training = Images(whole.pixels[chosen], whole.labels[chosen], whole.mean, whole.std, row.augment)
    source, objective = prepare(training, sets.held_out), Objective(loss_fn=cross_entropy)
    kwargs = {"classes": sets.classes, **row.model_kwargs}
    measurer = Measurer(row.model, "d_model", kwargs, objective, next(source.batches(2, seed=0)), 1)
    measured = measurer(row.size)
    steps = round(row.compute / measured.flops_per_token / row.batch)
    spec = RunSpec(
        study="ablation", size=row.size, params=measured.params, flops_per_token=measured.flops_per_token, steps=steps,
        batch_size=row.batch, tokens=steps * row.batch, lr=row.lr, seed=0, budget=row.compute,
    )  # fmt: skip
    return Trainer(measurer, source, objective).on(threads=1), spec


def main() -> None:
    sets = image_sets(sys.argv[1])
    found: list[dict[str, str]] = []
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            found = list(csv.DictReader(file))
    done = {row["run"] for row in found}
    for row in rows():
        if row.name in done:
            continue
        trainer, spec = trainer_and_spec(row, sets)
        specs = [replace(spec, seed=seed) for seed in SEEDS]
        results = list(ProcessExecutor(len(SEEDS)).run(specs, trainer, lambda event: None))
        losses = [math.nan if result.loss is None else result.loss for result in results]
        found.append(
            {
                "run": row.name, "loss_mean": f"{statistics.mean(losses):.4f}",
                "loss_seeds": " ".join(f"{loss:.4f}" for loss in sorted(losses)), "params": f"{spec.params}",
                "images": f"{spec.tokens}", "epochs": f"{spec.tokens / (row.images or len(sets.training)):.2f}",
                "batch": f"{row.batch}", "lr": f"{row.lr:g}",
                "seconds": f"{statistics.mean(result.seconds for result in results):.0f}",
            }
        )  # fmt: skip
        print(found[-1], flush=True)
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(found[0]))
            writer.writeheader()
            writer.writerows(found)


if __name__ == "__main__":
    main()
