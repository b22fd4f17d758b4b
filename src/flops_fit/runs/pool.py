"""The driver's side of worker processes: crews that carry out jobs, and what becomes of a job whose crew is lost.

A job is one run, or a lane of runs that go one after the other. A crew is one process, or the ranks of one run.
Each job is waiting or with exactly one crew; it waits again only when no process of that crew is left.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Pipe, wait
from pathlib import Path
from typing import IO, Any

from flops_fit.errors import ContractError, InputError
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.task import Event, Progressed, Retried, Started, failed

POLL_SECONDS = 1.0  # how often a silent worker is looked at: a grandchild may hold its end of the pipe open
EXIT_SECONDS = 5.0  # what a process that has nothing left to do may take to leave by itself
GRACE_SECONDS = 0.5  # a rank that fails because another died may tell of it before that death can be seen


@dataclass(slots=True)
class Job:
    """Runs that one crew at a time carries out in this order; the first is at work, or the next to be."""

    specs: deque[RunSpec]
    tries: int = 0  # how often the first was begun
    reason: str = ""  # why its last try was lost
    since: float = field(default_factory=time.monotonic)  # when its last try was begun

    def begin(self, on_event: Callable[[Event], None]) -> RunSpec:
        spec = self.specs[0]
        on_event(Retried(spec, self.reason) if self.tries else Started(spec))
        self.tries, self.since = self.tries + 1, time.monotonic()
        return spec

    def end(self, end: RunResult | str, retries: int) -> RunResult | None:
        """The first run came to this end: a result, or the reason why its crew was lost. None: begin it again."""
        if isinstance(end, str):
            self.reason = end
            if self.tries <= retries:
                return None
            end = failed(self.specs[0], f"{end}; tries: {self.tries}", time.monotonic() - self.since)
        self.specs.popleft()
        self.tries = 0
        return end


def jobs(specs: Sequence[RunSpec]) -> deque[Job]:
    """Lanes, each in order of ascending steps, and single runs; those that cost most first."""
    groups: dict[str | int, list[RunSpec]] = {}
    for number, spec in enumerate(specs):
        groups.setdefault(spec.lane or number, []).append(spec)
    ordered = sorted(groups.values(), key=lambda group: -sum(spec.cost for spec in group))
    return deque(Job(deque(sorted(group, key=lambda spec: spec.steps))) for group in ordered)


@dataclass(frozen=True, slots=True)
class Pool:
    """Works jobs off with `crews` crews at a time; each process of a new crew gets one of `environments()`."""

    crews: int
    environments: Callable[[], Sequence[Mapping[str, str]]]
    retries: int  # how often a run whose crew was lost is begun again
    patience: float  # seconds without progress or result after which a crew is taken for hanging

    def run(self, specs: Sequence[RunSpec], task: bytes, on_event: Callable[[Event], None]) -> Iterator[RunResult]:
        with tempfile.TemporaryFile() as file:
            _store(task, file)
            del task  # it may hold a data set
            yield from self._drive(jobs(specs), file.fileno(), on_event)

    def _drive(self, todo: deque[Job], task: int, on_event: Callable[[Event], None]) -> Iterator[RunResult]:
        busy: list[Crew] = []
        leaving: list[Crew] = []
        poll = min(POLL_SECONDS, self.patience / 4)
        looked = time.monotonic()
        try:
            while todo or busy:
                while todo and len(busy) < self.crews:
                    busy.append(Crew(task, self.environments()))
                    busy[-1].begin(todo.popleft(), on_event)
                ready = wait([pipe for crew in busy for pipe in crew.pipes], timeout=poll)
                # A look that comes late counts as one poll: then it was this process that was stopped, suspended or
                # kept by its caller, not the workers, and what they have sent meanwhile is read first.
                now = time.monotonic()
                waited, looked = min(now - looked, poll), now
                for crew in list(busy):
                    end = crew.listen(ready, waited, self.patience, on_event)
                    if end is None:
                        continue
                    result = crew.job.end(end, self.retries)
                    if crew.job.specs:
                        todo.appendleft(crew.job)  # so that a lane stays with its crew, which goes on below
                    # The crew goes on before the caller sees the result: to store it may take a while.
                    if not crew.fit:
                        crew.kill()
                        busy.remove(crew)
                    elif todo:
                        crew.begin(todo.popleft(), on_event)
                    else:
                        busy.remove(crew)
                        leaving.append(crew)
                        crew.dismiss()
                    if result is not None:
                        yield result
            for crew in leaving:
                crew.wait()
        finally:
            for crew in busy + leaving:
                crew.kill()


class Crew:
    """The processes that carry out one run at a time together; the progress and the result of the first count."""

    job: Job

    def __init__(self, task: int, environments: Sequence[Mapping[str, str]]) -> None:
        self.members = [Member(task, environment) for environment in environments]

    @property
    def pipes(self) -> list[Any]:
        return [member.pipe for member in self.members]

    @property
    def fit(self) -> bool:
        """Whether it can take the next run: everyone is there, done, and, where others rely on it, did not fail."""
        alone = len(self.members) == 1
        return all(
            one.result is not None and (alone or one.result.status != "failed") and one.process.poll() is None
            for one in self.members
        )

    def begin(self, job: Job, on_event: Callable[[Event], None]) -> None:
        self.job = job
        self.silence = 0.0  # seconds since somebody was heard, as far as the driver was listening
        spec = job.begin(on_event)
        for member in self.members:
            member.result = None
            member.send(spec)

    def listen(
        self, ready: Collection[Any], waited: float, patience: float, on_event: Callable[[Event], None]
    ) -> RunResult | str | None:
        """Take a message from each that has one. Returns the run's result, the reason why the crew is lost, or None."""
        self.silence += waited
        for rank, member in enumerate(self.members):
            if member.pipe not in ready and member.process.poll() is None:
                continue
            message = member.receive()
            if message is None:
                return self._death(rank)
            self.silence = 0.0
            if isinstance(message, RunResult):
                member.result = message
            elif rank == 0:
                on_event(Progressed(self.job.specs[0], *message))
        results = [member.result for member in self.members if member.result is not None]
        trouble = [result for result in results if result.status == "failed"]
        if trouble and len(self.members) > 1:
            return self._first_death() or trouble[0]
        if len(results) == len(self.members):
            return results[0]
        return f"no progress and no result for {patience:g} s" if self.silence > patience else None

    def dismiss(self) -> None:
        """Say that nothing is left to do; they end by themselves, so what the task left to atexit happens."""
        for member in self.members:
            member.send(None)

    def wait(self) -> None:
        for member in self.members:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(EXIT_SECONDS)

    def kill(self) -> None:
        """End them with all that they started. Returns when nothing of them is left."""
        for member in self.members:
            member.strike()
        for member in self.members:
            member.bury()

    def _first_death(self) -> str | None:
        """Who died, if anybody: then the others failed because of it."""
        until = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < until:
            for rank, member in enumerate(self.members):
                if member.process.poll() is not None:
                    return self._death(rank)
            time.sleep(GRACE_SECONDS / 50)
        return None

    def _death(self, rank: int) -> str:
        who = "worker" if len(self.members) == 1 else f"rank {rank}"
        code = self.members[rank].process.returncode
        if code is None:
            return f"{who} closed its pipe"
        if code < 0:
            guess = "out of memory?" if -code == signal.SIGKILL else signal.Signals(-code).name
            return f"{who} died: signal {-code} ({guess})"
        return f"{who} died: exit code {code}"


