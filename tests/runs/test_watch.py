"""What a person sees while a sweep runs."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from contracts.executor import result, spec
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs import pace
from flops_fit.runs.executors import Progressed, Retried, Started
from flops_fit.runs.pace import Pace
from flops_fit.runs.watch import Lines, Live

TWO = [spec(1), spec(3)]  # of 10 steps each, the second of three times the FLOPs
MANY = [spec(size) for size in range(1, 31)]
BRANCH = replace(spec(2), warmup_steps=2, shared_steps=6)  # the first 6 of its 10 steps are done by another run
EVENTS = 2000  # many times what the drawing thread needs to come in between


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 50.0
        monkeypatch.setattr(pace.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def failed(one: RunSpec, reason: str) -> RunResult:
    return RunResult(spec=one, status="failed", loss=None, reason=reason)


def terminal(width: int = 80, height: int = 24) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, color_system=None, width=width, height=height,
                   highlight=False), stream  # fmt: skip


def screen(written: str) -> list[str]:
    """The lines that a terminal shows after this was written to it."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\??\d*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif up := re.fullmatch(r"\x1b\[(\d+)A", part):
            row -= int(up[1])
        elif part != "\r" and not part.startswith("\x1b"):
            lines[row] = part
    return [line for line in lines if line]


# --- pace ----------------------------------------------------------------------------------------------------------


def test_pace_counts_flops_and_extrapolates_the_time(clock: Clock) -> None:
    far = Pace(TWO)
    assert far.seconds_left is None
    far.event(Started(TWO[1]))
    clock.now = 60.0
    far.event(Progressed(TWO[1], 5, 2.0))
    assert far.flops == TWO[1].flops / 2
    assert far.seconds_left == pytest.approx(10.0 * (4 / 1.5 - 1))
    [run] = far.running
    assert (run.key, run.step, run.steps, run.loss, run.share) == (TWO[1].key, 5, 10, 2.0, 0.5)
    assert run.seconds_left == pytest.approx(10.0)
    far.done(result(TWO[1]))
    assert far.flops == TWO[1].flops and far.finished == 1 and far.running == ()
    far.done(result(TWO[0]))
    assert far.seconds_left == 0.0


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (4, 0.0), (6, 0.0), (7, 0.25), (10, 1.0)])
def test_a_branch_counts_from_where_another_run_has_left_off(step: int, share: float) -> None:
    far = Pace([BRANCH, TWO[0]])
    far.event(Started(BRANCH))
    far.event(Progressed(BRANCH, step, 2.0))
    assert far.total == BRANCH.flops * 4 / 10 + TWO[0].flops
    assert far.running[0].share == share
    assert far.flops == share * BRANCH.cost
    far.done(result(BRANCH))
    assert far.flops == BRANCH.cost


def test_a_run_that_is_begun_again_has_done_nothing_yet(clock: Clock) -> None:
    far = Pace(TWO)
    far.event(Started(TWO[0]))
    far.event(Progressed(TWO[0], 9, 2.0))
    clock.now += 100.0
    far.event(Retried(TWO[0], "worker died"))
    [run] = far.running
    assert (run.step, run.share, run.loss, run.seconds_left) == (0, 0.0, None, None)
    clock.now += 3.0
    far.event(Progressed(TWO[0], 5, 2.0))
    assert far.running[0].seconds_left == pytest.approx(3.0)  # by the pace of this try


def test_what_an_earlier_sitting_did_is_no_pace_of_this_one(clock: Clock) -> None:
    far = Pace(TWO)
    far.event(Started(TWO[0]))
    far.event(Progressed(TWO[0], 6, float("nan")))  # goes on from a checkpoint
    assert far.seconds_left is None and far.running[0].seconds_left is None
    clock.now += 10.0
    far.event(Progressed(TWO[0], 8, 2.0))
    assert far.running[0].seconds_left == pytest.approx(10.0)  # two steps took as long as two more will
    left = far.total - 0.8 * TWO[0].cost
    assert far.seconds_left == pytest.approx(10.0 * left / (0.2 * TWO[0].cost))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_told_as_none(loss: float) -> None:
    far = Pace(TWO)
    far.event(Started(TWO[0]))
    far.event(Progressed(TWO[0], 5, loss))
    assert far.running[0].loss is None


# --- lines ---------------------------------------------------------------------------------------------------------


