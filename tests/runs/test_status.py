"""How a sweep stands, asked from outside while it runs, after it, and after it was killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts.executor import result, spec
from flops_fit.errors import FitError, InputError, JournalError
from flops_fit.records import RunResult
from flops_fit.runs.beacon import PROGRESS, Beacon, Phase
from flops_fit.runs.journal import JOURNAL, LOCK, Journal
from flops_fit.runs.status import RESULT, status
from flops_fit.runs.watch import Quiet

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 60.0  # generous: asserted is that it happens at all
IDENTITY = {"study": "test"}
SPECS = [replace(spec(size), budget=budget, tokens=int(4e-3 * budget))  # a budget alone is a label
         for budget in (1e6, 1e7) for size in (1, 2, 3)]  # fmt: skip

DRIVER = """
import sys, time
from flops_fit.runs.executors import Progressed, Started
from test_status import *
with Journal.open(sys.argv[1], IDENTITY) as journal:
    watch = Beacon(sys.argv[1], Quiet())
    watch.begin(SPECS, reused=0)
    watch.event(Started(SPECS[0]))
    journal.append(result(SPECS[0]))
    watch.done(result(SPECS[0]))
    watch.event(Started(SPECS[1]))
    while True:
        watch.event(Progressed(SPECS[1], 5, 2.5))
        time.sleep(0.01)
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that works on a study in tmp_path, has finished one run and is half through the second."""
    path = os.pathsep.join(str(ROOT / part) for part in ("src", "tests", "tests/runs"))
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], env=os.environ | {"PYTHONPATH": path}) as one:
        deadline = time.monotonic() + WAIT_SECONDS
        while b'"step": 5' not in (_bytes(tmp_path / PROGRESS)):
            assert one.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        yield one
        one.kill()


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def failed(one: Any, reason: str) -> RunResult:
    return RunResult(spec=one, status="failed", loss=None, reason=reason)


def swept(
    folder: Path, *, done: int = len(SPECS), phase: Phase = "running", end: BaseException | None = None
) -> None:
    """A sweep of SPECS that was left by `end` in `phase`, after `done` of them; the third of them diverges."""
    with (
        suppress(KeyboardInterrupt, FitError),
        Journal.open(folder, IDENTITY) as journal,
        Beacon(folder, Quiet()) as watch,
    ):
        watch.begin(SPECS, reused=0)
        for k, one in enumerate(SPECS[:done]):
            ended = result(one) if k != 2 else replace(failed(one, "too steep"), status="diverged")
            journal.append(ended)
            watch.done(ended)
        watch.end()
        watch.phase(phase)
        if end is not None:
            raise end


# --- a driver is at work -------------------------------------------------------------------------------------------


def test_a_running_sweep_and_the_same_when_it_was_killed(tmp_path: Path, driver: subprocess.Popen[bytes]) -> None:
    before = {path.name: path.read_bytes() for path in (tmp_path / LOCK, tmp_path / JOURNAL)}
    for _ in range(20):  # to look does not take the lock from the driver
        found = status(tmp_path)
    assert found.state == "running"
    assert found.driver == f"pid {driver.pid} on host {socket.gethostname()}"
    assert found.runs == {"done": 1, "total": 6, "reused": 0}
    assert found.cost == {"done": SPECS[0].flops + SPECS[1].flops / 2, "total": sum(s.flops for s in SPECS)}
    [run] = found.running
    assert (run.key, run.step, run.loss, run.share) == (SPECS[1].key, 5, 2.5, 0.5)
    assert found.seconds_left is not None and found.seconds_left > 0
    assert found.counts == {"sweep": {"ok": 1}} and found.spent == SPECS[0].flops
    assert "5/10  2.5000   50%" in str(found)
    with pytest.raises(JournalError, match="another driver"):
        Journal.open(tmp_path, IDENTITY)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before

    driver.kill()
    driver.wait()
    found = status(tmp_path)
    assert (found.state, found.driver, found.running, found.seconds_left) == ("stopped", None, (), None)
    assert found.counts == {"sweep": {"ok": 1}}
    assert "the same command goes on" in str(found)
    with Journal.open(tmp_path, IDENTITY):  # the look has given the lock back
        assert status(tmp_path).state == "running"
        assert status(tmp_path).running == ()  # what the dead driver told is not taken for this one's


# --- nobody is at work ---------------------------------------------------------------------------------------------


def test_a_sweep_that_was_stopped_goes_on(tmp_path: Path) -> None:
    swept(tmp_path, done=4, end=KeyboardInterrupt())
    found = status(tmp_path)
    assert (found.state, found.runs["done"], found.runs["total"]) == ("stopped", 4, 6)
    assert found.cost["done"] == sum(s.flops for s in SPECS[:4])
    assert found.counts == {"sweep": {"ok": 3, "diverged": 1}}
    assert [(b.budget, b.size, b.loss) for b in found.best] == [(1e6, 2, 0.5), (1e7, 1, 1.0)]
    [failure] = found.failures
    assert (failure.size, failure.status, failure.reason) == (3, "diverged", "too steep")
    assert "diverged: sweep 1e+06 FLOPs, size 3: too steep" in str(found)


@pytest.mark.parametrize("phase", ["running", "fitting", "verifying"])
def test_only_a_driver_that_told_why_has_failed(tmp_path: Path, phase: Phase) -> None:
    swept(tmp_path, phase=phase, end=KeyboardInterrupt())
    found = status(tmp_path)
    assert (found.state, found.phase, found.error, found.verdict) == ("stopped", phase, None, None)
    assert ("while" in str(found)) == (phase != "running")
    assert "the same command goes on" in str(found) and "failed" not in str(found).replace(str(tmp_path), "")
    swept(tmp_path, phase=phase, end=FitError("no law:\n  too few"))
    found = status(tmp_path)
    assert (found.state, found.phase, found.error) == ("failed", phase, "no law: too few")
    assert "failed: no law: too few\n" in str(found) and "the same command goes on" in str(found)
    with Journal.open(tmp_path, IDENTITY), Beacon(tmp_path, Quiet()):  # the next one begins
        found = status(tmp_path)
        assert (found.state, found.phase, found.error) == ("running", "running", None)


def test_what_an_earlier_driver_told_of_its_end_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    swept(tmp_path, phase="fitting", end=FitError("no law"))
    told = json.loads((tmp_path / PROGRESS).read_text())
    (tmp_path / PROGRESS).write_text(json.dumps(told | {"host": "elsewhere"}))
    with Journal.open(tmp_path, IDENTITY):
        found = status(tmp_path)
    assert (found.state, found.phase, found.error) == ("running", None, None)


def test_a_sweep_whose_runs_were_all_reused(tmp_path: Path) -> None:
    swept(tmp_path)
    with Beacon(tmp_path, Quiet()) as watch:
        watch.begin([], reused=len(SPECS))
    assert "0/0 runs (6 reused); told" in str(status(tmp_path))


def test_only_runs_of_the_plan_are_best_and_what_was_spent_is_counted(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.append(result(replace(SPECS[2], role="probe", lr=0.5)))
        journal.append(replace(result(SPECS[0]), spent=7.0))
    found = status(tmp_path)
    assert [best.size for best in found.best] == [1]
    assert found.spent == 7.0 + SPECS[2].flops
    assert found.counts == {"probe": {"ok": 1}, "sweep": {"ok": 1}}


def test_a_driver_that_was_killed_before_its_first_run(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).touch()
    found = status(tmp_path)
    assert (found.state, found.counts, found.runs, found.updated) == ("stopped", {}, {}, None)
    assert "no runs yet" in str(found)


def test_it_is_one_json_document_both_ways(tmp_path: Path) -> None:
    swept(tmp_path, done=4, end=KeyboardInterrupt())
    found = status(tmp_path)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["state"] == "stopped" and document["best"][0]["loss"] == 0.5
    assert set(document) == set(found.to_dict())


# --- folders that are not as they should be --------------------------------------------------------------------------


def test_a_folder_that_holds_no_study(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for folder in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(InputError, match="no journal can be read"):
            status(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing was made


def test_a_torn_last_line_is_left_as_it_is(tmp_path: Path) -> None:
    swept(tmp_path, done=4)
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole[:-20])
    assert status(tmp_path).counts == {"sweep": {"ok": 2, "diverged": 1}}
    assert (tmp_path / JOURNAL).read_bytes() == whole[:-20]


def test_a_journal_that_is_damaged_in_the_middle_is_named_by_line(tmp_path: Path) -> None:
    swept(tmp_path, done=4)
    (tmp_path / JOURNAL).write_bytes((tmp_path / JOURNAL).read_bytes().replace(b'"size":2', b'"size":9'))
    with pytest.raises(JournalError, match="line 3"):
        status(tmp_path)


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "5", '{"format":2}', '{"format":1}', '{"format":1,"running":[{"key":1}]}', "\udcff",
    '{"format":1,"running":[],"runs":{"done":"x","total":1,"reused":0}}',
    '{"format":1,"running":[],"runs":{"done":0,"total":0,"reused":0},"cost":{"done":0,"total":0},'
    '"updated":"2026-01-31","phase":"x"}',
], ids=str)  # fmt: skip
def test_what_is_told_beside_the_journal_may_be_of_no_use(tmp_path: Path, text: str) -> None:
    swept(tmp_path, done=4)
    (tmp_path / PROGRESS).write_bytes(text.encode("utf-8", "surrogateescape"))
    found = status(tmp_path)
    assert found.counts == {"sweep": {"ok": 3, "diverged": 1}}
    assert f"{PROGRESS} is of no use" in found.messages[-1] and found.messages[-1] in str(found)


@pytest.mark.parametrize("text", ["", "{}", '{"law":3}', "\udcff"], ids=str)
def test_a_result_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    swept(tmp_path)
    (tmp_path / RESULT).write_bytes(text.encode("utf-8", "surrogateescape"))
    found = status(tmp_path)
    assert (found.state, found.verdict) == ("stopped", None)
    assert str(tmp_path / RESULT) in found.messages[-1]
