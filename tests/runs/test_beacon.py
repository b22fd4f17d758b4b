"""What a driver keeps on the disk while a sweep runs: progress.json and the page."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.executor import result, spec
from flops_fit.errors import FitError
from flops_fit.records import RunResult
from flops_fit.runs import beacon
from flops_fit.runs.beacon import PAGE_SECONDS, PROGRESS, REPORT, WRITE_SECONDS, Beacon
from flops_fit.runs.executors import Progressed, Retried, Started
from flops_fit.runs.journal import Journal
from flops_fit.runs.page import LEFT, WIDTH, _Axis, running_page
from flops_fit.runs.watch import Quiet

SPECS = [replace(spec(size), budget=budget, tokens=int(4e-3 * budget))  # a budget alone is a label
         for budget in (1e6, 1e7) for size in (1, 2, 3)]  # fmt: skip
HOSTILE = '<script>alert("x")</script> & \ud800 ü'
WRITES = 500
FULL = Path("/dev/full")  # every write to it finds no space


class Recorder(Quiet):
    """Remembers every call, with what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def say(self, text: str) -> None:
        self.calls.append(("say", text))

    def begin(self, specs: Sequence[Any], reused: int) -> None:
        self.calls.append(("begin", list(specs), reused))

    def event(self, event: Any) -> None:
        self.calls.append(("event", event))

    def done(self, result: Any) -> None:
        self.calls.append(("done", result))

    def end(self) -> None:
        self.calls.append(("end",))


class Page(HTMLParser):
    """Tags that are open, all tags, attributes that lead outside, and the text."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append({"": tag, **dict(attrs)})
        self.outside += [name for name, _ in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, to be set."""
    now = [1000.0]
    monkeypatch.setattr(beacon.time, "monotonic", lambda: now[0])
    return now


def told(folder: Path) -> Any:
    return json.loads((folder / PROGRESS).read_text())


def shown(folder: Path) -> Page:
    page = Page((folder / REPORT).read_text(encoding="utf-8"))
    assert page.open == [] and page.outside == [] and "script" not in page.tags
    return page


def failed(one: Any, reason: str) -> RunResult:
    return RunResult(spec=one, status="failed", loss=None, reason=reason)


# --- progress.json -------------------------------------------------------------------------------------------------


def test_everything_is_passed_on(tmp_path: Path) -> None:
    calls = [("say", "a"), ("begin", SPECS, 3), ("event", Started(SPECS[0])), ("event", Retried(SPECS[0], "died")),
             ("event", Progressed(SPECS[0], 3, 1.5)), ("done", result(SPECS[0])), ("say", "b"), ("end",)]  # fmt: skip
    inner = Recorder()
    one = Beacon(tmp_path, inner)
    for name, *values in calls:
        getattr(one, name)(*values)
    assert inner.calls == calls


def test_it_tells_what_was_done_and_what_runs(tmp_path: Path, clock: list[float]) -> None:
    one = Beacon(tmp_path, Quiet())
    one.say("so it begins")
    one.begin(SPECS, reused=4)
    first = told(tmp_path)
    assert first["runs"] == {"done": 0, "total": 6, "reused": 4} and first["running"] == []
    assert first["cost"] == {"done": 0.0, "total": sum(s.flops for s in SPECS)}
    one.event(Started(SPECS[0]))
    one.event(Started(SPECS[1]))
    one.done(result(SPECS[0]))
    one.event(Retried(SPECS[1], "worker died"))
    clock[0] += WRITE_SECONDS
    one.event(Progressed(SPECS[1], 5, math.inf))
    now = told(tmp_path)
    assert now["runs"]["done"] == 1
    assert now["cost"]["done"] == SPECS[0].flops + SPECS[1].flops / 2
    [run] = now["running"]
    assert (run["key"], run["step"], run["steps"], run["loss"]) == (SPECS[1].key, 5, 10, None)
    assert now["messages"] == ["so it begins", "begun again: sweep 1e+06 FLOPs, size 2: worker died"]
    assert first["begun"] == now["begun"] <= now["updated"]
    one.end()
    assert not (tmp_path / f"{PROGRESS}.new").exists()