class Member:
    """One worker process (`worker.py` is its side): the pipe to it, and what it made of the run at hand."""

    def __init__(self, task: int, environment: Mapping[str, str]) -> None:
        self.result: RunResult | None = None
        self.pipe, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                # -P: a file `random.py` in the current folder must not shadow the standard library
                [sys.executable, "-P", "-m", "flops_fit.runs.worker", str(theirs.fileno()), str(task)],
                pass_fds=[theirs.fileno(), task],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=2,  # stderr
                start_new_session=True,  # Ctrl-C in the terminal is the driver's; and children of a worker end with it
            )

    def send(self, message: RunSpec | None) -> None:
        with contextlib.suppress(OSError):  # one that is dead is found by receive()
            self.pipe.send(message)

    def receive(self) -> RunResult | tuple[int, float] | None:
        """One message; None when it is dead or dying."""
        try:
            message = self.pipe.recv() if self.pipe.poll() else None
        except (EOFError, OSError):
            message = None
        if isinstance(message, str):
            raise ContractError(
                f"a worker process cannot load the task ({message}): define what it uses in a module that can be "
                'imported, or in the script itself; executor="inline" runs it in this process'
            )
        if message is None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # let it die of what it is dying of
                self.process.wait(EXIT_SECONDS)
        return message

    def strike(self) -> None:
        # It leads a process group of its own, which holds its children too. The group keeps its number while anybody
        # is in it, and a process that was waited for is struck at once, before another can have its number.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def bury(self) -> None:
        self.process.wait()
        until = time.monotonic() + EXIT_SECONDS
        while _runs(self.process.pid) and time.monotonic() < until:
            time.sleep(0.005)
        self.pipe.close()


def _runs(group: int) -> bool:
    """Whether anybody in that process group runs. The dead whom nobody waited for stay in it; /proc tells them."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    everybody = list(Path("/proc").glob("[0-9]*/stat"))
    for path in everybody:
        with contextlib.suppress(OSError):  # gone since
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return not everybody


def _store(task: bytes, file: IO[bytes]) -> None:
    """Where workers read it from: a pipe would keep the driver until each new worker has read all of it."""
    try:
        pickle.dump(sys.path, file)
        file.write(task)
        file.flush()
    except OSError as error:
        raise InputError(
            f"the task ({len(task):,} bytes with its data) cannot be stored for worker processes in "
            f"{tempfile.gettempdir()!r} ({error.strerror}): make room, set TMPDIR to another folder, or pass "
            'executor="inline"'
        ) from error
