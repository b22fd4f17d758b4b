"""Runs worked off into a journal: what a sweep and a single training have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import Executor, Task
from flops_fit.runs.journal import Journal
from flops_fit.runs.watch import Watch
from flops_fit.train.checkpoint import Checkpoints

CHECKPOINTS = "checkpoints"  # folder of the states of unfinished runs, beside the journal


def work_off(
    journal: Journal, specs: Sequence[RunSpec], executor: Executor, task: Task, watch: Watch
) -> list[RunResult]:
    """The results of `specs`, in their order; those in the journal are not run again (failed ones are)."""
    known = {key: result for key, result in journal.results.items() if result.status != "failed"}
    todo = list({spec.key: spec for spec in specs if spec.key not in known}.values())
    watch.begin(todo, reused=len(specs) - len(todo))
    try:
        for result in executor.run(todo, task, watch.event):
            journal.append(result)
            if result.status != "failed":  # one that failed, for a full disk say, goes on with the next call
                Checkpoints(journal.path.parent / CHECKPOINTS).forget(result.spec)
            watch.done(result)
    finally:
        watch.end()
    return [replace(journal.results[spec.key], spec=spec) for spec in specs]  # labels of this plan
