"""Times of training steps: the right law, and spread evenly over each batch."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from flops_fit.errors import InputError
from flops_fit.flow.times import TIMES, Times, times_named

N = 20_000
SURE = 1e-6  # a p-value that happens once in a million runs; the seed is fixed besides


def logit_normal(mean: float, deviation: float) -> stats.rv_continuous:
    return lambda t: stats.norm.cdf((torch.logit(torch.as_tensor(t)).numpy() - mean) / deviation)


@pytest.mark.parametrize(("times", "cdf"), [
    (Times(), stats.uniform.cdf),
    (Times(uniform=0.0), logit_normal(0, 1)),
    (Times(uniform=0.0, mean=-0.4, deviation=0.7), logit_normal(-0.4, 0.7)),
    (Times(uniform=0.3, mean=0.5), lambda t: 0.3 * t + 0.7 * logit_normal(0.5, 1)(t)),
])  # fmt: skip
def test_their_distribution(times: Times, cdf: object) -> None:
    torch.manual_seed(0)
    drawn = torch.cat([times(10) for _ in range(N // 10)]).double().numpy()  # as batches draw them
    assert stats.kstest(drawn, cdf).pvalue > SURE


def test_a_batch_holds_one_time_of_each_slice() -> None:
    torch.manual_seed(0)
    assert (Times()(64).sort().values * 64).floor().tolist() == list(range(64))


def test_the_order_tells_nothing() -> None:
    torch.manual_seed(0)
    places = torch.stack([Times()(8) for _ in range(2000)])
    assert bool((places.mean(dim=0) - 0.5).abs().max() < 5 / math.sqrt(12 * 2000))  # five standard errors


@pytest.mark.parametrize("name", TIMES)
def test_all_lie_in_the_unit_interval(name: str) -> None:
    torch.manual_seed(0)
    drawn = times_named(name)(N)
    assert drawn.shape == (N,) and bool(((drawn >= 0) & (drawn <= 1)).all())


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="uniform: got 1.5"):
        Times(uniform=1.5)
    with pytest.raises(InputError, match="deviation: got 0"):
        Times(deviation=0.0)
    with pytest.raises(InputError, match="did you mean uniform"):
        times_named("unifrom")
