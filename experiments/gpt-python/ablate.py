"""What each choice of the gpt-python recipe is worth: one change at a time, same compute, two seeds.

    python experiments/gpt-python/ablate.py     about 7 minutes on 2 cores; adds the rows that results.csv lacks
"""

from __future__ import annotations

import csv
import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.data.stdlib import python_source
from flops_fit.models.gpt import GPT
from flops_fit.recipes.gpt_python import study
from flops_fit.runs.executors import ProcessExecutor
from flops_fit.runs.watch import Quiet
from flops_fit.scaling.rules import BatchRule, LrRule
from flops_fit.study import Study, Sweep
from flops_fit.train.engine import Trainer
from flops_fit.train.options import TrainOptions

COMPUTE, SIZE, SEEDS = 4e11, 64, (0, 1)


class WithoutPrevious(GPT):
    """The previous token is not mixed in."""

    def __init__(self, d_model: int, **kwargs: int) -> None:
        super().__init__(d_model, **kwargs)
        self.previous = nn.Parameter(torch.zeros(d_model), requires_grad=False)


class LearnedPositions(GPT):
    """A learned vector a position instead of rotary angles."""

    def __init__(self, d_model: int, **kwargs: int) -> None:
        super().__init__(d_model, **kwargs)
        self.positions = nn.Parameter(0.1 * torch.randn(self.context, d_model))
        self.cos.fill_(1.0), self.sin.fill_(0.0)  # rotation by nothing

    def forward(self, ids: Tensor) -> tuple[Tensor, None]:
        x = self.embedding(ids)
        x = x + self.previous * F.pad(x, (0, 0, 1, 0))[:, :-1] + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, self.cos[: ids.shape[1]], self.sin[: ids.shape[1]])
        return F.linear(self.final_norm(x), self.embedding.weight), None


class SmallInit(GPT):
    """Embeddings start five times smaller."""

    def __init__(self, d_model: int, **kwargs: int) -> None:
        super().__init__(d_model, **kwargs)
        nn.init.normal_(self.embedding.weight, std=0.02)


def variants(base: Study) -> Iterator[tuple[str, Study]]:
    def changed(**changes: object) -> Study:
        return dataclasses.replace(base, **changes)

    yield "the recipe", base
    yield "learned positions", changed(model_cls=LearnedPositions)
    yield "no previous token", changed(model_cls=WithoutPrevious)
    yield "embedding init 0.02", changed(model_cls=SmallInit)
    yield "depth 2", changed(model_kwargs={**base.model_kwargs, "depth": 2})
    for factor in (0.25, 0.5, 2.0, 4.0):
        yield f"lr x {factor:g}", changed(lr=LrRule(base.lr.coefficient * factor))
    for factor in (0.5, 2.0):
        yield f"batch x {factor:g}", changed(batch_size=BatchRule(base.batch_size.coefficient * factor))
    yield "warmup 5%", changed(train_options=TrainOptions(warmup=0.05))
    yield "decay 20%", changed(train_options=TrainOptions(decay=0.2))
    yield "decay 20%, 1 - sqrt", changed(train_options=TrainOptions(decay=0.2, shape="1-sqrt"))
    yield "decay 25%", changed(train_options=TrainOptions(decay=0.25))
    yield "decay 25%, 1 - sqrt", changed(train_options=TrainOptions(decay=0.25, shape="1-sqrt"))
    yield "decay 50%, 1 - sqrt", changed(train_options=TrainOptions(shape="1-sqrt"))
    training, held_out = python_source(128)
    yield "context 128", changed(
        dataset=training, held_out=held_out, model_kwargs={**base.model_kwargs, "context": 128}
    )


def main() -> None:
    table = Path(__file__).parent / "results.csv"
    known = {row["variant"]: row for row in csv.DictReader(table.open())} if table.exists() else {}
    rows = []
    for name, variant in variants(dataclasses.replace(study(), schedule="wsd")):
        rows.append(known.get(name) or measured(name, variant))
        print(rows[-1], flush=True)
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows + [row for other, row in known.items() if other not in {r["variant"] for r in rows}])


def measured(name: str, variant: Study) -> dict[str, object]:
    sweep = Sweep(variant, executor="processes", workers=2, watch=Quiet())
    size = sweep.sizes.at(SIZE)
    spec = sweep.rules(variant.lr).spec(size, COMPUTE)
    assert isinstance(sweep.trainer, Trainer)
    specs = [dataclasses.replace(spec, seed=seed) for seed in SEEDS]
    results = list(ProcessExecutor(2).run(specs, sweep.trainer.on(threads=1), lambda event: None))
    losses = [result.loss for result in results]
    return {
        "variant": name, "params": spec.params, "tokens": spec.tokens, "steps": spec.steps,
        "batch": spec.batch_size, "lr": f"{spec.lr:.4g}", "loss_mean": f"{statistics.mean(losses):.4f}",
        "loss_seeds": " ".join(f"{loss:.4f}" for loss in sorted(losses)),
        "seconds": f"{statistics.mean(result.seconds for result in results):.1f}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
