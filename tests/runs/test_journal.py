"""The journal against torn ends, flipped bytes, full disks, second drivers and kill -9."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.executor import result, spec
from flops_fit.errors import InputError, JournalError, StudyMismatch
from flops_fit.records import RunResult
from flops_fit.runs.journal import JOURNAL, Journal

IDENTITY = {"model": {"cls": "GPT", "kwargs": {"heads": 4}}, "data": "0123", "seed": 0}
EACH_TIME_A_NEW_FOLDER = [HealthCheck.function_scoped_fixture]  # the tests below overwrite one file completely
SOURCE = str(Path(__file__).resolve().parents[2] / "src")
TESTS = str(Path(__file__).resolve().parents[1])
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([SOURCE, TESTS])}


def written(folder: Path, runs: int = 3) -> bytes:
    """The bytes of a journal with `runs` runs and a note after the first."""
    with Journal.open(folder, IDENTITY) as journal:
        for size in range(1, runs + 1):
            journal.append(result(spec(size)))
            if size == 1:
                journal.note("lr", {"coefficient": 0.1 / 3})
    return (folder / JOURNAL).read_bytes()


def sizes(folder: Path) -> list[int]:
    return [one.spec.size for one in Journal.read(folder).results.values()]


def test_what_was_written_comes_back_equal(tmp_path: Path) -> None:
    diverged = RunResult(spec=spec(2), status="diverged", loss=None, reason="loss is inf at step 3",
                         curve=((10, 5.1), (20, float("inf"))), environment={"device": "cpu"})  # fmt: skip
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.append(result(spec(1)))
        journal.append(diverged)
        journal.note("lr", (1, 2.5))
        assert journal.recovered is None
        live = (dict(journal.results), dict(journal.notes))
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert (dict(journal.results), dict(journal.notes)) == live
        assert journal.results == {spec(1).key: result(spec(1)), spec(2).key: diverged}
        assert journal.notes == {"lr": [1, 2.5]}


def test_the_latest_line_of_a_key_and_of_a_note_wins(tmp_path: Path) -> None:
    first, second = result(spec(1)), replace(result(spec(1)), loss=0.125)
    with Journal.open(tmp_path, IDENTITY) as journal:
        for one in (first, second):
            journal.append(one)
            journal.note("loss", one.loss)
    content = Journal.read(tmp_path)
    assert list(content.results.values()) == [second]
    assert content.notes == {"loss": 0.125}


def test_other_tools_can_read_it(tmp_path: Path) -> None:
    written(tmp_path)
    frame = pd.read_json(tmp_path / JOURNAL, lines=True)
    assert list(frame["kind"]) == ["study", "run", "note", "run", "run"]
    assert frame["run"].iloc[-1]["spec"]["size"] == 3


@settings(suppress_health_check=EACH_TIME_A_NEW_FOLDER, deadline=None, max_examples=60)
@given(st.data())
def test_any_truncation_of_the_last_line_is_recovered(tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "whole").exists():
        (tmp_path / "whole").write_bytes(written(tmp_path))
    whole = (tmp_path / "whole").read_bytes()
    last = whole.rfind(b"\n", 0, -1) + 1
    length = data.draw(st.integers(last, len(whole) - 1))
    (tmp_path / JOURNAL).write_bytes(whole[:length])
    assert sizes(tmp_path) == [1, 2]  # a reader is not disturbed and changes nothing
    assert (tmp_path / JOURNAL).read_bytes() == whole[:length]
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert (journal.recovered is None) == (length == last)
        journal.append(result(spec(3)))
    assert (tmp_path / JOURNAL).read_bytes() == whole


@settings(suppress_health_check=EACH_TIME_A_NEW_FOLDER, deadline=None, max_examples=300)
@given(st.data())
def test_any_flipped_byte_in_an_earlier_line_is_refused_by_line(tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "whole").exists():
        (tmp_path / "whole").write_bytes(written(tmp_path))
    whole = (tmp_path / "whole").read_bytes()
    last = whole.rfind(b"\n", 0, -1) + 1
    place = data.draw(st.integers(0, last - 1))
    damaged = bytearray(whole)
    damaged[place] ^= data.draw(st.integers(1, 255))
    (tmp_path / JOURNAL).write_bytes(damaged)
    line = whole.count(b"\n", 0, place) + 1
    with pytest.raises(JournalError, match=rf"{JOURNAL}, line {line}: the line is damaged"):
        Journal.open(tmp_path, IDENTITY)
    assert (tmp_path / JOURNAL).read_bytes() == damaged  # refused means untouched


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_torn_first_line_is_a_study_that_never_began(tmp_path: Path, cut: int) -> None:
    (tmp_path / JOURNAL).write_bytes(written(tmp_path)[:cut])
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert (journal.recovered is not None) == (cut > 0)
        assert dict(journal.results) == {}
    assert Journal.read(tmp_path).identity == IDENTITY


def test_a_whole_line_of_another_version_is_refused(tmp_path: Path) -> None:
    import zlib

    written(tmp_path)
    body = b'"kind":"from the future"}'
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"crc":"%08x",' % zlib.crc32(body) + body + b"\n")
    with pytest.raises(JournalError, match=r"line 6: whole, but not of this version"):
        Journal.open(tmp_path, IDENTITY)


def test_another_study_is_refused_and_told_apart(tmp_path: Path) -> None:
    before = written(tmp_path)
    other = {"model": {"cls": "GPT", "kwargs": {"heads": 8}}, "data": "x" * 500, "extra": 1}
    with pytest.raises(StudyMismatch) as caught:
        Journal.open(tmp_path, other)
    message = str(caught.value)
    assert "model.kwargs.heads: 4 there, 8 here" in message
    assert "seed: 0 there, absent here" in message
    assert "extra: absent there, 1 here" in message
    assert "model.cls" not in message
    assert "\n" not in message
    assert len(message) < 600  # the long value is shortened
    assert (tmp_path / JOURNAL).read_bytes() == before
    Journal.open(tmp_path, IDENTITY).close()  # the lock was given back


def test_an_identity_is_compared_as_it_is_stored(tmp_path: Path) -> None:
    Journal.open(tmp_path, {"budgets": (1.0, 2.0)}).close()
    Journal.open(tmp_path, {"budgets": [1.0, 2.0]}).close()
    assert Journal.read(tmp_path).identity == {"budgets": [1.0, 2.0]}
    with pytest.raises(StudyMismatch):
        Journal.open(tmp_path, {"budgets": (2.0, 1.0)})


SECOND_DRIVER = """
import sys
from flops_fit.runs.journal import Journal
try:
    Journal.open(sys.argv[1], {"a": 1})
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_second_driver_is_refused_with_the_first_named(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SECOND_DRIVER, str(tmp_path)]
    with Journal.open(tmp_path, {"a": 1}):
        told = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
        assert told.startswith("JournalError")
        assert f"pid {os.getpid()} on host" in told
        with pytest.raises(JournalError, match="another driver"):  # in one process too
            Journal.open(tmp_path, {"a": 1})
    assert subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout == ""


