"""What it costs to hand out a run: 1,000 runs of no work on two workers, with and without the journal's fsync.

    python benchmarks/scheduling.py    writes benchmarks/results/scheduling.json; bar: <= 5 ms a run, journal included

Starting the workers is not counted: the clock runs from the first result on.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

from record import record

from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import ProcessExecutor, Progress
from flops_fit.runs.journal import Journal

RUNS, WORKERS, REPEATS = 1000, 2, 5
BAR_MILLISECONDS = 5.0
SPEC = RunSpec(study="scheduling", size=64, params=200_000, flops_per_token=1.2e6, steps=1000, batch_size=16,
               tokens=2_048_000, lr=0.1 / 3, seed=0, budget=1e12)  # fmt: skip
CURVE = tuple((point * 32_000, 5.0 / (point + 3)) for point in range(64))  # as many points as the engine keeps
ENVIRONMENT = {"device": "cpu (x86_64)", "precision": "fp32", "threads": "1", "torch": "2.13.0", "python": "3.11.7"}


def no_work(spec: RunSpec, progress: Progress) -> RunResult:
    progress(1, 5.0)
    return RunResult(spec=spec, status="ok", loss=1 / 3, tokens=spec.tokens, flops=spec.flops, seconds=1 / 7,
                     curve=CURVE, environment=ENVIRONMENT)  # fmt: skip


def milliseconds(store: Callable[[RunResult], None]) -> float:
    """A run, from the first result to the last."""
    results = ProcessExecutor(WORKERS).run([replace(SPEC, seed=n) for n in range(RUNS)], no_work, lambda event: None)
    store(next(results))
    began = time.perf_counter()
    for result in results:
        store(result)
    return 1000 * (time.perf_counter() - began) / (RUNS - 1)


def milliseconds_of_fsync(folder: str) -> float:
    """To append a line of the same length to a file and wait for the disk, and nothing else."""
    line = (json.dumps(no_work(SPEC, lambda step, loss: None).to_dict()) + "\n").encode()
    with open(f"{folder}/bare", "ab", buffering=0) as file:
        began = time.perf_counter()
        for _ in range(RUNS):
            file.write(line)
            os.fsync(file.fileno())
        return 1000 * (time.perf_counter() - began) / RUNS


def main() -> None:
    alone, stored, bare = [], [], []
    for _ in range(REPEATS):  # in turns, so that a busy moment of the machine hits all
        alone.append(milliseconds(lambda result: None))
        with tempfile.TemporaryDirectory() as folder, Journal.open(folder, {"benchmark": "scheduling"}) as journal:
            stored.append(milliseconds(journal.append))
            bare.append(milliseconds_of_fsync(folder))
    figures = {
        "runs": RUNS,
        "workers": WORKERS,
        "milliseconds_a_run": round(statistics.median(stored), 3),
        "milliseconds_a_run_max": round(max(stored), 3),
        "milliseconds_a_run_without_journal": round(statistics.median(alone), 3),
        "milliseconds_of_a_bare_fsync": round(statistics.median(bare), 3),
        "bar_milliseconds": BAR_MILLISECONDS,
    }
    record("scheduling", figures)
    print(f"{'ok' if figures['milliseconds_a_run'] <= BAR_MILLISECONDS else 'TOO SLOW'}: "
          f"{figures['milliseconds_a_run']} ms a run")  # fmt: skip


if __name__ == "__main__":
    main()