def test_lines_tell_each_run_and_what_came_from_the_journal() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.begin(TWO, reused=3)
    lines.event(Started(TWO[0]))
    lines.done(result(TWO[0]))
    lines.event(Retried(TWO[1], "worker died:\nsignal 9"))
    lines.done(failed(TWO[1], "out of luck"))
    first, second, third, fourth = stream.getvalue().splitlines()
    assert first.startswith("2 runs, ") and first.endswith("3 already in the journal")
    assert second.startswith("[1/2] sweep ") and "loss" in second and second.endswith(" left")
    assert third == "begun again: sweep 1e+06 FLOPs, size 3: worker died: signal 9"
    assert "[2/2]" in fourth and "failed: out of luck" in fourth


def test_lines_give_a_sign_of_life_once_a_minute_while_nothing_finishes(clock: Clock) -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.begin(MANY, reused=0)
    for one in MANY:
        lines.event(Started(one))
    for second in range(1, 181):
        clock.now += 1.0
        lines.event(Progressed(MANY[0], 1, 2.5))
        if second == 90:
            lines.done(result(MANY[1]))  # a line too: the next sign comes a minute later
    shown = stream.getvalue().splitlines()
    assert [line.split()[0] for line in shown] == ["30", "running:", "[1/30]", "running:"]
    assert "0/30 runs" in shown[1] and "size 1 at 1e+06 FLOPs 10% loss 2.5000" in shown[1]
    assert shown[1].endswith("and 26 more")


# --- a terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [20, 50, 80, 200])
@pytest.mark.parametrize("height", [4, 5, 8, 24, 60])
@pytest.mark.parametrize("running", [0, 1, 2, 20, 30])
def test_what_is_drawn_fits_any_terminal(width: int, height: int, running: int) -> None:
    console, stream = terminal(width, height)
    live = Live(Console(file=io.StringIO()))
    live.console = console
    live._pace = Pace(MANY, reused=7)
    for text in ("first", "second " * 30, "third"):
        live._said.append(text)
    for one in MANY[:running]:
        live._pace.event(Started(one))
    console.print(live.drawn())
    lines = stream.getvalue().splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert lines[-1].startswith("0/30 runs (7 reused)"[: width - 1])  # how far all is, whatever else has no room
    told = sum(int(line.split()[1]) for line in lines if line.startswith("and "))
    shown = sum(bool(re.search(r"\d/\d+ ", line)) for line in lines[:-1])
    assert shown + told == running or height == 4 or width == 20  # all are shown or counted
    assert shown >= min(running, 1) or width == 20


def test_a_whole_row_is_seen_in_80_columns() -> None:
    console, stream = terminal(80)
    live = Live(console)
    big = replace(spec(4096), params=12_345_678_901, steps=123_456, budget=1.25e21)
    live._pace = Pace([big])
    live._pace.event(Started(big))
    live._pace.event(Progressed(big, 61_728, 2.34567))
    console.print(live.drawn())
    row = stream.getvalue().splitlines()[1].split()
    assert row[:7] == ["sweep", "1.25e+21", "4096", "12,345,678,901", "61728/123456", "2.3457", "50%"]


def test_a_finished_sweep_leaves_its_lines_and_nothing_else() -> None:
    """Drawn by the thread that draws for users, while runs begin, go on and end."""
    console, stream = terminal(160, 12)
    live = Live(console)
    live.begin(MANY, reused=2)
    for one in MANY:
        live.event(Started(one))
        for k in range(EVENTS // len(MANY)):
            live.event(Progressed(one, k % 10, 1.25))
    for line in ("0/30 runs (2 reused)", "size", "and 22 more"):
        with live._lock:  # it draws four times a second by itself
            live._live.refresh()  # type: ignore[union-attr]
        assert any(line in shown for shown in screen(stream.getvalue()))
    for one in MANY[:-2]:
        live.done(result(one))
    live.event(Retried(MANY[-2], "worker died"))
    live.done(failed(MANY[-2], "twice"))
    live.done(result(MANY[-1]))
    live.end()
    first, *rest = screen(stream.getvalue())
    assert first.startswith("30 runs, ")
    again, last = rest.pop(28), rest.pop(28)
    assert again.startswith("begun again: ") and "failed: twice" in last
    assert len(rest) == 29 and all(": loss " in line for line in rest)


def test_nothing_to_run_draws_nothing() -> None:
    console, stream = terminal()
    live = Live(console)
    live.begin([], reused=5)
    live.end()
    assert screen(stream.getvalue()) == ["0 runs, 0 FLOPs, 5 already in the journal"]
