"""What a sweep will cost on this machine: a few steps of every kind of run, on the executor that will do them all."""

from __future__ import annotations

import time
from collections.abc import Callable

from flops_fit.runs.executors import Executor
from flops_fit.runs.task import Event, Progressed
from flops_fit.scaling.plan import SweepPlan, with_estimate
from flops_fit.train.calibrate import Calibrator, seconds_of
from flops_fit.train.engine import Trainer
from flops_fit.train.machine import forget_peak, peak_memory


def with_cost(
    plan: SweepPlan, executor: Executor, trainer: Trainer, parallel: int, say: Callable[[str], None]
) -> SweepPlan:
    """The plan with seconds and memory (docs/math.md, Eq. P6); as it is where one of its shapes cannot be timed.

    parallel: runs that go on at once. Memory is that of so many of the largest, beside this process.
    """
    shapes = {(spec.size, spec.batch_size): spec for spec in plan.experiments}
    say(f"timing a few steps of {len(shapes)} kinds of run on this machine")
    begun, first = time.perf_counter(), [0.0]

    def note_start(event: Event) -> None:
        if isinstance(event, Progressed) and not first[0]:
            first[0] = time.perf_counter() - begun
            forget_peak(trainer.options.torch_device())  # sending the data took more, before the workers held theirs

    results = list(executor.run(list(shapes.values()), Calibrator(trainer), note_start))
    for result in results:
        if not result.ok:
            say(f"no estimate: a few steps of size {result.spec.size} failed: {result.reason}")
            return plan
    timed = {(result.spec.size, result.spec.batch_size): result for result in results}
    each = [seconds_of(spec, timed[spec.size, spec.batch_size]) for spec in plan.experiments]
    largest = sorted((result.peak_memory_bytes for result in results), reverse=True)[:parallel]
    memory = sum(largest) + (peak_memory(trainer.options.torch_device()) if parallel > 1 else 0)
    return with_estimate(plan, each, parallel, first[0], memory)
