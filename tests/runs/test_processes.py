"""Worker processes die, lose their parent, and get what cannot be imported: with real processes and real signals."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from contracts.executor import alive, gone, heed_ctrl_c, ignore, plain, result, spec
from flops_fit.errors import ContractError, InputError
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import THREAD_VARIABLES as THREADS
from flops_fit.runs.executors import Event, ProcessExecutor, Progress, Progressed, Retried, Started

SOURCE = str(Path(__file__).resolve().parents[2] / "src")
ENVIRONMENT = os.environ | {"PYTHONPATH": SOURCE}

SPEC = """
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import ProcessExecutor
def spec(size):
    return RunSpec(study="test", size=size, params=size, flops_per_token=6.0, steps=1, batch_size=1, tokens=size,
                   lr=1e-3, seed=0, budget=1.0)
"""


def test_a_killed_worker_costs_one_run_and_is_replaced() -> None:
    def task(spec, progress):  # type: ignore[no-untyped-def]
        import os
        import signal

        from flops_fit.records import RunResult

        if spec.size == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if spec.size == 3:
            os._exit(7)
        return RunResult(spec=spec, status="ok", loss=1.0)

    specs = [spec(size) for size in (1, 2, 3, 4)]
    events: list[Event] = []
    results = {one.spec.size: one for one in ProcessExecutor(workers=1, retries=1).run(specs, task, events.append)}
    assert {size: one.reason for size, one in results.items()} == {
        1: "",
        2: "worker died: signal 9 (out of memory?); tries: 2",
        3: "worker died: exit code 7; tries: 2",
        4: "",
    }
    assert [size for size, one in results.items() if one.ok] == [4, 1]
    assert [(type(event), event.spec.size) for event in events] == [
        (Started, 4), (Started, 3), (Retried, 3), (Started, 2), (Retried, 2), (Started, 1),
    ]  # fmt: skip


def test_a_worker_killed_from_outside_while_it_trains() -> None:
    def task(spec, progress):  # type: ignore[no-untyped-def]
        import os
        import time

        progress(os.getpid(), 0.0)
        time.sleep(3600)

    def kill(event: Event) -> None:
        if isinstance(event, Progressed):
            os.kill(event.step, signal.SIGSEGV)

    [only] = ProcessExecutor(retries=0).run([spec(1)], task, kill)
    assert only.reason == "worker died: signal 11 (SIGSEGV); tries: 1"


HUNG = "no progress and no result for 2 s"
ENDS = {1: "SIGKILL", 2: "exit", 3: "SIGSTOP", 4: "sleep", 5: "raise"}  # by the size of the spec
REASONS = {1: "worker died: signal 9 (out of memory?)", 2: "worker died: exit code 3", 3: HUNG, 4: HUNG}
SHORT_PATIENCE = 2.0  # seconds; a worker starts in a tenth of that, on a busy machine in half of it


@dataclass(frozen=True)
class Doomed:
    """A task whose first `times` tries of each run end badly, each with a child that would live on."""

    folder: Path  # a file a size, one line a try: pid, pid of the child
    times: int

    def __call__(self, spec: RunSpec, progress: Progress) -> RunResult:
        before = len(self.tries(spec))
        child = subprocess.Popen(["sleep", "3600"])
        with (self.folder / str(spec.size)).open("a") as file:
            file.write(f"{os.getpid()} {child.pid}\n")
        progress(1, 1.0)
        if before < self.times:
            end = ENDS[spec.size]
            if end.startswith("SIG"):
                os.kill(os.getpid(), signal.Signals[end])
            if end == "exit":
                os._exit(3)
            if end == "raise":
                raise ValueError("as always")
            time.sleep(3600)
        return result(spec)

    def tries(self, spec: RunSpec) -> list[list[int]]:
        file = self.folder / str(spec.size)
        return [[int(pid) for pid in line.split()] for line in file.read_text().splitlines()] if file.exists() else []

    def left(self, spec: RunSpec) -> list[int]:
        return [pid for pids in self.tries(spec) for pid in pids if alive(pid)]


def test_a_lost_run_is_begun_again_when_nothing_of_it_is_left(tmp_path: Path) -> None:
    times = 2
    task = Doomed(tmp_path, times)
    specs = [spec(size) for size in REASONS]
    reasons: dict[int, list[str]] = {}

    def listen(event: Event) -> None:
        if isinstance(event, Retried):
            reasons.setdefault(event.spec.size, []).append(event.reason)
            assert task.left(event.spec) == []

    results = list(ProcessExecutor(workers=4, retries=2, patience=SHORT_PATIENCE).run(specs, task, listen))
    assert sorted(one.spec.size for one in results) == [1, 2, 3, 4]
    assert all(one == result(one.spec) for one in results)
    assert reasons == {size: [reason] * times for size, reason in REASONS.items()}
    assert [len(task.tries(one)) for one in specs] == [times + 1] * 4
    assert [task.left(one) for one in specs] == [[]] * 4  # nor of those that did well


def test_a_run_that_raises_is_not_begun_again(tmp_path: Path) -> None:
    raises = spec(5)
    task = Doomed(tmp_path, times=1)
    [only] = ProcessExecutor().run([raises], task, ignore)
    assert only.reason.startswith("ValueError: as always")
    assert len(task.tries(raises)) == 1


def test_progress_shows_that_a_run_longer_than_the_patience_goes_on() -> None:
    def task(spec: RunSpec, progress: Progress) -> RunResult:
        until = time.monotonic() + 1.5 * SHORT_PATIENCE
        while time.monotonic() < until:
            progress(1, 1.0)
            time.sleep(0.05)
        return result(spec)

    [only] = ProcessExecutor(patience=SHORT_PATIENCE, retries=0).run([spec(1)], task, ignore)
    assert only.ok


PATIENCE = 4.0  # seconds, so that the driver looks every second; what it may count of the test is 2.5 of them
STOPPED = SPEC + f"""
import os, sys, time
finish = sys.argv[1]
def task(spec, progress):
    progress(os.getpid(), 0.0)
    while not os.path.exists(finish):
        time.sleep(0.01)
    return RunResult(spec=spec, status="ok", loss=1.0)
