"""One worker process: `python -m flops_fit.runs.worker PIPE TASK`, two open files that `pool.py` hands down.

TASK holds sys.path and the task, both pickled. PIPE is its end of the driver's pipe: in comes one RunSpec at a time,
then None; out go (step, loss), the RunResult, or, if the task cannot be loaded, text that says why. The driver's death,
seen as the end of the pipe, ends the worker at once.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from flops_fit.runs.task import attempt, throttled


def main(pipe_fd: int, task_fd: int) -> None:
    pipe = Connection(pipe_fd)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # A thread of its own, so that the driver's death is noticed in the middle of training too.
    threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    try:
        # Mapped, not read: the position in the open file is shared with all other workers.
        with mmap.mmap(task_fd, 0, prot=mmap.PROT_READ) as file:
            os.close(task_fd)
            sys.path[:] = pickle.load(file)
            task = pickle.load(file)
    except Exception as error:
        _send(pipe, f"{type(error).__name__}: {error}")
        return
    while (spec := inbox.get()) is not None:
        progress = throttled(lambda step, loss: _send(pipe, (step, loss)))
        _send(pipe, attempt(task, spec, progress))


def _listen(pipe: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    message: Any = ...
    while message is not None:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            _die()
        inbox.put(message)


def _send(pipe: Connection, message: Any) -> None:
    try:
        pipe.send(message)
    except OSError:  # nobody listens any more
        _die()


def _die() -> None:
    """Leave without cleaning up, and take along what the task started: a data loader's processes, for instance."""
    if os.getpgid(0) == os.getpid():  # we lead our own group, so that it holds nobody else
        with contextlib.suppress(OSError):
            os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
