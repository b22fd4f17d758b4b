"""`kill -9` of a real driver at every kind of instant; the resumed study equals the one that was never broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flops_fit.runs.journal import Journal
from flops_fit.study import Study
from study.toy import content, find, study

ROOT = Path(__file__).resolve().parents[2]

# At tiny budgets, so that a study takes seconds; sizes are placed askew, so that it extends itself.
SMALL: dict[str, Any] = {"trainer": None, "compute_budgets": (1e6, 2e6, 4e6), "tokens_per_param": 400.0, "lr": "auto"}
EXTEND, VERIFY = 1, 2.0


def small() -> Study:
    return study(**SMALL)


# Forks one driver for each kill point, since a fork costs no import of torch; nothing has computed before.
DRIVER = """
import gc, os, signal, sys
from pathlib import Path
from flops_fit.runs import journal
from flops_fit.scaling import plot
from flops_fit.scaling.result import Result
from flops_fit.study import Sweep, sweep
from study.test_kill import EXTEND, VERIFY, small
from study.toy import DRAWS, Listener

plot.save = lambda result, folder: None
Result.report = lambda result, path=None: ""

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Killer(Listener):
    def __init__(self, what, count):
        super().__init__()
        self.what, self.left = what, count
    def at(self, what):
        self.left -= what == self.what
        if what == self.what and not self.left:
            die()
    def event(self, event):
        self.at(type(event).__name__)
    def done(self, result):
        self.at("done")
    def say(self, text):
        self.at("extension" if "adding size" in text else "verifying" if text.startswith("verifying") else "")

def tear(killer):
    write = os.write
    def torn(fd, line):
        if b'"kind":"run"' in line:
            killer.left -= 1
            if not killer.left:
                write(fd, line[: len(line) // 2])
                die()
        return write(fd, line)
    journal.os.write = torn

gc.freeze()  # each run collects garbage; what was imported is none
for folder in map(Path, sys.argv[2:]):
    pid = os.fork()
    if not pid:
        what, _, count = folder.name.partition("-")
        killer = Killer(what, int(count or 1))
        if what == "torn":
            tear(killer)
        if what == "save":
            sweep._save = lambda result, folder: (folder / "result.json").write_text("{") and die()
        Sweep(small(), executor=sys.argv[1], workers=2, watch=killer).find(
            folder, resume=True, extend=EXTEND, verify=VERIFY, bootstrap=DRAWS)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

PROBES = 8  # runs of lr="auto" come first, so run 1 is one of them: 5 at a small size, 3 that check them at a larger
POINTS = ("torn-2", "Progressed-3", f"done-{PROBES}", f"Started-{PROBES + 4}", f"torn-{PROBES + 9}",
          "extension-1", "verifying", "save")  # fmt: skip


def kill_at(points: tuple[str, ...], executor: str, folder: Path) -> list[Path]:
    folders = [folder / point for point in points]
    for one in folders:
        one.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, executor, *map(str, folders)], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["-9"] * len(points), done.stderr
    return folders


def resume(folder: Path) -> Any:
    return find(small(), folder, executor="local", extend=EXTEND, verify=VERIFY)[1]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, int]:
    """(content of result.json, runs) of a study that nobody killed."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flops_fit.scaling.plot.save", lambda result, folder: None)
        patch.setattr("flops_fit.scaling.result.Result.report", lambda result, path=None: "")
        listener = resume(folder)
    assert any("adding size" in line for line in listener.lines)  # else no kill point is in an extension
    assert content(folder)["verify"] is not None
    return content(folder), len(listener.finished)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = kill_at(POINTS, "local", tmp_path_factory.mktemp("killed"))
    return {folder.name: folder for folder in folders}


@pytest.mark.parametrize("point", POINTS)
def test_resumed_equals_unbroken(point: str, killed: dict[str, Path], unbroken: tuple[Any, int]) -> None:
    folder = killed[point]
    saved = len(Journal.read(folder).results)
    what, _, count = point.partition("-")
    whole = {"done": int(count or 1), "torn": int(count or 1) - 1, "Started": int(count or 1) - 1}
    assert saved == whole.get(what, saved)  # loses at most the run in flight
    listener = resume(folder)
    assert content(folder) == unbroken[0]
    assert saved + len(listener.finished) == unbroken[1]
    assert any("torn" in line for line in listener.lines) == (what == "torn")


def test_resumed_equals_unbroken_with_worker_processes(tmp_path: Path, unbroken: tuple[Any, int]) -> None:
    """Workers finish in any order; the result does not depend on it, nor on the executor."""
    [folder] = kill_at(("done-3",), "processes", tmp_path)
    assert len(Journal.read(folder).results) == 3
    resume(folder)
    assert content(folder) == unbroken[0]
