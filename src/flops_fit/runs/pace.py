"""How far a set of runs is, and how long the rest will take."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from flops_fit.records import Record, RunResult, RunSpec
from flops_fit.runs.executors import Event, Progressed


@dataclass(frozen=True, slots=True, kw_only=True)
class Running(Record):
    """A run that is being carried out."""

    key: str
    role: str
    budget: float                # FLOPs
    size: int
    params: int
    step: int
    steps: int
    loss: float | None           # training loss; None: not told yet, or not a number
    share: float                 # done, of what this run costs
    since: str                   # when it was begun, UTC
    seconds_left: float | None   # None until it has a pace

    def cells(self) -> dict[str, str]:
        """The row of a table, by column."""
        return {
            "role": self.role, "budget": f"{self.budget:.3g}", "size": str(self.size), "N": f"{self.params:,}",
            "step": f"{self.step}/{self.steps}", "loss": "-" if self.loss is None else f"{self.loss:.4f}",
            "done": f"{self.share:.0%}", "left": clock(self.seconds_left),
        }  # fmt: skip


@dataclass(slots=True)
class _Place:
    """Where a run is."""

    spec: RunSpec
    begun: float  # by the monotonic clock
    since: str
    step: int = 0
    loss: float = math.nan
    resumed: int = 0  # the step that it goes on from: what an earlier sitting did says nothing of this one's pace

    @property
    def share(self) -> float:
        return self._share(self.step)

    @property
    def before(self) -> float:
        """The share that was done already."""
        return self._share(self.resumed)

    def _share(self, step: int) -> float:
        own = max(self.spec.steps - self.spec.shared_steps, 1)
        return min(max(step - self.spec.shared_steps, 0) / own, 1.0)


class Pace:
    """How far a set of runs is, counted in FLOPs that each adds to the sweep, and how long the rest will take."""

    def __init__(self, specs: Sequence[RunSpec], reused: int = 0) -> None:
        self.total = sum(spec.cost for spec in specs)
        self.runs, self.finished, self.reused = len(specs), 0, reused
        self._finished_flops = self._earlier_flops = 0.0
        self._places: dict[str, _Place] = {}
        self._begun = time.monotonic()
        self._start: float | None = None

    def event(self, event: Event) -> None:
        key = event.spec.key
        if not isinstance(event, Progressed):  # begun, or begun again
            self._start = self._start or time.monotonic()
            self._places[key] = _Place(event.spec, time.monotonic(), utc_now())
        elif key in self._places:
            place = self._places[key]
            place.step, place.loss = event.step, event.loss
            if math.isnan(event.loss):  # no loss yet: it goes on from here
                place.resumed = event.step
                self._earlier_flops += place.spec.cost * place.before

    def done(self, result: RunResult) -> None:
        self.finished += 1
        self._places.pop(result.spec.key, None)
        self._finished_flops += result.spec.cost

    @property
    def flops(self) -> float:
        # list(): another thread may draw this while a run begins or ends
        return self._finished_flops + sum(place.spec.cost * place.share for place in list(self._places.values()))

    @property
    def seconds_left(self) -> float | None:
        """None until there is a pace."""
        here = self.flops - self._earlier_flops
        if self._start is None or here <= 0:
            return None
        return (time.monotonic() - self._start) * (self.total - self.flops) / here

    @property
    def running(self) -> tuple[Running, ...]:
        return tuple(self._told(place) for place in list(self._places.values()))

    @staticmethod
    def _told(place: _Place) -> Running:
        spec, share = place.spec, place.share
        here = share - place.before
        left = (time.monotonic() - place.begun) * (1 - share) / here if here > 0 else None
        return Running(
            key=spec.key, role=spec.role, budget=spec.budget, size=spec.size, params=spec.params, step=place.step,
            steps=spec.steps, loss=place.loss if math.isfinite(place.loss) else None, share=share, since=place.since,
            seconds_left=left,
        )  # fmt: skip

    def __str__(self) -> str:
        """In one line: runs, share of the FLOPs, time so far and time left."""
        known = f" ({self.reused} reused)" if self.reused else ""
        share = self.flops / self.total if self.total else 1.0
        return (f"{self.finished}/{self.runs} runs{known}, {share:.0%} of {self.total:.3g} FLOPs, "
                f"{clock(time.monotonic() - self._begun)}, {clock(self.seconds_left)} left")  # fmt: skip


def clock(seconds: float | None) -> str:
    """75 -> '1:15'; None -> '?'."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def utc_now() -> str:
    """2026-01-31T12:00:00+00:00"""
    return datetime.now(UTC).isoformat(timespec="seconds")
