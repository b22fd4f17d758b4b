"""A sweep's beacon: what a driver keeps in the study's folder for whoever looks at it from outside (`status.py`).

`progress.json` is replaced as a whole whenever a run has finished, and once a second while runs go on:

    {"format":1, "pid":1, "host":"...", "begun":UTC, "updated":UTC, "phase":"running", "error":null,
     "runs":{"done":3,"total":25,"reused":2}, "cost":{"done":FLOPs,"total":FLOPs}, "seconds_left":...,
     "running":[Running...], "messages":[...]}

`phase` is what the driver does, `error` why it gave up; one that was stopped or killed leaves null. `runs` and `cost`
count the part of the sweep that is being worked off: the probes, the plan, the sizes added at an edge, the
verification. What is finished stands in the journal.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from flops_fit.errors import FlopsFitError
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import Event, Retried
from flops_fit.runs.journal import Journal
from flops_fit.runs.pace import Pace, utc_now
from flops_fit.runs.watch import Watch, again

PROGRESS, REPORT = "progress.json", "report.html"
FORMAT = 1
WRITE_SECONDS = 1.0   # between two states of progress.json while no run finishes
PAGE_SECONDS = 5.0    # between two states of the page; it asks for a new one as often
PAGE_SHARE = 0.02     # of the driver's time, at most, goes into drawing the page
MESSAGES = 20         # last ones kept

Phase = Literal["running", "fitting", "verifying", "finished"]


class Beacon:
    """Passes everything on to `inner`, and keeps progress.json and, if wanted, a page of the running sweep in `folder`.

    To leave it without an error is to finish; to leave it by a FlopsFitError is to fail, and the reason is told.
    What cannot be written is told once and never disturbs the sweep.
    """

    def __init__(self, folder: str | os.PathLike[str], inner: Watch, page: bool = True) -> None:
        self.folder, self.inner, self.page = Path(folder), inner, page
        self._pace = Pace(())
        self._begun = utc_now()
        self._phase: Phase = "running"
        self._error: str | None = None
        self._messages: deque[str] = deque(maxlen=MESSAGES)
        self._results: dict[str, RunResult] = {}
        self._next_file = self._next_page = 0.0  # by the monotonic clock
        self._drawn = False
        self._told = False

    def __enter__(self) -> Self:
        self._write(at_once=True, draw=False)  # what an earlier driver told of its end holds no longer
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.phase("finished")
        elif isinstance(error, FlopsFitError):
            self._error = " ".join(str(error).split())
            self._write(at_once=True, draw=self._drawn)

    def phase(self, phase: Phase) -> None:
        """What the driver does from now on."""
        self._phase = phase
        self._write(at_once=True, draw=self._drawn and phase != "finished")  # the report has taken the page's place

    def say(self, text: str) -> None:
        self._messages.append(text)
        self.inner.say(text)

    def begin(self, specs: Sequence[RunSpec], reused: int) -> None:
        self._pace = Pace(specs, reused)
        if not self._results:
            self._results = _recorded(self.folder)
        self.inner.begin(specs, reused)
        self._write(at_once=True, draw=bool(specs))

    def event(self, event: Event) -> None:
        self._pace.event(event)
        if isinstance(event, Retried):
            self._messages.append(again(event))
        self.inner.event(event)
        self._write(at_once=False, draw=None)

    def done(self, result: RunResult) -> None:
        self._pace.done(result)
        self._results[result.spec.key] = result
        self.inner.done(result)
        self._write(at_once=True, draw=None)

    def end(self) -> None:
        self.inner.end()
        self._write(at_once=True, draw=self._pace.runs > 0)

    def document(self) -> dict[str, Any]:
        """The content of progress.json."""
        pace = self._pace
        return {
            "format": FORMAT, "pid": os.getpid(), "host": socket.gethostname(),
            "begun": self._begun, "updated": utc_now(), "phase": self._phase, "error": self._error,
            "runs": {"done": pace.finished, "total": pace.runs, "reused": pace.reused},
            "cost": {"done": pace.flops, "total": pace.total},
            "seconds_left": pace.seconds_left, "running": [run.to_dict() for run in pace.running],
            "messages": list(self._messages),
        }  # fmt: skip

    def _write(self, at_once: bool, draw: bool | None) -> None:
        """progress.json, at once or when it is time; the page, when `draw` says so or, None, when it is time."""
        now = time.monotonic()
        try:
            if at_once or now >= self._next_file:
                self._next_file = now + WRITE_SECONDS
                _replace(self.folder / PROGRESS, json.dumps(self.document(), allow_nan=False))
            if self.page and (draw or (draw is None and now >= self._next_page)):
                self._draw(now)
        except OSError as error:
            if not self._told:
                self._told = True
                cause = error.strerror or error
                self.inner.say(f"{self.folder}: the progress cannot be written ({cause}); the sweep goes on")

    def _draw(self, now: float) -> None:
        from flops_fit.runs.page import running_page  # loads scipy, which a status does not need

        self._next_page, self._drawn = now + PAGE_SECONDS, True  # also when it fails
        _replace(self.folder / REPORT, running_page(self.document(), list(self._results.values()), PAGE_SECONDS))
        self._next_page = max(self._next_page, now + (time.monotonic() - now) / PAGE_SHARE)


def _recorded(folder: Path) -> dict[str, RunResult]:
    try:
        return dict(Journal.read(folder).results)
    except FlopsFitError:  # the page then shows the runs of this driver only
        return {}


def _replace(path: Path, text: str) -> None:
    """A reader, and a kill, find the old content or the new, never half of one."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(text.encode("utf-8", "backslashreplace"))
    new.replace(path)
