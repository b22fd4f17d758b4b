"""Metrics and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from flops_fit.errors import InputError
from flops_fit.evaluate.metric import Metric, bootstrapped, holm, mean_of, share_of, table


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    dice = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        found = mean_of("x", dice.exponential(size=60), draws=300)
        hits += found.lo <= 1 <= found.hi
    assert 0.88 < hits / 400 < 0.98  # 95% but for skewness at n = 60; two standard errors of the count are .022


def test_it_agrees_with_the_normal_interval_of_many_rows() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    found = mean_of("x", values)
    half = 1.96 * values.std() / 5000**0.5
    assert found.value == pytest.approx(values.mean(), rel=1e-12) and found.n == 5000  # another order of the sum
    assert found.hi - found.lo == pytest.approx(2 * half, rel=0.1)  # of 2,000 draws


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.arange(50.0)
    assert mean_of("x", values) == mean_of("x", values) != mean_of("x", values, seed=1)


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (3, 40), (20, 20)])
def test_a_share_has_wilsons_interval(hits: int, n: int) -> None:
    """Its ends are the shares p that lie 1.96 of their own standard errors, sqrt(p (1 - p) / n), from hits / n."""
    found = share_of("x", np.arange(n) < hits)
    assert found.value == hits / n
    for end in (found.lo, found.hi):
        if 0 < end < 1:
            assert abs(end - hits / n) == pytest.approx(1.959964 * (end * (1 - end) / n) ** 0.5)
    assert (found.lo == 0) == (hits == 0) and (found.hi == 1) == (hits == n)


def test_as_a_table_and_in_words() -> None:
    metric = Metric(name="loss", value=1.5, lo=1.4, hi=1.6, n=1000)
    assert table([metric]) == {"loss": {"value": 1.5, "lo": 1.4, "hi": 1.6, "n": 1000}}
    assert str(metric) == "loss 1.5 (95% 1.4 to 1.6, n = 1,000)"
    assert Metric.from_dict(metric.to_dict()) == metric


def test_one_row_has_no_interval() -> None:
    with pytest.raises(InputError, match="got 1 rows; an interval needs at least 2"):
        bootstrapped("x", lambda rows: 0.0, 1)


def test_holm_by_his_own_steps() -> None:
    """The smallest of four times 4, the next times 3, ...; never below one that came before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