def show(event):
    print(getattr(event, "reason", getattr(event, "step", "started")), flush=True)
for result in ProcessExecutor(workers=1, patience={PATIENCE}, retries=0).run([spec(1)], task, show):
    print(result.status, result.reason)
"""


def test_a_driver_that_was_stopped_does_not_take_its_workers_for_hanging(tmp_path: Path) -> None:
    """Two drivers: one is stopped alone; the other with its worker, as when a machine is suspended."""
    script, finish = tmp_path / "driver.py", tmp_path / "finish"
    script.write_text(STOPPED)
    command = [sys.executable, str(script), str(finish)]
    with contextlib.ExitStack() as stack:
        drivers = [
            stack.enter_context(subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True))
            for _ in range(2)
        ]
        told = [driver.stdout for driver in drivers if driver.stdout is not None]
        assert [stdout.readline() for stdout in told] == ["started\n"] * 2
        worker = [int(stdout.readline()) for stdout in told][1]
        time.sleep(0.3)  # they wait for the next word of their workers
        stopped = [*(driver.pid for driver in drivers), worker]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(PATIENCE + 0.5)
        for driver in drivers:
            driver.send_signal(signal.SIGCONT)
        time.sleep(1.2)  # they look at least once, and hear nothing
        os.kill(worker, signal.SIGCONT)
        finish.touch()
        assert [stdout.read() for stdout in told] == ["ok \n"] * 2


PARENT = SPEC + """
import time
def task(spec, progress):
    import os, subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    progress(os.getpid(), float(child.pid))
    while True:  # busy, as training is: no system call that would notice anything
        sum(range(1000))
def show(event):
    if hasattr(event, "step"):
        print(event.step, int(event.loss), flush=True)
list(ProcessExecutor(workers=2).run([spec(1), spec(2)], task, show))
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_parent_that_dies_leaves_no_orphan(tmp_path: Path, end: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script)]
    errors = tmp_path / "stderr"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=stderr, text=True,
                         preexec_fn=heed_ctrl_c) as parent,
    ):
        assert parent.stdout is not None
        pids = [int(pid) for _ in range(2) for pid in parent.stdout.readline().split()]
        assert len(pids) == 4
        assert all(alive(pid) for pid in pids)
        parent.send_signal(end)
    left = [pid for pid in pids if not gone(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
    told = errors.read_text()
    assert told.count("Traceback") == (end == signal.SIGINT)  # the parent's KeyboardInterrupt, and none of a worker


GUARDLESS = SPEC + """
class Halver:
    def __init__(self, start):
        self.start = start
    def __call__(self, spec, progress):
        return RunResult(spec=spec, status="ok", loss=self.start / 2)
halver = Halver(3.0)
for task in (halver, lambda spec, progress: halver(spec, progress)):
    for result in ProcessExecutor(workers=1).run([spec(1)], task, lambda event: None):
        print(result.status, result.loss, result.reason)
"""


def test_classes_and_lambdas_of_a_script_without_a_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(GUARDLESS)
    done = subprocess.run([sys.executable, str(script)], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ok", "1.5"] * 2


def test_modules_on_the_parents_path_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_the_user.py").write_text("LOSS = 0.25\n")
    monkeypatch.syspath_prepend(tmp_path)

    def task(spec, progress):  # type: ignore[no-untyped-def]
        from of_the_user import LOSS

        from flops_fit.records import RunResult

        return RunResult(spec=spec, status="ok", loss=LOSS)

    assert [one.loss for one in ProcessExecutor().run([spec(1)], task, ignore)] == [0.25]


def test_a_worker_has_the_threads_it_was_given() -> None:
    names = THREADS

    def task(spec, progress):  # type: ignore[no-untyped-def]
        import os

        from flops_fit.records import RunResult

        return RunResult(spec=spec, status="ok", loss=1.0, environment={name: os.environ[name] for name in names})

    [only] = ProcessExecutor(workers=1, threads=3).run([spec(1)], task, ignore)
    assert only.environment == dict.fromkeys(THREADS, "3")


def test_a_task_that_cannot_be_pickled_is_refused_before_anything_starts() -> None:
    lock = threading.Lock()
    events: list[Event] = []
    with pytest.raises(ContractError, match='executor="inline"'):
        ProcessExecutor().run([spec(1)], lambda spec, progress: lock and result(spec), events.append)
    assert events == []


class Unloadable:
    """Pickles well, and raises where it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return int, ("not a number",)

    __call__ = staticmethod(plain)


def test_a_task_that_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(ContractError, match=r"cannot load the task \(ValueError: invalid literal"):
        list(ProcessExecutor().run([spec(1)], Unloadable(), ignore))


def test_a_task_that_finds_no_room_is_refused() -> None:
    """A limit on the size of files stands for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    big = bytes(2**20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
    try:
        with pytest.raises(InputError, match="set TMPDIR"):
            list(ProcessExecutor().run([spec(1)], lambda spec, progress: big and result(spec), ignore))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
