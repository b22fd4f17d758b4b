"""A sweep whose driver and workers are killed with `kill -9` at random moments, against the same sweep undisturbed.

    python benchmarks/chaos.py --kills 100     writes benchmarks/results/chaos.json; bar: no check fails

60 runs of real training on two workers. A killer strikes a random one of the driver and its workers again and again;
a driver that was struck is started again in the same folder. When a sweep ends before the kills are done, the next
begins in a new folder. Each must end with the result of the undisturbed one, to the last bit.

Every execution of a run notes in a diary when it begins, steps and ends; the driver notes what is in the journal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from record import outcome, record
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flops_fit import find_optimal
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import Event, ProcessExecutor, Progress, Task
from flops_fit.runs.journal import JOURNAL, Journal
from flops_fit.runs.watch import Quiet
from flops_fit.scaling.fit import MIN_DRAWS

INPUTS = 8
SIZES = tuple(range(16, 46, 2))           # 15 sizes at each of 4 budgets
BUDGETS = (1e7, 1.5e7, 2.2e7, 3.3e7)      # FLOPs: some hundred steps a run, half a second on an idle machine
WORKERS = 2
PAUSE = 0.5                               # most time between two kills, in times from start to first run; drawn evenly
SHARE_AT_WORK = 0.75                      # of the kills that wait until there are workers; others may hit a start
SIGN_SECONDS = 0.02                       # how often a run notes that it is at work
ORPHAN_SECONDS = 10.0                     # a worker whose driver is gone may take that long to go, on a busy machine
MARK = "FLOPS_FIT_CHAOS"                  # an environment variable by which all processes of this trial are found


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, 1))

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # (B, 1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def samples() -> TensorDataset:
    x = torch.randn(2000, INPUTS, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, :1] * x[:, 1:2]).sin() + x.square().mean(1, keepdim=True))


# --- the sweep, in a process of its own -------------------------------------------------------------------------------


def note(diary: Path, what: str, key: str) -> None:
    line = f"{time.monotonic()} {what} {key} {os.getpid()}\n".encode()
    fd = os.open(diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line)
    os.close(fd)


@dataclass(frozen=True)
class Noted:
    """A task, with its begin, signs of life and end in the diary."""

    task: Task
    diary: Path

    def __call__(self, spec: RunSpec, progress: Progress) -> RunResult:
        note(self.diary, "begin", spec.key)
        last = time.monotonic()

        def step(step: int, loss: float) -> None:
            nonlocal last
            if time.monotonic() - last > SIGN_SECONDS:
                note(self.diary, "sign", spec.key)
                last = time.monotonic()
            progress(step, loss)

        result = self.task(spec, step)
        note(self.diary, "end", spec.key)
        return result


@dataclass(frozen=True)
class Noting:
    """The executor of this trial: workers whose runs keep the diary, and which are replaced as often as it takes."""

    diary: Path

    def run(self, specs: Sequence[RunSpec], task: Task, on_event: Callable[[Event], None]) -> Iterator[RunResult]:
        return ProcessExecutor(WORKERS, retries=10**6).run(specs, Noted(task, self.diary), on_event)


class Recorder(Quiet):
    """Notes what is in the journal: what is there at the start, and each run as it comes."""

    def __init__(self, folder: Path, diary: Path) -> None:
        self.diary = diary
        for key in Journal.read(folder).results if (folder / JOURNAL).exists() else ():
            note(diary, "recorded", key)

    def done(self, result: RunResult) -> None:
        note(self.diary, "recorded", result.spec.key)


def drive(folder: Path) -> None:
    diary = folder.with_suffix(".diary")
    find_optimal(
        Net, "width", dataset=samples(), loss_fn=squared_error, compute_budgets=BUDGETS, sizes=SIZES, max_epochs=1e9,
        batch_size=64, lr=0.02, extend=0, bootstrap=MIN_DRAWS, output_dir=folder, executor=Noting(diary),
        watch=Recorder(folder, diary),
    )  # fmt: skip


# --- the killer -------------------------------------------------------------------------------------------------------


def start(folder: Path) -> subprocess.Popen[bytes]:
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, __file__, "--drive", str(folder)], stdout=log, stderr=log, start_new_session=True,
            env=os.environ | {MARK: str(os.getpid()), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def processes() -> Iterator[tuple[int, int, Path]]:
    """(pid, pid of the parent, folder in /proc) of everything that runs; the dead that nobody waited for do not."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # gone since
            continue
        if state != "Z":
            yield int(path.name), int(parent), path


