"""A task, how it is carried out once, and what is told of it while it runs: the words of executors and workers."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flops_fit.records import RunResult, RunSpec

Progress = Callable[[int, float], None]
"""progress(step, loss): a task calls it as often as it likes; what reaches the driver is throttled."""

Task = Callable[[RunSpec, Progress], RunResult]
"""Carries out one run. An exception makes a result with status "failed"; KeyboardInterrupt goes through."""

PROGRESS_SECONDS = 0.2  # a person cannot read faster, and a step can be much shorter


@dataclass(frozen=True, slots=True)
class Started:
    """A run was begun."""

    spec: RunSpec


@dataclass(frozen=True, slots=True)
class Progressed:
    """A run has done `step` optimiser steps and has training loss `loss`; NaN: none yet, it goes on from there."""

    spec: RunSpec
    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class Retried:
    """A run whose process was lost is begun again in another; nothing of the lost one is left running."""

    spec: RunSpec
    reason: str


Event = Started | Progressed | Retried


def attempt(task: Task, spec: RunSpec, progress: Progress) -> RunResult:
    """The task's result; if it raises, a result that says so. KeyboardInterrupt and SystemExit go through."""
    since = time.perf_counter()
    try:
        result: object = task(spec, progress)
        if not isinstance(result, RunResult):
            raise TypeError(f"the task returned {type(result).__name__}, not a RunResult")
    except Exception as error:
        return failed(spec, _reason(error), time.perf_counter() - since)
    return result


def failed(spec: RunSpec, reason: str, seconds: float) -> RunResult:
    """The record of a run that did not come to its end."""
    return RunResult(spec=spec, status="failed", loss=None, reason=reason, seconds=seconds)


def throttled(send: Progress) -> Progress:
    """`send`, but calls that come less than PROGRESS_SECONDS after the last that went through are dropped."""
    last = -PROGRESS_SECONDS

    def progress(step: int, loss: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS:
            last = now
            send(int(step), float(loss))

    return progress


def _reason(error: Exception) -> str:
    what = " ".join("".join(traceback.format_exception_only(error)).split())
    frames = traceback.extract_tb(error.__traceback__)
    return f"{what} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else what
