"""A sweep killed with `kill -9` at several moments and resumed, against the same sweep unbroken.

    python benchmarks/resume.py       bar: equal results, bit for bit; wall time and memory aside

Real training of the gpt-python recipe at small budgets, in worker processes. Also counts what was trained twice.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import outcome, record

COMMAND = ["find", "gpt-python", "--budgets", "4e9,8e9,1.6e10", "--sizes", "16,32,48,64", "--executor", "processes"]
KILL_AFTER = (1, 4, 8)        # finished runs in the journal when the driver is killed


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flops_fit.cli", *COMMAND, "--output", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finished(folder: Path) -> int:
    journal = folder / "journal.jsonl"
    return journal.read_bytes().count(b'"kind":"run"') if journal.exists() else 0


def main() -> None:
    with tempfile.TemporaryDirectory() as base:
        whole, broken = Path(base) / "whole", Path(base) / "broken"
        assert start(whole).wait() == 0
        runs = finished(whole)
        for runs_done in KILL_AFTER:
            driver = start(broken)
            while finished(broken) < runs_done:
                assert driver.poll() is None, "the sweep ended before it could be killed"
                time.sleep(0.02)
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
        assert start(broken).wait() == 0
        figures = {
            "runs": runs,
            "kills": len(KILL_AFTER),
            "runs_journaled_twice": finished(broken) - runs,
            "result_identical": outcome(whole) == outcome(broken),
        }
    record("resume", figures)


if __name__ == "__main__":
    main()