def test_it_writes_once_a_second_at_most_but_always_at_begin_done_and_end(tmp_path: Path, clock: list[float]) -> None:
    one = Beacon(tmp_path, Quiet())

    def writes() -> bool:
        """Whether something was written since the last time."""
        was = (tmp_path / PROGRESS).exists()
        (tmp_path / PROGRESS).unlink(missing_ok=True)
        return was

    one.begin(SPECS, reused=0)
    assert writes()
    for k in range(50):
        one.event(Progressed(SPECS[0], k, 1.0))
    assert not writes()
    one.done(result(SPECS[0]))
    assert writes()
    clock[0] += WRITE_SECONDS
    one.event(Progressed(SPECS[0], 1, 1.0))
    assert writes()
    one.event(Progressed(SPECS[0], 2, 1.0))
    assert not writes()
    one.end()
    assert writes()


def test_a_reader_never_finds_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beacon, "WRITE_SECONDS", 0.0)
    one = Beacon(tmp_path, Quiet())
    one.begin(SPECS, reused=0)
    one.event(Started(SPECS[0]))
    done, seen = threading.Event(), set()

    def read() -> None:
        while not done.is_set():
            seen.add(told(tmp_path)["running"][0]["step"])

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(WRITES):
        one.event(Progressed(SPECS[0], k, 1.0))
    done.set()
    reader.join()  # an exception in it is an error of this test
    assert len(seen) > 1


def test_only_the_last_messages_are_kept(tmp_path: Path) -> None:
    one = Beacon(tmp_path, Quiet())
    for k in range(100):
        one.say(str(k))
    one.begin(SPECS, reused=0)
    assert told(tmp_path)["messages"] == [str(k) for k in range(80, 100)]


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_once_and_disturbs_nothing(tmp_path: Path, clock: list[float]) -> None:
    inner = Recorder()
    one = Beacon(tmp_path, inner)
    one.begin(SPECS, reused=0)
    before = told(tmp_path)
    for name in (PROGRESS, REPORT):
        (tmp_path / f"{name}.new").symlink_to(FULL)
    for one_spec in SPECS:
        clock[0] += WRITE_SECONDS
        one.event(Started(one_spec))
        one.done(result(one_spec))
    one.end()
    assert [call[0] for call in inner.calls].count("done") == len(SPECS)
    [said] = [call[1] for call in inner.calls if call[0] == "say"]
    assert "No space left" in said and str(tmp_path) in said
    assert told(tmp_path) == before


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_asks_for_itself_again_and_shows_the_runs(tmp_path: Path, clock: list[float]) -> None:
    with Journal.open(tmp_path, {"study": 1}) as journal:  # of an earlier driver
        journal.append(result(SPECS[0]))
        one = Beacon(tmp_path, Quiet())
        one.say(HOSTILE)
        one.begin(SPECS[1:], reused=1)
        one.event(Started(SPECS[1]))
        one.done(result(SPECS[1]))
        one.done(failed(SPECS[2], HOSTILE))
        clock[0] += PAGE_SECONDS
        one.event(Started(SPECS[3]))
    page = shown(tmp_path)
    assert {"": "meta", "http-equiv": "refresh", "content": "5"} in page.attributes
    assert "2 of 5 runs done, 1 more from the journal" in page.text
    assert page.text.count('<script>alert("x")</script>') == 2  # as text: what was said, and the reason
    assert page.tags.count("circle") == 2
    assert "1.0000" in page.text and "0.5000" in page.text  # losses, from the journal and of now


def test_the_page_is_drawn_every_few_seconds_at_most(tmp_path: Path, clock: list[float]) -> None:
    one = Beacon(tmp_path, Quiet())
    one.begin(SPECS, reused=0)
    assert "0 of 6" in shown(tmp_path).text
    clock[0] += PAGE_SECONDS - 0.1
    one.done(result(SPECS[0]))
    assert "0 of 6" in shown(tmp_path).text
    clock[0] += 0.2
    one.event(Started(SPECS[1]))  # a run that finished while it was too early is shown with the next news
    assert "1 of 6" in shown(tmp_path).text


