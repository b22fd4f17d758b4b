"""The stated rules of training, and the search for the learning rate's coefficient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flops_fit.errors import FitError, InputError
from flops_fit.scaling.rules import (
    LR_FACTORS,
    LR_MOST_EXTENSIONS,
    LR_START,
    BatchRule,
    LrRule,
    best_factor,
    search_factor,
)

ROUNDING = 1e-9  # float64: differences of losses near 2, divided by their size


@settings(deadline=None)
@given(st.floats(1e3, 1e9), st.floats(1e3, 1e12))
def test_the_exponents_of_the_learning_rate(params: float, tokens: float) -> None:
    rule = LrRule.of("auto")
    assert rule(2 * params, tokens) / rule(params, tokens) == pytest.approx(2**-0.713, rel=ROUNDING)
    assert rule(params, 2 * tokens) / rule(params, tokens) == pytest.approx(2**0.307, rel=ROUNDING)
    assert rule.coefficient == LR_START


@settings(deadline=None)
@given(st.floats(1e-6, 10.0), st.floats(1e3, 1e9), st.floats(1e3, 1e12))
def test_a_number_is_the_same_rate_for_every_run(lr: float, params: float, tokens: float) -> None:
    assert LrRule.of(lr)(params, tokens) == lr


@pytest.mark.parametrize("wrong", ["best", 0, -1.0, math.nan, math.inf, True, None, [0.1]])
def test_learning_rates_that_cannot_be(wrong: object) -> None:
    with pytest.raises(InputError, match='lr: got .*; allowed are "auto", a positive number or an LrRule'):
        LrRule.of(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["big", 0, -4, 2.5, True, None])
def test_batch_sizes_that_cannot_be(wrong: object) -> None:
    with pytest.raises(InputError, match='batch_size: got .*; allowed are "auto"'):
        BatchRule.of(wrong)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.floats(1.0, 1e13), st.integers(1, 4096))
def test_the_batch_is_the_rule_rounded_to_whole_samples(tokens: float, per_sample: int) -> None:
    batch = BatchRule.of("auto")(tokens, per_sample)
    exact = 0.35 * tokens**0.571 / per_sample
    assert batch >= 1
    assert batch == 1 or abs(batch - exact) <= 0.5 * (1 + ROUNDING)
    assert BatchRule.of(7)(tokens, per_sample) == 7


@settings(deadline=None)
@given(st.floats(1e3, 1e6), st.floats(1.5, 1e3), st.floats(0.05, 20.0), st.floats(1e3, 1e12))
def test_a_bent_rule_goes_through_both_points_and_keeps_d(
    params: float, apart: float, factor: float, tokens: float
) -> None:
    rule = LrRule(0.3)
    bent = rule.bent(params, apart * params, factor)
    assert bent(params, tokens) == pytest.approx(rule(params, tokens), rel=ROUNDING)
    assert bent(apart * params, tokens) == pytest.approx(factor * rule(apart * params, tokens), rel=ROUNDING)
    assert bent.d_exponent == rule.d_exponent


def test_a_batch_to_be_measured_starts_from_the_rule() -> None:
    assert BatchRule.of("measure") == BatchRule.of("auto") == BatchRule()


def test_rules_pass_through_and_go_to_json_and_back() -> None:
    for rule in (LrRule(0.1, -0.5, 0.2), BatchRule(1.0, 0.4), BatchRule(samples=3)):
        assert type(rule).of(rule) is rule  # type: ignore[arg-type]
        assert type(rule).from_dict(rule.to_dict()) == rule


# --- the best factor -----------------------------------------------------------------------------------------------


def parabola(best: float, floor: float = 2.0, curvature: float = 0.1) -> Callable[[float], float]:
    return lambda factor: floor + curvature * math.log(factor / best) ** 2


@settings(deadline=None)
@given(st.floats(0.36, 2.8), st.floats(0.01, 3.0))
def test_the_vertex_of_a_parabola_is_exact(best: float, curvature: float) -> None:
    loss = parabola(best, curvature=curvature)
    found = best_factor({factor: loss(factor) for factor in LR_FACTORS})
    assert math.log(found) == pytest.approx(math.log(best), abs=1e-6)  # of losses rounded at 1e-16 of 2


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10.0), min_size=5, max_size=5))
def test_the_answer_lies_between_the_neighbours_of_the_best(losses: list[float]) -> None:
    found = best_factor(dict(zip(LR_FACTORS, losses, strict=True)))
    best = losses.index(min(losses))
    assert LR_FACTORS[max(best - 1, 0)] * (1 - ROUNDING) <= found <= LR_FACTORS[min(best + 1, 4)] * (1 + ROUNDING)


def test_equal_losses_and_a_failed_neighbour_leave_the_best_that_was_run() -> None:
    assert best_factor({1.0: 2.0, 2.0: 2.0, 4.0: 2.0}) == 1.0
    assert best_factor({1.0: 3.0, 2.0: 2.0, 4.0: math.inf}) == 2.0


def search(
    loss: Callable[[float], float | None], *limits: Any
) -> tuple[float, list[float]]:
    """(factor found, factors tried)."""
    tried: list[float] = []

    def losses_of(factors: Sequence[float]) -> list[float | None]:
        tried.extend(factors)
        return [loss(factor) for factor in factors]

    return search_factor(losses_of, *limits), tried


@settings(deadline=None)
@given(st.floats(1e-3, 1e3))
def test_the_search_goes_on_beyond_an_edge_and_is_bounded(best: float) -> None:
    assume(all(abs(math.log2(best) - (k + 0.5)) > 0.01 for k in range(-12, 12)))  # which of two equals is best: a toss
    found, tried = search(parabola(best))
    assert len(tried) == len(set(tried)) <= len(LR_FACTORS) + LR_MOST_EXTENSIONS
    nearest = 2.0 ** round(math.log2(best))
    beyond = max(math.log2(nearest / max(LR_FACTORS)), math.log2(min(LR_FACTORS) / nearest)) + 1
    assert len(tried) - len(LR_FACTORS) == min(max(0, beyond), LR_MOST_EXTENSIONS)
    if beyond <= LR_MOST_EXTENSIONS - 1:
        assert math.log(found) == pytest.approx(math.log(best), abs=1e-6)


def test_a_loss_that_falls_without_end_ends_the_search_at_its_last_factor() -> None:
    assert search(lambda factor: 1 / factor)[0] == max(LR_FACTORS) * 2**LR_MOST_EXTENSIONS
    assert search(lambda factor: factor)[0] == min(LR_FACTORS) / 2**LR_MOST_EXTENSIONS


def test_the_search_begins_with_the_factors_given_and_ends_after_the_extensions_given() -> None:
    assert search(parabola(1.3), (0.5, 1.0, 2.0), 2)[1] == [0.5, 1.0, 2.0]
    assert search(parabola(100.0), (0.5, 1.0, 2.0), 2) == (8.0, [0.5, 1.0, 2.0, 4.0, 8.0])


def test_failed_runs_are_never_the_best() -> None:
    found, _ = search(lambda factor: None if factor > 0.5 else factor**2 - factor)  # falls up to 0.5, then fails
    assert 0.25 <= found <= 1.0
    with pytest.raises(FitError, match="no learning rate tried led to a finite loss"):
        search(lambda factor: None)
