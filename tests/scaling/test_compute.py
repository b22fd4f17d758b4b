"""Measured compute, and the size that spends it best."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops_fit.errors import InputError
from flops_fit.scaling.compute import FlopsPerToken, optima, optimum, say_flops
from flops_fit.scaling.forms import CHINCHILLA
from flops_fit.scaling.law import Law
from flops_fit.scaling.table import Runs

BENT = FlopsPerToken((1e4, 3e4, 1e5, 1e6), (9e4, 2.2e5, 7e5, 6.1e6), (16.0, 24.0, 48.0, 160.0))
ROUNDING = 1e-12   # closed form against the same closed form by other code

laws = st.builds(Law, E=st.floats(0.1, 3), A=st.floats(10, 1e4), B=st.floats(10, 1e4), alpha=st.floats(0.1, 1.0),
                 beta=st.floats(0.1, 1.0))


def test_closed_form_of_6n(true_law: Law) -> None:
    """Hoffmann et al. 2022, Eq. 4."""
    c = np.array([1e12, 1e18, 5.76e23])
    a = true_law.beta / (true_law.alpha + true_law.beta)
    g = (true_law.alpha * true_law.A / (true_law.beta * true_law.B)) ** (1 / (true_law.alpha + true_law.beta))
    n, d, loss = optimum(true_law, c, FlopsPerToken.six_n())
    np.testing.assert_allclose(n, g * (c / 6) ** a, rtol=ROUNDING)
    np.testing.assert_allclose(d, (c / 6) ** (1 - a) / g, rtol=ROUNDING)
    np.testing.assert_allclose(loss, true_law.loss(n, d), rtol=ROUNDING)


@settings(max_examples=60, deadline=None)
@given(law=laws, log_c=st.floats(np.log(1e8), np.log(1e16)))
def test_no_point_of_a_dense_grid_is_better(law: Law, log_c: float) -> None:
    c = np.exp(log_c)
    n, d, loss = optimum(law, c, BENT)
    grid = np.exp(np.linspace(np.log(n) - 8, np.log(n) + 8, 4001))
    grid = grid[(grid >= 1) & (c / BENT(grid) >= 1)]  # a parameter and a token are the least there is
    assert d == pytest.approx(c / BENT(n), rel=1e-10)
    brute = law.loss(grid, c / BENT(grid)).min()
    assert loss <= brute * (1 + ROUNDING)
    assert brute <= loss * (1 + 1e-4)  # and the grid comes close, so this is the same minimum


def test_a_law_that_wants_no_data_still_gets_numbers() -> None:
    """Resamples of a noisy table may have such a law: its optimum ends at one token, not at infinity."""
    n, d, loss = optimum(Law(E=1e-9, A=10.0, B=1e-300, alpha=1e-3, beta=1e-3), [1e7, 1e20], FlopsPerToken.six_n())
    np.testing.assert_allclose(d, 1.0, rtol=1e-9)
    assert np.isfinite(n).all() and np.isfinite(loss).all()


def test_many_laws_at_once_are_each_alone(true_law: Law) -> None:
    other = Law(1.0, 300.0, 900.0, 0.3, 0.4)
    together = optima(CHINCHILLA, np.stack([true_law.vector(), other.vector()]), np.array([1e11, 1e13]), BENT)
    for k, law in enumerate((true_law, other)):
        for part, alone in zip(together, optimum(law, [1e11, 1e13], BENT), strict=True):
            np.testing.assert_array_equal(part[k], alone)


def test_table_is_hit_and_continued_in_proportion() -> None:
    np.testing.assert_allclose(BENT(BENT.params), BENT.flops_per_token, rtol=ROUNDING)
    np.testing.assert_allclose(BENT(1e3), 9e3, rtol=ROUNDING)
    np.testing.assert_allclose(BENT(1e8), 6.1e8, rtol=ROUNDING)
    np.testing.assert_allclose(BENT(np.sqrt(1e4 * 3e4)), np.sqrt(9e4 * 2.2e5), rtol=ROUNDING)


def test_nearest_size() -> None:
    assert BENT.nearest(2.8e4) == (24.0, 3e4)
    assert BENT.nearest(1.2e6) == (160.0, 1e6)   # within a factor 1.25
    assert BENT.nearest(1.6e6) is None
    assert FlopsPerToken.six_n().nearest(1.0) is None


def test_from_runs_takes_what_was_measured(study: Callable[..., Runs]) -> None:
    runs = study()
    np.testing.assert_allclose(FlopsPerToken.from_runs(runs)(12345.0), 6 * 12345.0, rtol=1e-9)
    n = np.repeat(BENT.params, 3)
    d = np.tile([1e5, 1e6, 1e7], 4)
    measured = Runs.of(n, d, np.ones(12), flops=BENT(n) * d, size=np.repeat(BENT.sizes, 3))
    table = FlopsPerToken.from_runs(measured)
    assert table.sizes == BENT.sizes
    np.testing.assert_allclose(table.flops_per_token, BENT.flops_per_token, rtol=ROUNDING)


@pytest.mark.parametrize("bad", [((2.0, 1.0), (1.0, 2.0)), ((), ()), ((1.0,), (-1.0,)), ((1.0, 2.0), (1.0,))])
def test_tables_that_make_no_sense(bad: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    with pytest.raises(InputError, match="flops_per_token"):
        FlopsPerToken(*bad)


def test_say_flops() -> None:
    assert [say_flops(v) for v in (3e11, 2.5e12, 1.234e21, 500.0)] == ["3e11", "2.5e12", "1.23e21", "500"]
