"""Step time of the engine beside a bare hand-written loop, and the share of the machine's matmul peak that it reaches.

    python benchmarks/engine.py       bars: overhead <= 1.05; share >= 0.35 at the largest size

Same model, same batches, same optimiser, in turns in one process on one thread (as the workers of a sweep run).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from record import record
from torch import nn

from flops_fit.recipes import load
from flops_fit.records import RunSpec
from flops_fit.runs.watch import Quiet
from flops_fit.study import Sweep
from flops_fit.train.engine import Trainer, TrainingRun
from flops_fit.train.machine import matmul_peak
from flops_fit.train.schedule import wsd

STEPS, ROUNDS = 60, 9


def bare_loop(trainer: Trainer, spec: RunSpec) -> float:
    """The same training written by hand, as a user without the library would; seconds for all steps."""
    torch.manual_seed(spec.seed)
    model = trainer.builder.build(spec.size)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    batches = trainer.source.batches(spec.batch_size, spec.seed)
    started = time.perf_counter()
    for step in range(spec.steps):
        for group in optimizer.param_groups:
            group["lr"] = spec.lr * wsd(step, spec.steps, 0.1 * spec.steps, 0.5 * spec.steps)
        inputs, targets = next(batches)
        loss = trainer.objective.loss_fn(model(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return time.perf_counter() - started


def engine(trainer: Trainer, spec: RunSpec) -> float:
    """The engine's own loop over the same steps; seconds, without building and evaluating."""
    run = TrainingRun(trainer, spec)
    started = time.perf_counter()
    run.train(lambda step, loss: None)
    return time.perf_counter() - started


def paired(a: Callable[[], float], b: Callable[[], float]) -> tuple[float, float, float]:
    """Median seconds of both and the median of the ratio pair by pair; A B, B A, A B, ..."""
    a(), b()
    pairs = []
    for turn in range(ROUNDS):
        pairs.append((a(), b()) if turn % 2 else tuple(reversed((b(), a()))))
    return (
        statistics.median(x for x, _ in pairs),
        statistics.median(y for _, y in pairs),
        statistics.median(x / y for x, y in pairs),
    )


def main() -> None:
    torch.set_num_threads(1)
    sweep = Sweep(load("gpt-python"), executor="inline", workers=1, watch=Quiet())
    plan = sweep._plan(sweep.rules(sweep.study.lr))
    largest = max(plan.experiments, key=lambda spec: (spec.size, spec.flops))
    smallest = min(plan.experiments, key=lambda spec: (spec.size, spec.flops))
    rows = []
    for spec in (smallest, largest):
        share = spec.tokens // spec.steps
        short = replace(spec, steps=STEPS, tokens=STEPS * share)
        ours, bare, ratio = paired(partial(engine, sweep.trainer, short), partial(bare_loop, sweep.trainer, short))
        peak = matmul_peak(threads=1)
        rows.append(
            {
                "size": spec.size, "params": spec.params, "batch_size": spec.batch_size,
                "engine_ms_per_step": round(1000 * ours / STEPS, 3), "bare_ms_per_step": round(1000 * bare / STEPS, 3),
                "overhead": round(ratio, 4),
                "gflops_per_second": round(short.flops / ours / 1e9, 1), "matmul_peak_gflops": round(peak / 1e9, 1),
                "share_of_peak": round(short.flops / ours / peak, 3),
            }
        )  # fmt: skip
    record("engine", {"rows": rows, "bars": {"overhead": 1.05, "share_of_peak_at_largest": 0.35}})


if __name__ == "__main__":
    main()
