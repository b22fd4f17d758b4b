"""Watching a sweep: runs done, current losses, time left. On stderr, so that stdout stays one JSON document."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol, TextIO

from rich import live
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import Event, Retried
from flops_fit.runs.pace import Pace, Running, clock

HEARTBEAT_SECONDS = 60.0  # between lines of a log while no run finishes
DRAWN_SECONDS = 0.25
SAID = 2            # messages that stay in sight when they have scrolled away
MANY_ROWS = 12      # a terminal with fewer has no room for them
WIDE = 72           # columns that the whole table takes; with fewer it is drawn without NARROW_WITHOUT
NARROW_WITHOUT = ("role", "N", "left")
LEAST_BAR = 12      # columns; a shorter bar says nothing
NAMED = 4           # running runs that a heartbeat line names


class Watch(Protocol):
    """What a sweep tells while it runs."""

    def say(self, text: str) -> None: ...
    def begin(self, specs: Sequence[RunSpec], reused: int) -> None: ...
    def event(self, event: Event) -> None: ...
    def done(self, result: RunResult) -> None: ...
    def end(self) -> None: ...


class Quiet:
    """Tells nothing."""

    def say(self, text: str) -> None: ...
    def begin(self, specs: Sequence[RunSpec], reused: int) -> None: ...
    def event(self, event: Event) -> None: ...
    def done(self, result: RunResult) -> None: ...
    def end(self) -> None: ...


class Lines:
    """One plain line for each finished run, for logs and pipes; a heartbeat while none finishes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._pace = Pace(())
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)
        self._last = time.monotonic()

    def begin(self, specs: Sequence[RunSpec], reused: int) -> None:
        self._pace = Pace(specs, reused)
        self.say(_headline(specs, reused))

    def event(self, event: Event) -> None:
        self._pace.event(event)
        if isinstance(event, Retried):
            self.say(again(event))
        elif time.monotonic() - self._last >= HEARTBEAT_SECONDS:
            self.say(f"running: {self._pace}{_named(self._pace.running)}")

    def done(self, result: RunResult) -> None:
        self._pace.done(result)
        left = clock(self._pace.seconds_left)
        self.say(f"[{self._pace.finished}/{self._pace.runs}] {outcome(result)}, {left} left")

    def end(self) -> None: ...


class Live:
    """A table of the running runs in the terminal; the lines of finished runs stand and scroll above it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._pace = Pace(())
        self._said: deque[str] = deque(maxlen=SAID)
        self._live: live.Live | None = None
        self._lock = threading.RLock()  # rich leaves rows behind when it prints and redraws at the same time

    def say(self, text: str) -> None:
        self._said.append(text)
        self._print(text)

    def begin(self, specs: Sequence[RunSpec], reused: int) -> None:
        self._pace = Pace(specs, reused)
        self._print(_headline(specs, reused))
        if specs:
            self._live = live.Live(
                get_renderable=self.drawn, console=self.console, auto_refresh=False, transient=True
            )
            self._live.start(refresh=True)
            threading.Thread(target=self._redraw, args=(self._live,), daemon=True).start()

    def event(self, event: Event) -> None:
        self._pace.event(event)
        if isinstance(event, Retried):
            self.say(again(event))

    def done(self, result: RunResult) -> None:
        self._pace.done(result)
        self._print(outcome(result))

    def end(self) -> None:
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None

    def _print(self, text: str) -> None:
        with self._lock:
            self.console.print(text, markup=False, soft_wrap=True)

    def _redraw(self, drawing: live.Live) -> None:
        """In a thread of its own: the clock goes on while no run has news."""
        while True:
            with self._lock:
                if self._live is not drawing:
                    return
                drawing.refresh()
            time.sleep(DRAWN_SECONDS)

    def drawn(self) -> RenderableType:
        """What stands below the finished runs now; never more lines than the terminal has, less one."""
        width, height = self.console.size
        said = list(self._said) if height >= MANY_ROWS else []
        running = self._pace.running
        room = max(height - len(said) - 3, 1)  # the heading, the last line, and one for the cursor
        if len(running) > room:
            room = max(room - 1, 1)
        rows = [run.cells() for run in running[:room]]
        more = [_line(f"and {len(running) - room} more")] if len(running) > room and height > 4 else []
        table = [_table(rows, width)] if rows else []
        return Group(*table, *more, *(_line(f"said: {text}") for text in said), self._overall(width))

    def _overall(self, width: int) -> RenderableType:
        text = str(self._pace)
        if width - len(text) - 1 < LEAST_BAR:
            return _line(text)
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_row(text, ProgressBar(total=self._pace.total, completed=self._pace.flops))
        return grid


def default_watch() -> Watch:
    """A table when stderr is a terminal, plain lines otherwise."""
    return Live() if sys.stderr.isatty() else Lines()


def outcome(result: RunResult) -> str:
    """One finished run in one line."""
    spec = result.spec
    head = f"{spec.role} {spec.budget:.3g} FLOPs, size {spec.size}, N {spec.params:,}, D {spec.tokens:,}"
    tail = f"loss {result.loss:.4f}" if result.loss is not None else f"{result.status}: {result.reason}"
    synthetic = " SYNTHETIC" if result.synthetic else ""
    return f"{head}: {tail}{synthetic} ({result.seconds:.1f} s)"


def again(event: Retried) -> str:
    """That a run is begun anew, and why, in one line."""
    spec = event.spec
    return f"begun again: {spec.role} {spec.budget:.3g} FLOPs, size {spec.size}: {' '.join(event.reason.split())}"


def _headline(specs: Sequence[RunSpec], reused: int) -> str:
    known = f", {reused} already in the journal" if reused else ""
    return f"{len(specs)} run{'' if len(specs) == 1 else 's'}, {sum(spec.cost for spec in specs):.3g} FLOPs{known}"


def _named(running: Sequence[Running]) -> str:
    told = [f"; size {run.size} at {run.budget:.3g} FLOPs {run.share:.0%} loss {run.cells()['loss']}"
            for run in running[:NAMED]]  # fmt: skip
    return "".join(told) + (f"; and {len(running) - NAMED} more" if len(running) > NAMED else "")


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _table(rows: Sequence[dict[str, str]], width: int) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("role", "budget", "size", "N", "step", "loss", "done", "left"):
        if width >= WIDE or name not in NARROW_WITHOUT:
            table.add_column(name, justify="left" if name == "role" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[str(column.header)] for column in table.columns))
    return table