APPENDING = """
import sys
from contracts.executor import result, spec
from flops_fit.runs.journal import Journal
with Journal.open(sys.argv[1], {"a": 1}) as journal:
    for size in range(1, 10**9):
        journal.append(result(spec(size)))
        if size % 10 == 0:
            print(size, flush=True)
"""


def test_kill_nine_leaves_every_run_that_was_appended(tmp_path: Path) -> None:
    told = 0
    with subprocess.Popen([sys.executable, "-c", APPENDING, str(tmp_path)], env=ENVIRONMENT, stdout=subprocess.PIPE,
                          text=True) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            told = int(line)
            if told == 50:
                process.send_signal(signal.SIGKILL)
    with Journal.open(tmp_path, {"a": 1}) as journal:  # the lock died with its holder
        kept = [one.spec.size for one in journal.results.values()]
    assert len(kept) >= told >= 50
    assert kept == list(range(1, len(kept) + 1))


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """The limit on file size makes write() stop in the middle of a line, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.append(result(spec(1)))
        before = (tmp_path / JOURNAL).read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
        try:
            with pytest.raises(JournalError, match="the lines before it are safe"):
                journal.append(result(spec(2)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / JOURNAL).read_bytes() == before
        assert spec(2).key not in journal.results
        journal.append(result(spec(3)))
    assert sizes(tmp_path) == [1, 3]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(InputError, match="cannot be used"):
            Journal.open(folder, IDENTITY)
    with pytest.raises(InputError, match="no journal can be read"):
        Journal.read(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be used"):
        Journal.open(tmp_path, IDENTITY)


def test_a_folder_with_other_things_is_fine(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    Journal.open(tmp_path / "a" / "b", IDENTITY).close()
    Journal.open(tmp_path, IDENTITY).close()
    assert (tmp_path / "report.html").read_text() == "mine"


def test_what_is_not_json_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="study"):
        Journal.open(tmp_path, {"a": object()})
    before = written(tmp_path)
    with Journal.open(tmp_path, IDENTITY) as journal:
        for value in (object(), float("nan")):
            with pytest.raises(InputError, match="note"):
                journal.note("x", value)
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_a_closed_journal_says_so(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        pass
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.append(result(spec(1)))


def test_every_line_is_one_json_object_with_its_key(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in written(tmp_path).splitlines()]
    assert [line["key"] for line in lines if line["kind"] == "run"] == [spec(size).key for size in (1, 2, 3)]
