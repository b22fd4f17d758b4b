"""Executors: how the runs of a sweep are worked off, in this process or in several.

An executor receives a callable and knows nothing of training. `tests/contracts/executor.py` holds what all promise.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from flops_fit.errors import ContractError, InputError, MissingExtra
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.pool import Pool
from flops_fit.runs.task import Event, Progress, Progressed, Retried, Started, Task, attempt, throttled

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
NAMES = ("local", "inline", "processes", "ranks")


@runtime_checkable
class Executor(Protocol):
    """Works off a sequence of runs. Every implementation keeps these promises:

    - one result for each spec, in the order in which they finish; a task that raises yields "failed" with the reason;
    - runs of one `RunSpec.lane` go one after the other, in order of ascending steps;
    - a run is never carried out twice at once;
    - `on_event` is called in the caller's thread: Started before all else of a run, Progressed at most every 0.2 s,
      Retried when a run whose process was lost is begun again;
    - what a task prints goes to stderr, never to the caller's stdout;
    - KeyboardInterrupt goes through at once; after it, after closing the iterator, and after an error in `on_event`
      nothing is left running.
    """

    def run(self, specs: Sequence[RunSpec], task: Task, on_event: Callable[[Event], None]) -> Iterator[RunResult]: ...


class InlineExecutor:
    """One run after the other in this process, in the order given; the runs of a lane share their places in it."""

    def run(self, specs: Sequence[RunSpec], task: Task, on_event: Callable[[Event], None]) -> Iterator[RunResult]:
        lanes: dict[str, deque[RunSpec]] = {}
        for spec in sorted(specs, key=lambda spec: spec.steps):
            lanes.setdefault(spec.lane, deque()).append(spec)
        for spec in specs:
            turn = lanes[spec.lane].popleft() if spec.lane else spec
            on_event(Started(turn))
            yield self._one(turn, task, on_event)

    @staticmethod
    def _one(spec: RunSpec, task: Task, on_event: Callable[[Event], None]) -> RunResult:
        trouble: list[BaseException] = []

        def send(step: int, loss: float) -> None:
            try:
                on_event(Progressed(spec, step, loss))
            except BaseException as error:
                trouble.append(error)
                raise

        with contextlib.redirect_stdout(sys.stderr):
            result = attempt(task, spec, throttled(send))
        if trouble:  # the listener failed, not the run
            raise trouble[0]
        return result


@dataclass(frozen=True, slots=True)
class ProcessExecutor:
    """`workers` fresh interpreters, each with `threads` threads; the longest runs or lanes (by FLOPs) first.

    The task travels to each worker by cloudpickle, so classes and lambdas of a notebook or a script work, and the
    script needs no `if __name__ == "__main__"` guard. A worker that dies, or sends neither progress nor a result for
    `patience` seconds, is killed with all that it started; then a fresh one begins its run again, `retries` times at
    most. A run that raises is not begun again: it would raise again.
    """

    workers: int = 2
    threads: int = 1
    retries: int = 2
    patience: float = 900.0

    def __post_init__(self) -> None:
        _check(1, workers=self.workers, threads=self.threads)
        _check(0, retries=self.retries)
        _check_patience(self.patience)

    def run(self, specs: Sequence[RunSpec], task: Task, on_event: Callable[[Event], None]) -> Iterator[RunResult]:
        """See `Executor`. Raises ContractError at once, before any worker starts, if the task cannot be pickled."""
        pool = Pool(self.workers, lambda: [_environment(self.threads)], self.retries, self.patience)
        return pool.run(specs, _pickled(task), on_event)


@dataclass(frozen=True, slots=True)
class RanksExecutor:
    """One run at a time, each carried out by `ranks` processes together (data parallel, on this machine).

    Each process calls the same task with the same spec, in the environment that torchrun makes (RANK, WORLD_SIZE,
    MASTER_PORT, ...); to join the others is up to the task. Progress and result of rank 0 count. When one rank fails,
    dies or hangs, all are killed, since the others would wait for it for ever; deaths and hangs are tried again as by
    `ProcessExecutor`, by a fresh group with a port of its own.
    """

    ranks: int = 2
    threads: int = 1
    retries: int = 2
    patience: float = 900.0

    def __post_init__(self) -> None:
        _check(1, ranks=self.ranks, threads=self.threads)
        _check(0, retries=self.retries)
        _check_patience(self.patience)

    def run(self, specs: Sequence[RunSpec], task: Task, on_event: Callable[[Event], None]) -> Iterator[RunResult]:
        """See `Executor`. Raises ContractError at once, before any worker starts, if the task cannot be pickled."""
        return Pool(1, self._environments, self.retries, self.patience).run(specs, _pickled(task), on_event)

    def _environments(self) -> list[dict[str, str]]:
        everyone = _environment(self.threads) | {
            "WORLD_SIZE": str(self.ranks), "LOCAL_WORLD_SIZE": str(self.ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()),
        }  # fmt: skip
        return [everyone | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(self.ranks)]


def choose(executor: str | Executor, workers: int = 2, threads: int = 1) -> Executor:
    """The executor of that name, with `workers` processes (for "ranks": ranks of each run), or the one passed in.

    "local" is the automatic choice, made by the study, which asks for one of the others. Raises InputError.
    """
    if isinstance(executor, Executor) and not isinstance(executor, type):
        return executor
    if executor == "inline":
        return InlineExecutor()
    if executor == "processes":
        return ProcessExecutor(workers, threads)
    if executor == "ranks":
        return RanksExecutor(workers, threads)
    near = difflib.get_close_matches(str(executor), NAMES, n=1, cutoff=0.5)
    raise InputError(
        f"executor={executor!r}: allowed are {', '.join(NAMES)}, or an object with run(specs, task, on_event)"
        + (f'; did you mean "{near[0]}"?' if near else "; pass one of these")
    )


def _check(least: int, **given: int) -> None:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}={value!r}: allowed is a whole number from {least} on; pass for example {name}=2")


def _check_patience(patience: float) -> None:
    if isinstance(patience, bool) or not isinstance(patience, (int, float)) or not patience > 0:
        raise InputError(f"patience={patience!r}: allowed are seconds above 0; pass for example patience=900")


def _free_port() -> int:
    """A TCP port that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _environment(threads: int) -> dict[str, str]:
    """The worker's environment: thread counts, which libraries read on import, and a path that leads to flops_fit."""
    ours = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH")]))
    return os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"PYTHONPATH": path}


def _pickled(task: Task) -> bytes:
    try:
        import cloudpickle
    except ImportError as error:
        raise MissingExtra.of("cloudpickle", "train", "to send runs to worker processes") from error
    try:
        data: bytes = cloudpickle.dumps(task)
    except Exception as error:  # anything can be raised by a user's __reduce__
        raise ContractError(
            f"the model class, data set or loss cannot be sent to worker processes ({type(error).__name__}: {error}): "
            'make it picklable, e.g. open files where they are read; or pass executor="inline"'
        ) from error
    return data


__all__ = [
    "Event",
    "Executor",
    "InlineExecutor",
    "ProcessExecutor",
    "Progress",
    "Progressed",
    "RanksExecutor",
    "Retried",
    "Started",
    "Task",
    "choose",
]
