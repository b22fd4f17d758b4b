"""Laws of the learning-rate schedule, for every length of run."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from flops_fit.train.schedule import wsd

ROUNDING = 1e-12  # sums and quotients of a few hundred float64 numbers near 1
steps_of = st.integers(1, 400)
warmups = st.floats(0.0, 0.1)
shares = st.floats(0.0, 0.9)


def curve(steps: int, warmup: float, decay: float) -> list[float]:
    return [wsd(step, steps, warmup * steps, decay * steps) for step in range(steps)]


@settings(deadline=None)
@given(steps_of, warmups, shares)
def test_between_zero_and_one_and_zero_only_after_the_last_step(steps: int, warmup: float, decay: float) -> None:
    factors = curve(steps, warmup, decay)
    assert all(0 < factor <= 1 for factor in factors)
    assert wsd(steps, steps, warmup * steps, decay * steps) == 0


@settings(deadline=None)
@given(steps_of, warmups, shares)
def test_rises_then_falls(steps: int, warmup: float, decay: float) -> None:
    factors = curve(steps, warmup, decay)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


@settings(deadline=None)
@given(steps_of, warmups, shares)
def test_warmup_and_decay_take_their_share_and_no_more(steps: int, warmup: float, decay: float) -> None:
    factors = curve(steps, warmup, decay)
    assert all(factor == 1 for step, factor in enumerate(factors)
               if step + 1 >= max(1.0, warmup * steps) and steps - step >= max(1.0, decay * steps))  # fmt: skip
    assert sum(factor < 1 for factor in factors) <= math.ceil(warmup * steps) + math.ceil(decay * steps)


@settings(deadline=None)
@given(st.integers(1, 40))
def test_the_sum_is_that_of_the_trapezoid(tens: int) -> None:
    """Whole shares: warmup w steps sum to (w+1)/2, decay d steps to (d+1)/2, the rest to 1 each."""
    steps, warm, fall = 10 * tens, tens, 5 * tens
    expected = (warm + 1) / 2 + (fall + 1) / 2 + (steps - warm - fall)
    assert math.isclose(math.fsum(curve(steps, 0.1, 0.5)), expected, rel_tol=ROUNDING)


def test_without_warmup_and_decay_it_is_constant() -> None:
    assert curve(10, 0.0, 0.0) == [1.0] * 10
