"""How long calls take: in turns, so that what the machine does meanwhile hits all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flops_fit.errors import InputError

Call = Callable[[], object]

TOLD = (0.5, 0.95, 0.99)  # quantiles
QUARTERS = (0.25, 0.75)
FEWEST = 2  # runs
MS = 1e6  # nanoseconds


@dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds of each run of a call, in the order of the rounds; those of the warm-up are not among them."""

    nanoseconds: tuple[int, ...]
    warmup: int  # runs before them

    @property
    def runs(self) -> int:
        return len(self.nanoseconds)

    def quantile(self, share: float) -> float | None:
        """Milliseconds that `share` of the runs take at most (Hyndman and Fan 1996, definition 7, numpy's).

        None where there are too few runs (`needed`): not one of them is expected beyond it.
        """
        if self.runs < needed(share):
            return None
        return float(np.quantile(self.nanoseconds, share)) / MS

    @property
    def mean(self) -> float:
        """Milliseconds."""
        return float(np.mean(self.nanoseconds)) / MS

    @property
    def spread(self) -> float | None:
        """Milliseconds between the quartiles; None of fewer than 4 runs."""
        low, high = (float(one) / MS for one in np.quantile(self.nanoseconds, QUARTERS))
        return high - low if self.runs >= needed(QUARTERS[1]) else None

    def per_second(self, items: int) -> float:
        """Items, so many in a run: of all runs together over their whole time, so that slow runs count."""
        return items * self.runs / (sum(self.nanoseconds) / 1e9)

    def times_faster(self, than: Timing) -> float:
        """The median over rounds of how many times as long `than` took in the same round.

        Raises:
            InputError: timings of other rounds.
        """
        if than.runs != self.runs:
            raise InputError(f"than: got {than.runs} rounds beside {self.runs}; give a timing of the same `latencies`")
        return float(np.median(np.divide(than.nanoseconds, self.nanoseconds)))

    def to_json(self) -> dict[str, Any]:
        """Without what the runs are too few for."""
        told = {f"p{100 * share:.0f}_ms": self.quantile(share) for share in TOLD}
        told |= {"mean_ms": self.mean, "spread_ms": self.spread}
        return {name: value for name, value in told.items() if value is not None} | {
            "runs": self.runs, "warmup": self.warmup,
        }  # fmt: skip


def needed(share: float) -> int:
    """Runs from which the quantile is told: so many that one of them is expected beyond it, 1 / (1 - share)."""
    return max(FEWEST, math.ceil(round(1 / (1 - share), 6)))  # 1 - .99 is a little more than .01


def latencies(
    calls: Mapping[str, Call],
    runs: int = 100,  # of each
    warmup: int = 3,  # of each, before the first that counts
    seconds: float = math.inf,  # no round begins later than that, in warm-up and in runs; but 1 and 2 there are
    ready: Callable[[], object] | None = None,  # called once, between warm-up and runs
) -> dict[str, Timing]:
    """Every call once in each round, each round begun by another one. Wall-clock time, by the finest clock.

    Args:
        calls: by name; each has done its work when it returns, which on a GPU needs a synchronisation at its end.

    Raises:
        InputError: no call, or too few runs.
    """
    check_rounds(runs, warmup)
    if not calls:
        raise InputError("calls: got none; give at least one")
    warm = sum(1 for number in _rounds(warmup, 1, seconds) if _round(calls, number))
    if ready is not None:
        ready()
    rounds = [_round(calls, number) for number in _rounds(runs, FEWEST, seconds)]
    return {name: Timing(tuple(one[name] for one in rounds), warm) for name in calls}


def check_rounds(runs: int, warmup: int) -> None:
    """Raises InputError for fewer than 2 runs, or no warm-up."""
    if runs < FEWEST:
        raise InputError(f"runs: got {runs}; allowed is a whole number from {FEWEST} on: one run has no spread")
    if warmup < 1:
        raise InputError(f"warmup: got {warmup}; allowed is a whole number from 1 on: a first call is like no other")


def _rounds(most: int, fewest: int, seconds: float) -> Iterator[int]:
    begun = time.perf_counter()
    for number in range(most):
        if number >= fewest and time.perf_counter() - begun >= seconds:
            return
        yield number


def _round(calls: Mapping[str, Call], number: int) -> dict[str, int]:
    """Nanoseconds of each call, the first of them another one in every round: what one leaves in the caches is now and
    then the next one's."""
    names, taken = list(calls), dict[str, int]()
    first = number % len(names)
    for name in names[first:] + names[:first]:
        begun = time.perf_counter_ns()
        calls[name]()
        taken[name] = time.perf_counter_ns() - begun
    return taken
