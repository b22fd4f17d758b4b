"""A script that torchrun or accelerate started: every process runs it whole, the first drives, the others follow.

The first process plans, keeps the journal and fits; the others wait for the run that comes next, and all of them train
it together (train.parallel). Each gets the same answer, so the script needs no change:

    torchrun --nproc_per_node 2 my_script.py
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from flops_fit.errors import FlopsFitError
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import InlineExecutor
from flops_fit.runs.task import Event, Progress, Task, attempt
from flops_fit.train.calibrate import Calibrator
from flops_fit.train.engine import Trainer
from flops_fit.train.parallel import PATIENCE, join

FOLLOWING = timedelta(days=365)  # a follower waits while the driver plans and fits; its end is seen at once

Answer = TypeVar("Answer")


def processes() -> int:
    """How many processes run this script together; 1 when nothing launched it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True, slots=True)
class LaunchedExecutor:
    """One run after the other, each shared by all launched processes. For the driver."""

    ranks: int

    def run(self, specs: Sequence[RunSpec], task: Task, on_event: Callable[[Event], None]) -> Iterator[RunResult]:
        def together(spec: RunSpec, progress: Progress) -> RunResult:
            trainer = task.trainer if isinstance(task, Calibrator) else task
            assert isinstance(trainer, Trainer)  # the study asks for this executor only then
            _tell("run", spec, trainer.options, trainer.placement, isinstance(task, Calibrator))
            return task(spec, progress)

        return InlineExecutor().run(specs, together, on_event)


def together(trainer: Any, call: Callable[[], Answer]) -> Answer:
    """What `call` returns in the driver, in every process; the others train along with the driver meanwhile.

    Raises:
        FlopsFitError: in the followers, when the driver failed; the driver raises its own error.
    """
    if processes() == 1 or not isinstance(trainer, Trainer):
        return call()
    ranks, _ = join(processes(), trainer.options.torch_device())
    _words()
    if ranks.rank:
        return _follow(trainer)  # type: ignore[no-any-return]
    try:
        answer = call()
    except Exception as error:  # Ctrl-C and its like come in the middle of a run; the process's end tells the others
        _tell("failed", f"{type(error).__name__}: {error}")
        raise
    _tell("done", answer)
    return answer


def _follow(trainer: Trainer) -> Any:
    while True:
        word, *content = _hear()
        if word == "done":
            return content[0]
        if word == "failed":
            raise FlopsFitError(f"the first of the launched processes ended with {content[0]}")
        spec, options, placement, timing = content
        mine = replace(trainer, options=options, placement=placement)
        attempt(Calibrator(mine) if timing else mine, spec, lambda step, loss: None)


@functools.cache
def _words() -> Any:
    """The group that the driver's words go through. All make it at once; in that of the training none waits so long."""
    return dist.new_group(backend="gloo", timeout=FOLLOWING if dist.get_rank() else PATIENCE)


def _tell(*message: Any) -> None:
    dist.broadcast_object_list([message], src=0, group=_words())


def _hear() -> Any:
    heard: list[Any] = [None]
    dist.broadcast_object_list(heard, src=0, group=_words())
    return heard[0]
