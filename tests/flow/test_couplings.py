"""Every coupling keeps the noise; the optimal one is the best there is."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.flow.couplings import (
    COUPLINGS,
    MARGIN,
    Entropic,
    coupling_named,
    independent,
    optimal,
    squared_distances,
    transport_cost,
)
from flops_fit.flow.loss import Flow

ROUNDING = 1e-9


def clouds(n: int, dims: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, n, dims, dtype=torch.float64, generator=generator))  # type: ignore[return-value]


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_no_permutation_costs_less_than_the_optimal_one(seed: int) -> None:
    noise, data = clouds(6, seed=seed)
    least = min(transport_cost(noise[list(order)], data) for order in itertools.permutations(range(6)))
    assert transport_cost(optimal(noise, data), data) == pytest.approx(least, rel=ROUNDING)


@pytest.mark.parametrize(
    ("scale", "offset"), [(1.0, 0.0), (1e4, 0.0), (1e-4, 0.0), (1.0, 100.0), (0.0, 3.0)],
    ids=["plain", "large", "small", "far from the noise", "all the same"],
)  # fmt: skip
def test_the_prices_that_shorten_the_search_leave_the_optimum(scale: float, offset: float) -> None:
    noise, data = clouds(60, dims=20)
    data = scale * data + offset
    cost = squared_distances(data, noise).numpy()
    least = cost[linear_sum_assignment(cost)].mean()
    assert transport_cost(optimal(noise, data), data) == pytest.approx(least, rel=ROUNDING)


@pytest.mark.parametrize("name", ["independent", "optimal"])
def test_each_noise_is_used_once(name: str) -> None:
    noise, data = clouds(50)
    paired = coupling_named(name)(noise, data, None)
    assert sorted(map(tuple, paired.tolist())) == sorted(map(tuple, noise.tolist()))


@pytest.mark.parametrize("name", COUPLINGS)
def test_images_are_paired_like_vectors(name: str) -> None:
    noise, data = clouds(12, dims=8)
    torch.manual_seed(0)
    flat = coupling_named(name)(noise, data, None)
    torch.manual_seed(0)
    square = coupling_named(name)(noise.view(12, 2, 2, 2), data.view(12, 2, 2, 2), None)
    assert torch.equal(square.flatten(1), flat)


@pytest.mark.parametrize("coupling", [optimal, Entropic(0.05)])
def test_with_labels_noise_stays_within_its_label(coupling: object) -> None:
    """What the label tells must not be told by the noise: rows of a label only change places among themselves."""
    noise, data = clouds(60)
    labels = torch.arange(60) % 3
    data[:, 0] += 10 * labels  # without labels, the noise would be sorted by them
    torch.manual_seed(0)
    paired = coupling(noise, data, labels)  # type: ignore[operator]
    for label in range(3):
        of_it = {tuple(row) for row in noise[labels == label].tolist()}
        assert {tuple(row) for row in paired[labels == label].tolist()} <= of_it


def test_the_entropic_plan_has_its_margins() -> None:
    noise, data = clouds(40)
    plan = Entropic(0.1).plan(noise, data)
    torch.testing.assert_close(plan.sum(dim=0), torch.ones(40, dtype=torch.float64), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(40, dtype=torch.float64), rtol=0, atol=MARGIN)


def test_the_entropic_plan_lies_between_the_optimal_and_the_independent_one() -> None:
    noise, data = clouds(40)
    cost = squared_distances(data, noise)
    best, mean = transport_cost(optimal(noise, data), data), float(cost.mean())
    by_blur = [float((Entropic(blur).plan(noise, data) * cost).sum() / 40) for blur in (0.005, 0.05, 0.5, 500.0)]
    assert by_blur == sorted(by_blur)
    assert by_blur[0] == pytest.approx(best, rel=0.02)   # the optimal plan is the limit
    assert by_blur[-1] == pytest.approx(mean, rel=0.01)  # as is the independent one at 500


def test_half_precision_does_not_reach_the_pairs() -> None:
    """Neither that of the data nor autocast's, where products would be rounded and numpy knows no bfloat16."""
    noise, data = (one.bfloat16() for one in clouds(40))
    exact = optimal(noise.double(), data.double())
    assert torch.equal(optimal(noise, data).double(), exact)
    drawn = {}
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            drawn[half] = Flow(coupling=optimal).draw(data.float())
    assert torch.equal(drawn[True].x, drawn[False].x)


def test_equal_rows_are_paired_by_chance() -> None:
    noise, _ = clouds(6)
    plan = Entropic(0.05).plan(torch.zeros(6, 3), torch.zeros(6, 3))
    torch.testing.assert_close(plan, torch.full((6, 6), 1 / 6, dtype=torch.float64))
    assert Entropic(0.05)(torch.zeros(6, 3), noise.float() * 0).shape == (6, 3)


def test_distances_are_those_of_torch() -> None:
    noise, data = clouds(30, dims=7)
    torch.testing.assert_close(squared_distances(noise, data), torch.cdist(noise, data).square(), rtol=1e-7, atol=1e-7)
    assert transport_cost(noise, data) == pytest.approx(float(torch.cdist(noise, data).square().diagonal().mean()))


def test_independent_leaves_all_as_it_was() -> None:
    noise, data = clouds(5)
    assert independent(noise, data) is noise


def test_what_cannot_be() -> None:
    noise, data = clouds(5)
    with pytest.raises(InputError, match=r"labels: got shape \(4,\); allowed is one label a row, \(5,\)"):
        optimal(noise, data, torch.zeros(4))
    with pytest.raises(InputError, match=r"noise: got shape \(4, 3\); allowed is that of data, \(5, 3\)"):
        optimal(noise[:4], data)
    with pytest.raises(InputError, match="data: got NaN"):
        optimal(noise, data * math.nan)
    with pytest.raises(InputError, match="blur: got 0"):
        Entropic(0.0)
    with pytest.raises(InputError, match="blur: got nan"):
        Entropic(math.nan)
    with pytest.raises(InputError, match="did you mean optimal"):
        coupling_named("optimall")
