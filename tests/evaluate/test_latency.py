"""Timings in turns: who is called when and how often, and what is told of the times, on a clock that the test holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops_fit.errors import InputError
from flops_fit.evaluate import latency
from flops_fit.evaluate.latency import TOLD, Timing, latencies, needed

ROUNDING = 1e-9  # of float64, relative
SLEEP = 0.002  # seconds; sleep returns no sooner (PEP 475)


class Clock:
    """Time goes on where the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 10**18  # nanoseconds; any
        monkeypatch.setattr(latency, "time", self)

    def perf_counter_ns(self) -> int:
        return self.now

    def perf_counter(self) -> float:
        return self.now / 1e9

    def takes(self, *nanoseconds: int) -> Callable[[], None]:
        """A call that takes so long, the last of them again and again."""
        left = list(nanoseconds)

        def call() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def timing(*nanoseconds: int) -> Timing:
    return Timing(nanoseconds, warmup=1)


# --- rounds ----------------------------------------------------------------------------------------------------------


@given(calls=st.integers(1, 5), runs=st.integers(2, 9), warmup=st.integers(1, 4))
def test_each_is_called_once_a_round_and_another_one_first(calls: int, runs: int, warmup: int) -> None:
    names, said = [f"call {number}" for number in range(calls)], list[str]()
    found = latencies({name: (lambda name=name: said.append(name)) for name in names}, runs, warmup,
                      ready=lambda: said.append("ready"))  # fmt: skip
    assert said.pop(warmup * calls) == "ready" and "ready" not in said
    assert len(said) == (runs + warmup) * calls
    rounds = [said[start : start + calls] for start in range(0, len(said), calls)]
    assert all(sorted(one) == names for one in rounds)
    for part in (rounds[:warmup], rounds[warmup:]):  # each in its turn: no call has the same one before it for ever
        assert [one[0] for one in part] == [names[number % calls] for number in range(len(part))]
        assert all(after == before[1:] + before[:1] for before, after in pairwise(part))
    assert {name: (one.runs, one.warmup) for name, one in found.items()} == dict.fromkeys(names, (runs, warmup))


def test_what_is_told_is_the_time_of_the_runs_and_not_of_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = latencies({"a": clock.takes(900, 800, 5, 7, 6), "b": clock.takes(10)}, runs=3, warmup=2,
                      ready=clock.takes(10**6))  # fmt: skip
    assert found == {"a": Timing((5, 7, 6), warmup=2), "b": Timing((10, 10, 10), warmup=2)}


@pytest.mark.parametrize(("seconds", "runs", "warmup"), [(0.0, 2, 1), (2.5, 3, 3), (4.0, 4, 4), (1e9, 50, 20)])
def test_no_round_begins_when_time_is_up(
    seconds: float, runs: int, warmup: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of one second; two runs and one warm-up there are always."""
    clock = Clock(monkeypatch)
    half = 500_000_000
    found = latencies({"a": clock.takes(half), "b": clock.takes(half)}, 50, 20, seconds)
    assert {(one.runs, one.warmup) for one in found.values()} == {(runs, warmup)}


def test_the_clock_is_real() -> None:
    found = latencies({"sleeps": lambda: time.sleep(SLEEP), "does nothing": lambda: None}, runs=3, warmup=1)
    assert min(found["sleeps"].nanoseconds) >= SLEEP * 1e9


@pytest.mark.parametrize(("how", "said"), [
    ({"runs": 1}, "runs: got 1; allowed is a whole number from 2 on"),
    ({"runs": -3}, "runs: got -3"),
    ({"warmup": 0}, "warmup: got 0; allowed is a whole number from 1 on"),
    ({"calls": {}}, "calls: got none; give at least one"),
])  # fmt: skip
def test_what_cannot_be_timed(how: dict[str, object], said: str) -> None:
    called = list[int]()
    with pytest.raises(InputError, match=said):
        latencies(**{"calls": {"a": lambda: called.append(1)}, **how})  # type: ignore[arg-type]
    assert not called


def test_an_error_of_a_call_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        latencies({"a": lambda: 1 // 0})


# --- what is told ----------------------------------------------------------------------------------------------------

MANY = st.lists(st.integers(1, 10**12), min_size=100, max_size=140)


@given(MANY)
def test_quantiles_are_in_order_and_those_of_the_standard_library(nanoseconds: list[int]) -> None:
    one = timing(*nanoseconds)
    p50, p95, p99 = (one.quantile(share) or 0 for share in TOLD)
    assert min(nanoseconds) / 1e6 <= p50 <= p95 <= p99 <= max(nanoseconds) / 1e6
    theirs = statistics.quantiles(nanoseconds, n=100, method="inclusive")  # definition 7 too
    assert [1e6 * p50, 1e6 * p95, 1e6 * p99] == pytest.approx([theirs[49], theirs[94], theirs[98]], rel=ROUNDING)
    assert 1e6 * (one.spread or 0) == pytest.approx(theirs[74] - theirs[24], rel=ROUNDING, abs=ROUNDING * theirs[74])


@pytest.mark.parametrize(("share", "runs"), [(0.5, 2), (0.75, 4), (0.9, 10), (0.95, 20), (0.99, 100), (0.999, 1000)])
def test_a_quantile_is_told_where_a_run_is_expected_beyond_it(share: float, runs: int) -> None:
    assert needed(share) == runs
    assert timing(*range(1, runs)).quantile(share) is None
    assert timing(*range(1, runs + 1)).quantile(share) is not None


def test_what_is_absent_is_no_number() -> None:
    few = timing(3_000_000, 5_000_000)
    assert few.to_json() == {"p50_ms": 4.0, "mean_ms": 4.0, "runs": 2, "warmup": 1}
    assert timing(*[1] * 19).to_json().keys() == few.to_json().keys() | {"spread_ms"}
    assert timing(*[1] * 100).to_json().keys() == few.to_json().keys() | {"spread_ms", "p95_ms", "p99_ms"}


def test_throughput_counts_slow_runs() -> None:
    """Three runs in 0.1 s each and one in 0.7 s: 4 runs a second, however short the median is."""
    one = timing(10**8, 10**8, 10**8, 7 * 10**8)
    assert one.per_second(1) == pytest.approx(4, rel=ROUNDING)
    assert one.per_second(8) == pytest.approx(32, rel=ROUNDING)
    assert one.per_second(1) == pytest.approx(1000 / one.mean, rel=ROUNDING)


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=30))
def test_a_drift_of_the_machine_is_in_both_and_cancels(drift: list[int]) -> None:
    slow, fast = timing(*(6 * one for one in drift)), timing(*(2 * one for one in drift))
    assert fast.times_faster(slow) == pytest.approx(3, rel=ROUNDING)
    assert slow.times_faster(fast) == pytest.approx(1 / 3, rel=ROUNDING)


def test_only_the_same_rounds_are_compared() -> None:
    with pytest.raises(InputError, match="than: got 3 rounds beside 2"):
        timing(1, 1).times_faster(timing(1, 1, 1))