def workers(driver: subprocess.Popen[bytes]) -> list[int]:
    return sorted(pid for pid, parent, _ in processes() if parent == driver.pid)


def orphans() -> list[int]:
    """Processes of this trial that are left, after a while in which they may go."""
    mark = f"{MARK}={os.getpid()}".encode()
    until = time.monotonic() + ORPHAN_SECONDS
    while True:
        left = []
        for pid, _, path in processes():
            try:
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    left.append(pid)
            except OSError:
                continue
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


def finish(driver: subprocess.Popen[bytes], folder: Path) -> None:
    if driver.wait() != 0:
        raise SystemExit(f"the driver ended by itself with code {driver.returncode}:\n"
                         + folder.with_suffix(".log").read_text()[-2000:])  # fmt: skip


def disturb(folder: Path, kills: int, longest: float, rng: random.Random) -> Counter[str]:
    """One sweep to its end under at most `kills` kills, `longest` seconds apart; returns how often whom."""
    struck: Counter[str] = Counter()
    driver = start(folder)
    while struck.total() < kills:
        at_work, pause = rng.random() < SHARE_AT_WORK, rng.uniform(0, longest)
        while at_work and driver.poll() is None and not workers(driver):
            time.sleep(0.05)
        time.sleep(pause)
        if driver.poll() is not None:
            break
        victim = rng.choice([driver.pid, *workers(driver)])
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
        if victim == driver.pid:
            struck["driver"] += 1
            driver.wait()
            driver = start(folder)  # at once, while the workers of the last one may still be going
        else:
            struck["worker"] += 1
    finish(driver, folder)
    return struck


# --- what must hold ---------------------------------------------------------------------------------------------------


def entries(folder: Path) -> list[str]:
    """Lines of the diary by time, each "seconds what key pid"."""
    return sorted(folder.with_suffix(".diary").read_text().splitlines(), key=lambda line: float(line.split()[0]))


def examine(folder: Path) -> Counter[str]:
    """Counts from journal and diary; those named "wrong: ..." must be 0."""
    lines = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    runs = [line for line in lines if line["kind"] == "run"]
    recorded = {line["key"] for line in runs}
    found = Counter({"runs": len(recorded), "wrong: recorded more than once": len(runs) - len(recorded)})
    found["wrong: recorded, but not ok"] = sum(line["run"]["status"] != "ok" for line in runs)
    known: set[str] = set()
    at_work: dict[str, str] = {}  # the process that began the run last
    for line in entries(folder):
        _, what, key, pid = line.split()
        if what == "recorded":
            known.add(key)
        elif what == "begin":
            found["begun"] += 1
            found["wrong: begun after it was recorded"] += key in known
            at_work[key] = pid
        else:
            found["wrong: two at once"] += at_work[key] != pid
            found["ended"] += what == "end"
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drive:
        drive(given.drive)
        return
    rng, struck, found = random.Random(given.seed), Counter[str](), Counter[str]()
    sweeps = different = 0
    with tempfile.TemporaryDirectory() as base:
        whole, began = Path(base) / "whole", time.monotonic()
        finish(start(whole), whole)
        first = float(entries(whole)[0].split()[0]) - began
        undisturbed, began = time.monotonic() - began, time.monotonic()
        while struck.total() < given.kills:
            sweeps += 1
            folder = Path(base) / f"sweep-{sweeps}"
            struck += disturb(folder, given.kills - struck.total(), PAUSE * first, rng)
            found.update(examine(folder))
            different += outcome(folder) != outcome(whole)
            print(f"sweep {sweeps}: {struck.total()} of {given.kills} kills", file=sys.stderr, flush=True)
        wrong = {name.removeprefix("wrong: "): n for name, n in found.items() if name.startswith("wrong: ")}
        wrong |= {"sweeps with another result": different, "processes left": len(orphans())}
        figures = {
            "kills": struck.total(),
            "kills_of_drivers": struck["driver"],
            "kills_of_workers": struck["worker"],
            "sweeps": sweeps,
            "runs_recorded": found["runs"],
            "runs_begun": found["begun"],
            "runs_ended": found["ended"],
            "seconds_to_first_run": round(first, 1),
            "seconds_a_sweep_undisturbed": round(undisturbed, 1),
            "seconds_a_sweep": round((time.monotonic() - began) / sweeps, 1),
            "wrong": wrong,
        }
    record("chaos", figures)
    for name, count in wrong.items():
        print(f"{name:40}{count:6}  {'ok' if count == 0 else 'WRONG'}")
    if any(wrong.values()):
        raise SystemExit("a promise was broken")


if __name__ == "__main__":
    main()
