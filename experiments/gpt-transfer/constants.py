"""What each constant of the u-mup GPT is worth: one change at a time at width 64, the better of two learning rates.

    python experiments/gpt-transfer/constants.py   3 CPU minutes on 2 workers; writes constants.csv
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transfer import BATCH, CENTRES, CONTEXT, OPTIONS, SEED, STEPS, trainer

from flops_fit.models import gpt
from flops_fit.records import RunSpec
from flops_fit.runs.executors import ProcessExecutor

WIDTH, RATES = 64, (CENTRES["u-mup"], 2 * CENTRES["u-mup"])
AS_IT_IS = {name: getattr(gpt, name) for name in ("ATTENTION", "READOUT", "TABLE_LR", "VECTOR_LR")}
VARIANTS: dict[str, dict[str, float]] = {
    "as it is": {},
    "ATTENTION 1": {"ATTENTION": 1.0},
    "READOUT 1": {"READOUT": 1.0},
    "READOUT 8": {"READOUT": 8.0},
    "TABLE_LR 1/16": {"TABLE_LR": 1 / 16},
    "TABLE_LR 1": {"TABLE_LR": 1.0},
    "VECTOR_LR 1/64": {"VECTOR_LR": 1 / 64},
    "VECTOR_LR 1": {"VECTOR_LR": 1.0},
    "projections out of branches start at variance 1": {},
    "weight decay 0.1": {},
}


def builder(name: str) -> Callable[..., gpt.GPT]:
    def build(**kwargs: Any) -> gpt.GPT:
        for constant, value in (AS_IT_IS | VARIANTS[name]).items():
            setattr(gpt, constant, value)  # a worker makes one model after another, and each sets all of them
        model = gpt.GPT(**kwargs)
        for parameter_name, parameter in model.named_parameters():
            if name.startswith("projections") and parameter_name.endswith("_out.weight"):
                nn.init.normal_(parameter)
        return model

    return build


def main() -> None:
    rows = []
    for name in VARIANTS:
        base = trainer("u-mup", WIDTH)
        measured = base.builder(WIDTH)  # type: ignore[operator]
        task = dataclasses.replace(
            base, builder=dataclasses.replace(base.builder, model_cls=builder(name)),  # type: ignore[type-var]
            options=dataclasses.replace(OPTIONS, weight_decay=0.1 if name == "weight decay 0.1" else 0.0),
        )  # fmt: skip
        specs = [
            RunSpec(
                study=f"gpt-transfer {name}", size=WIDTH, params=measured.params, steps=STEPS, batch_size=BATCH,
                flops_per_token=measured.flops_per_token, tokens=STEPS * BATCH * CONTEXT, lr=lr, seed=SEED, budget=0.0,
            )
            for lr in RATES
        ]  # fmt: skip
        results = list(ProcessExecutor(2).run(specs, task.on(threads=1), lambda event: None))
        losses = {result.spec.lr: result.loss for result in results}
        rows.append({"variant": name} | {f"loss at lr {lr:g}": f"{losses[lr]:.4f}" for lr in RATES})
        print(rows[-1], flush=True)
    with (Path(__file__).parent / "constants.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
