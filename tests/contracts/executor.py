"""What every executor promises (`flops_fit.runs.executors.Executor`), as tests to be reused over all of them.

Subclass `ExecutorContract` in a test file and give it a fixture `executor`. Tasks stand at module level here: worker
processes import this file by its name.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import Event, Executor, Progress, Progressed, Started

DEATH_SECONDS = 20.0  # generous: a loaded machine may take long to deliver a signal; asserted is that it happens at all


def spec(size: int, steps: int = 10, warmup_steps: int | None = None, shared_steps: int = 0) -> RunSpec:
    """A run whose FLOPs grow with `size` and `steps`; with `warmup_steps` it is in the lane of its size."""
    return RunSpec(study="test", size=size, params=100 * size, flops_per_token=600.0 * size, steps=steps, batch_size=4,
                   tokens=400 * steps, lr=1e-3, seed=0, budget=1e6, warmup_steps=warmup_steps,
                   shared_steps=shared_steps)  # fmt: skip


def result(spec: RunSpec) -> RunResult:
    return RunResult(spec=spec, status="ok", loss=1.0 / spec.size, tokens=spec.tokens, flops=spec.flops)


def heed_ctrl_c() -> None:
    """For preexec_fn: a job started in the background of a shell ignores SIGINT, and so would all its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie, which nobody has waited for yet, does not)."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + DEATH_SECONDS
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def plain(spec: RunSpec, progress: Progress) -> RunResult:
    return result(spec)


def talkative(spec: RunSpec, progress: Progress) -> RunResult:
    print("to be kept out of stdout")
    for step in range(1000):
        progress(step, 1.0 / (step + 1))
    return result(spec)


def odd_sizes_fail(spec: RunSpec, progress: Progress) -> RunResult:
    if spec.size % 2:
        raise ValueError(f"size {spec.size}\nis odd")
    return result(spec)


def returns_nothing(spec: RunSpec, progress: Progress) -> RunResult:
    return None  # type: ignore[return-value]


def tells_its_pid_and_sleeps(spec: RunSpec, progress: Progress) -> RunResult:
    progress(os.getpid(), 0.0)
    time.sleep(3600 if spec.size == 1 else 0)
    return result(spec)


@dataclass(frozen=True)
class Diary:
    """A task that writes "size steps" into a file when it begins and when it ends; the file keeps the order."""

    path: Path

    def __call__(self, spec: RunSpec, progress: Progress) -> RunResult:
        self.write(spec)
        time.sleep(0.05)
        self.write(spec)
        return result(spec)

    def write(self, spec: RunSpec) -> None:
        with self.path.open("a") as file:
            file.write(f"{spec.size} {spec.steps}\n")

    def read(self) -> list[tuple[int, ...]]:
        return [tuple(map(int, line.split())) for line in self.path.read_text().splitlines()]


def ignore(event: Event) -> None:
    """A listener that does nothing."""


class ExecutorContract:
    """Reused over all implementations."""

    def test_each_spec_gets_its_own_result_once(self, executor: Executor) -> None:
        specs = [spec(size) for size in (3, 1, 4, 2, 5)]
        results = list(executor.run(specs, plain, ignore))
        assert {one.spec for one in results} == set(specs)
        assert len(results) == len(specs)
        assert all(one == result(one.spec) for one in results)

    def test_no_specs_no_results(self, executor: Executor) -> None:
        assert list(executor.run([], plain, ignore)) == []

    def test_runs_of_a_lane_go_one_after_the_other(self, executor: Executor, tmp_path: Path) -> None:
        sizes, lengths = (1, 2, 3), (10, 20, 30)
        specs = [spec(size, steps, warmup_steps=5) for steps in (30, 10, 20) for size in sizes]
        diary = Diary(tmp_path / "diary")
        assert {one.spec for one in executor.run([*specs, spec(9)], diary, ignore)} == {*specs, spec(9)}
        for size in sizes:
            steps = [steps for its_size, steps in diary.read() if its_size == size]
            assert steps == sorted(steps)  # begun and ended before the next began
            assert set(steps) == set(lengths)

    def test_a_failing_task_is_recorded_and_does_not_end_the_sweep(self, executor: Executor) -> None:
        results = {one.spec.size: one for one in executor.run([spec(n) for n in (1, 2, 3)], odd_sizes_fail, ignore)}
        assert {size: one.status for size, one in results.items()} == {1: "failed", 2: "ok", 3: "failed"}
        assert results[1].loss is None
        assert results[1].reason.startswith("ValueError: size 1 is odd (executor.py:")  # one line, with its place

    def test_a_task_without_a_result_is_a_failed_run(self, executor: Executor) -> None:
        [only] = executor.run([spec(1)], returns_nothing, ignore)
        assert only.status == "failed"
        assert "NoneType" in only.reason

    def test_events_come_in_order_and_are_throttled(self, executor: Executor) -> None:
        events: list[Event] = []
        [only] = executor.run([spec(1)], talkative, events.append)
        assert only.ok
        assert events[:2] == [Started(spec(1)), Progressed(spec(1), 0, 1.0)]
        steps = [event.step for event in events if isinstance(event, Progressed)]
        assert steps == sorted(set(steps))
        assert len(steps) < 100  # of 1000 calls, which take a few milliseconds

    def test_stdout_stays_clean(self, executor: Executor, capfd: pytest.CaptureFixture[str]) -> None:
        list(executor.run([spec(1)], talkative, ignore))
        captured = capfd.readouterr()
        assert captured.out == ""
        assert "to be kept out of stdout" in captured.err

    def test_results_come_while_others_wait(self, executor: Executor) -> None:
        """Closing after the first result leaves nothing running; run 1 would sleep for an hour."""
        pids: list[int] = []

        def listen(event: Event) -> None:
            if isinstance(event, Progressed):
                pids.append(event.step)

        results = executor.run([spec(3), spec(2), spec(1)], tells_its_pid_and_sleeps, listen)
        assert next(results).ok
        results.close()  # type: ignore[attr-defined]
        assert pids
        assert all(gone(pid) for pid in pids if pid != os.getpid())

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_what_the_listener_raises_goes_through_and_leaves_nothing_running(
        self, executor: Executor, error: type[BaseException]
    ) -> None:
        pids: list[int] = []

        def listen(event: Event) -> None:
            if isinstance(event, Progressed):
                pids.append(event.step)
                raise error("from the listener")

        with pytest.raises(error, match="from the listener"):
            list(executor.run([spec(1)], tells_its_pid_and_sleeps, listen))
        [pid] = pids
        assert pid == os.getpid() or gone(pid)
