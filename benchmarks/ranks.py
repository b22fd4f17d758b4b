"""Two ranks that share a run against one process: the same loss, and how much faster.

    python benchmarks/ranks.py      about 3 minutes on 2 cores
"""

from __future__ import annotations

import dataclasses
from typing import Any

from record import record

from flops_fit.recipes import load
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import ProcessExecutor, RanksExecutor
from flops_fit.runs.watch import Quiet
from flops_fit.study import Sweep
from flops_fit.train.engine import Trainer

SIZE, STEPS, BATCH = 128, 150, 32


def carried_out(executor: Any, trainer: Trainer, spec: RunSpec) -> RunResult:
    """The second of two equal runs: by then the processes are warm."""
    first = dataclasses.replace(spec, seed=spec.seed + 1)
    results = {run.spec.seed: run for run in executor.run([first, spec], trainer, lambda event: None)}
    result = results[spec.seed]
    assert result.ok, result.reason
    return result


def main() -> None:
    sweep = Sweep(dataclasses.replace(load("gpt-python"), schedule="wsd"), executor="inline", workers=1, watch=Quiet())
    measured = sweep.sizes.at(SIZE)
    assert measured is not None and isinstance(sweep.trainer, Trainer)
    rules = sweep.rules(sweep.study.lr)
    spec = rules.spec(measured, STEPS * BATCH * 64 * measured.flops_per_token, batch=BATCH)
    one = carried_out(ProcessExecutor(1), sweep.trainer.on(threads=1), spec)
    figures: dict[str, Any] = {
        "params": spec.params, "steps": spec.steps, "batch": spec.batch_size, "loss_one_process": one.loss,
        "tokens_a_second_one_process": round(spec.tokens / one.seconds),
    }  # fmt: skip
    for name, shard in (("two_ranks", False), ("two_ranks_fsdp2", True)):
        two = carried_out(RanksExecutor(2), sweep.trainer.on(threads=1, ranks=2, shard=shard), spec)
        figures |= {
            f"{name}_relative_difference": two.loss / one.loss - 1,
            f"{name}_tokens_a_second": round(spec.tokens / two.seconds),
            f"{name}_speedup": round(one.seconds / two.seconds, 3),
        }
    record("ranks", figures)


if __name__ == "__main__":
    main()
