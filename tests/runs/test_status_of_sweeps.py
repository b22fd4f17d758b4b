"""What `status` says of real sweeps: stopped while the law is fitted or checked, failed for a reason, finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from contracts.executor import heed_ctrl_c
from flops_fit.errors import FitError
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.beacon import REPORT
from flops_fit.runs.journal import JOURNAL, Journal
from flops_fit.runs.status import status
from flops_fit.study import Sweep
from flops_fit.train.synthetic import SyntheticTrainer
from study import toy

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 60.0  # generous: asserted is that it happens at all

DRIVER = """
import sys
from study import toy
toy.find(toy.study(), sys.argv[1], bootstrap=200_000)  # many, so that there is time to interrupt it
"""


def test_ctrl_c_while_the_law_is_fitted_is_no_failure(tmp_path: Path) -> None:
    path = os.pathsep.join(str(ROOT / part) for part in ("src", "tests"))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], env=environment, preexec_fn=heed_ctrl_c,
                          stderr=subprocess.PIPE) as driver:  # fmt: skip
        deadline = time.monotonic() + WAIT_SECONDS
        while not (tmp_path / JOURNAL).exists() or status(tmp_path).phase != "fitting":
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        assert f"running while fitting, pid {driver.pid}" in str(status(tmp_path))
        driver.send_signal(signal.SIGINT)
        _, said = driver.communicate(timeout=WAIT_SECONDS)
    assert b"KeyboardInterrupt" in said
    found = status(tmp_path)
    assert (found.state, found.phase, found.error) == ("stopped", "fitting", None)
    assert f"{tmp_path}: stopped while fitting\n" in str(found) and "the same command goes on" in str(found)


def test_a_sweep_that_failed_says_why_and_the_same_call_finishes_it(tmp_path: Path) -> None:
    exact = SyntheticTrainer(toy.LAW)
    phases: dict[str, str | None] = {}  # by role, as seen from outside

    def works(spec: RunSpec, progress: Any) -> RunResult:
        phases[spec.role] = status(tmp_path).phase
        return exact(spec, progress)

    def mostly_fails(spec: RunSpec, progress: Any) -> RunResult:
        if len(Journal.read(tmp_path).results) >= 4:
            raise RuntimeError("no")
        return works(spec, progress)

    sweep = Sweep(toy.study(), executor="inline", workers=1, watch=toy.Listener())
    sweep.trainer = mostly_fails
    with pytest.raises(FitError) as raised:
        sweep.find(tmp_path, resume=True, extend=0, verify=4.0, bootstrap=toy.DRAWS)
    found = status(tmp_path)
    assert (found.state, found.phase, found.error) == ("failed", "fitting", str(raised.value))
    page = (tmp_path / REPORT).read_text()
    assert "Failed: " in page and 'http-equiv="refresh"' not in page
    sweep.trainer = works
    result = sweep.find(tmp_path, resume=True, extend=0, verify=4.0, bootstrap=toy.DRAWS)
    found = status(tmp_path)
    assert (found.state, found.phase, found.error, found.verdict) == ("finished", "finished", None, result.verdict())
    assert phases == {"sweep": "running", "verify": "verifying"}