def test_no_page_takes_the_place_of_a_report_when_nothing_is_to_run(tmp_path: Path) -> None:
    (tmp_path / REPORT).write_text("the law")
    one = Beacon(tmp_path, Quiet())
    one.begin([], reused=6)
    one.end()
    assert (tmp_path / REPORT).read_text() == "the law"
    assert told(tmp_path)["runs"] == {"done": 0, "total": 0, "reused": 6}


def test_the_page_says_what_the_driver_does_and_stops_asking_when_it_gave_up(tmp_path: Path) -> None:
    refresh = {"": "meta", "http-equiv": "refresh", "content": "5"}
    with suppress(FitError), Beacon(tmp_path, Quiet()) as one:
        one.begin(SPECS[:1], reused=0)
        one.event(Started(SPECS[0]))
        one.done(result(SPECS[0]))
        one.end()
        running = shown(tmp_path)
        one.phase("fitting")
        fitting = shown(tmp_path)
        one.phase("verifying")
        verifying = shown(tmp_path)
        raise FitError(HOSTILE)
    failed = shown(tmp_path)
    assert "being fitted" in fitting.text and "being checked" in verifying.text
    assert all(refresh in page.attributes and "Failed" not in page.text for page in (running, fitting, verifying))
    assert '<script>alert("x")</script>' in failed.text and refresh not in failed.attributes
    assert all("; about" not in page.text for page in (fitting, failed))


def test_a_finished_or_failed_sweep_that_drew_no_page_leaves_the_report(tmp_path: Path) -> None:
    (tmp_path / REPORT).write_text("the law")
    for end in (None, FitError("no law")):
        with suppress(FitError), Beacon(tmp_path, Quiet()) as one:
            one.begin([], reused=6)
            one.phase("fitting")
            if end is not None:
                raise end
    assert (tmp_path / REPORT).read_text() == "the law"
    assert told(tmp_path)["error"] == "no law"


def test_the_page_of_a_sweep_without_runs_or_with_one() -> None:
    document = {**Beacon("nowhere", Quiet()).document(), "running": []}
    for results, circles in (([], 0), ([result(SPECS[0])], 1), ([failed(SPECS[0], "no")], 0)):
        page = Page(running_page(document, results, 5.0))
        assert page.open == [] and page.tags.count("circle") == circles


def test_every_dot_lies_inside_the_picture_and_lower_loss_is_lower(tmp_path: Path) -> None:
    results = [result(one) for one in SPECS]
    page = Page(running_page(Beacon(tmp_path, Quiet()).document(), results, 5.0))
    dots = [(float(a["cx"] or 0), float(a["cy"] or 0)) for a in page.attributes if a[""] == "circle"]
    assert len(dots) == len(SPECS)
    assert all(LEFT <= x <= WIDTH for x, _ in dots)
    by_size = sorted(set(dots))
    assert [y for _, y in by_size] == sorted(y for _, y in by_size)  # loss is 1/size here; y grows downwards


def test_a_long_sweep_lists_its_newest_runs() -> None:
    results = [result(spec(size)) for size in range(1, 502)]
    page = Page(running_page(Beacon("nowhere", Quiet()).document(), results, 5.0))
    assert page.tags.count("tr") == 201 and "The newest 200 of 501." in page.text
    assert page.tags.count("circle") == 501


@given(low=st.floats(-50, 50), span=st.floats(1e-3, 1e3))
def test_ticks_are_round_few_and_inside(low: float, span: float) -> None:
    axis = _Axis(low, low + span, 0, 100)
    ticks = axis.ticks()
    assert 3 <= len(ticks) <= 8
    assert all(-1e-6 <= axis(tick) <= 100 + 1e-6 for tick in ticks)  # percent of the axis; rounding
    step = ticks[1] - ticks[0]
    assert float(f"{step:.1e}") == pytest.approx(step, rel=1e-6)  # two digits: 1, 2, 2.5 or 5 of a decade
