"""What a run will cost, from a few of its own steps on this machine (docs/math.md, Eq. P6)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from flops_fit.data.batches import seeded
from flops_fit.records import RunResult, RunSpec
from flops_fit.train.engine import Progress, Trainer, TrainingRun
from flops_fit.train.machine import cpu_threads, environment, forget_peak, peak_memory

WARM_STEPS = 3        # first steps allocate and are not timed
TIMED_SECONDS = 0.6   # enough steps to average over the machine's jitter
MOST_TIMED_STEPS = 200


@dataclass(frozen=True)
class Calibrator:
    """A task for an executor: a RunResult whose `curve` holds the price of building, of a step and of an evaluation.

    Run it on the executor that the sweep will use, so that neighbours compete for memory as they will then.
    Its loss is the training loss after a few steps and means nothing; it is never recorded. See `seconds_of`.
    """

    trainer: Trainer

    def __call__(self, spec: RunSpec, progress: Progress | None = None) -> RunResult:
        if progress is not None:
            progress(0, 0.0)
        forget_peak(self.trainer.options.torch_device())
        with seeded(spec.seed), cpu_threads(self.trainer.placement.threads):
            begun = time.perf_counter()
            run = TrainingRun(self.trainer, spec)
            building = time.perf_counter() - begun
            loss, step_seconds = _time_steps(run)
            evaluating = _time(run.evaluate, run.device)
        return RunResult(
            spec=spec,
            status="ok",
            loss=loss,
            curve=((0, building), (1, step_seconds), (2, evaluating)),
            peak_memory_bytes=peak_memory(run.device),
            environment=environment(run.device, run.precision),
        )


def seconds_of(spec: RunSpec, timed: RunResult) -> float:
    """Wall time of a run, by the prices that Calibrator measured at its size and batch (Eq. P6).

    A branch does only its own steps, and the untrained model was evaluated by the first run of its trunk.
    """
    (_, building), (_, step), (_, evaluating) = timed.curve
    return building + step * (spec.steps - spec.shared_steps) + evaluating * (1 if spec.shared_steps else 2)


def _time_steps(run: TrainingRun) -> tuple[float, float]:
    """(last training loss, mean seconds a step) over at most TIMED_SECONDS of steps."""
    timed, started, last = 0, 0.0, torch.zeros(())
    for step, loss in run.steps():
        last = loss
        if step + 1 == min(WARM_STEPS, run.spec.steps - 1):
            _wait(run.device)
            started = time.perf_counter()
        elif started:
            timed += 1
            if run.device.type == "cuda" and timed % 10 == 0:
                _wait(run.device)
            enough = timed >= MOST_TIMED_STEPS or time.perf_counter() - started > TIMED_SECONDS
            if any(run.ranks.gather(enough)):  # all stop after the same step
                break
    _wait(run.device)
    return last.item(), (time.perf_counter() - started) / max(1, timed)


def _time(call: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
