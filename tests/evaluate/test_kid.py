"""Kernel distance: by its definition in plain loops, by a peer's numbers, without bias, and its laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.evaluate import kid as module
from flops_fit.evaluate.kid import kernel_distance, kid, kid_difference

ITSELF = 1e-6  # the bar
INDEPENDENT = 1e-6  # relative, of two float64 algorithms; the bar is 1e-3
WIDTH = 0.3  # relative, of an interval: third powers have long tails, and 40 intervals vary
TOO_WIDE = 3**0.5 * (1 + WIDTH)  # times, of sets that are drawn alike: resamples have three times the variance there
ROUNDING = 1e-9  # of float64 sums in another order: differences of means of some 10

seeds = st.integers(0, 10_000)


def cloud(n: int, dims: int = 6, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def wave(n: int, dims: int, phase: float) -> Tensor:
    """Numbers of -1 to 1 without a pattern, the same on every machine."""
    i, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(dims, dtype=torch.float64)
    return ((i * 12.9898 + j * 78.233 + phase).sin() * 43758.5453).frac()


# torch-fidelity 0.4.0, metric_kid.kid_features_to_metric with one subset of all rows, of wave(n, D, 0) and
# 1.3 wave(n, D, 1) + .1
PEER = {(300, 12): 0.05908349198680929, (100, 40): 0.04319665515022031, (60, 100): 0.028480097387963532}


@pytest.mark.parametrize(("n", "dims"), PEER)
def test_it_is_that_of_torch_fidelity(n: int, dims: int) -> None:
    found = kernel_distance(wave(n, dims, 0), 1.3 * wave(n, dims, 1) + 0.1)
    assert found == pytest.approx(PEER[n, dims], rel=INDEPENDENT)


def test_it_is_its_definition_for_sets_of_different_sizes() -> None:
    a, b = cloud(9, 4).tolist(), cloud(13, 4, 1, 0.4).tolist()

    def kernel(x: list[float], y: list[float]) -> float:
        return (sum(p * q for p, q in zip(x, y, strict=True)) / 4 + 1) ** 3

    within = [np.mean([kernel(x, y) for x, y in itertools.permutations(rows, 2)]) for rows in (a, b)]
    expected = sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-4)  # float32 came in
    both = (torch.tensor(rows, dtype=torch.float64) for rows in (a, b))
    assert kernel_distance(*both) == pytest.approx(expected, rel=INDEPENDENT)


@pytest.mark.parametrize("n", [2, 40, module.AT_ONCE + 3])
def test_a_set_is_no_distance_from_itself(n: int) -> None:
    rows = cloud(n)
    assert kernel_distance(rows, rows) == 0
    assert abs(kernel_distance(rows, rows.clone()[torch.randperm(n)])) <= ITSELF
    twice = torch.cat((rows, rows))
    assert abs(kernel_distance(twice, twice.flip(0))) <= ITSELF


def test_0_and_minus_0_are_the_same() -> None:
    rows = cloud(20).relu()
    other = torch.where(rows == 0, -0.0, rows)
    assert kernel_distance(rows, other) == kernel_distance(other, rows) == 0


def test_a_row_of_the_one_set_is_the_same_as_one_of_the_other_not_of_two() -> None:
    """1, 2 against 1, 1, 3 on a line, k(x, y) = (xy + 1)^3: of the six pairs across only one 1 with a 1 is left out."""
    across = (2**3 + 4**3 + 2 * 3**3 + 7**3) / 5
    expected = 3**3 + (2**3 + 2 * 4**3) / 3 - 2 * across
    assert kernel_distance(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [1.0], [3.0]])) == pytest.approx(expected)


def test_sets_that_share_rows_are_not_nearer_for_it() -> None:
    """Drawn alike, half of the rows in both: 0 on average, where pairs of a row with itself would take it below."""

    def halves(seed: int) -> tuple[Tensor, Tensor]:
        rows = cloud(60, 3, seed)
        return rows[:40], rows[20:]

    found = [kernel_distance(*halves(seed)) for seed in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 200**0.5  # standard errors
    published = [_with_all_pairs(*halves(seed)) for seed in range(200)]
    assert np.mean(published) < -3 * np.std(published) / 200**0.5


def _with_all_pairs(a: Tensor, b: Tensor) -> float:
    """As published: no row of the one set is known in the other."""
    return kernel_distance(a, b + 1e-12)


def test_it_has_no_bias() -> None:
    """Few rows: 0 on average where both are drawn alike, and below it about as often as above."""
    found = [kernel_distance(cloud(8, 3, 2 * seed), cloud(12, 3, 2 * seed + 1)) for seed in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 400**0.5
    assert 0.3 < np.mean(np.array(found) < 0) < 0.8


def test_a_gaussian_against_its_shift_by_moments() -> None:
    """In one dimension k = 1 + 3xy + 3x^2y^2 + x^3y^3: the distance is 3 d1^2 + 3 d2^2 + d3^2 of the moments' gaps."""
    a, b = cloud(2000, 1), cloud(2000, 1, 1, 0.5)
    expected = 3 * 0.5**2 + 3 * 0.25**2 + (0.5**3 + 3 * 0.5) ** 2
    found = kid("x", a, b)
    assert found.lo < expected < found.hi and found.value == pytest.approx(expected, rel=0.25)  # of third moments


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_rotations_order_of_rows_and_of_sets_change_nothing(seed: int) -> None:
    a, b = cloud(15, 5, seed), cloud(11, 5, seed + 1, 0.5)
    known, turn = kernel_distance(a, b), torch.linalg.qr(cloud(5, 5, seed)).Q
    assert kernel_distance(b, a) == pytest.approx(known, abs=ROUNDING)
    assert kernel_distance(a @ turn, b @ turn) == pytest.approx(known, abs=ROUNDING)
    assert kernel_distance(a[torch.randperm(15)], b.flip(0)) == pytest.approx(known, abs=ROUNDING)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = cloud(30), cloud(25, seed=1, shift=0.2)
    whole = kid("x", a, b)
    monkeypatch.setattr(module, "AT_ONCE", 7)
    parts = kid("x", a, b)
    assert [parts.value, parts.lo, parts.hi] == pytest.approx([whole.value, whole.lo, whole.hi], abs=ROUNDING)


def test_a_resample_is_the_distance_of_rows_that_do_not_meet_their_copies() -> None:
    a, b = cloud(5, 3), cloud(4, 3, 1)
    counts_a, counts_b = torch.tensor([2, 0, 1, 1, 1]), torch.tensor([0, 3, 1, 0])
    found = module._distances(a, b, counts_a.double()[:, None], counts_b.double()[:, None])
    rows, columns = (torch.arange(len(c)).repeat_interleave(c).tolist() for c in (counts_a, counts_b))

    def mean(x: Tensor, y: Tensor, pairs: list[tuple[int, int]]) -> float:
        return float(np.mean([(float(x[i] @ y[j]) / 3 + 1) ** 3 for i, j in pairs]))

    def others(places: list[int]) -> list[tuple[int, int]]:
        return [(i, j) for i in places for j in places if i != j]

    across = mean(a, b, list(itertools.product(rows, columns)))
    assert float(found) == pytest.approx(mean(a, a, others(rows)) + mean(b, b, others(columns)) - 2 * across)


def test_the_metric_has_the_distance_and_its_interval() -> None:
    a, b = cloud(60), cloud(70, seed=1, shift=0.4)
    found = kid("to_held_out", a, b)
    assert found.name == "kid_to_held_out" and found.n == 60
    assert found.value == pytest.approx(kernel_distance(a, b), abs=ROUNDING) and found.lo < found.value < found.hi
    assert found == kid("to_held_out", a, b)  # the same draws
    itself = kid("itself", a, a)
    assert abs(itself.value) <= ITSELF and itself.lo < 0 < itself.hi
    assert all(map(math.isfinite, (kid("two", a[:2], b[:2]).lo, kid("two", a[:2], b[:2]).hi)))


@pytest.mark.parametrize(("dims", "shift"), [(4, 0.5), (4, 0.0), (150, 0.3)])
def test_the_interval_holds_the_distance_of_what_they_are_drawn_from(dims: int, shift: float) -> None:
    def pair(seed: int) -> tuple[Tensor, Tensor]:
        return cloud(60, dims, 2 * seed), cloud(60, dims, 2 * seed + 1, shift)

    apart = [kernel_distance(*pair(seed)) for seed in range(1000, 1400)]
    found = [kid("x", *pair(seed)) for seed in range(40)]
    assert sum(one.lo <= np.mean(apart) <= one.hi for one in found) >= 34  # of 40 at 95%: fewer have a chance of .3%
    width = np.mean([one.hi - one.lo for one in found]) / (2 * 1.96 * np.std(apart))
    assert 1 - WIDTH < width < (1 + WIDTH if shift else TOO_WIDE)


def test_what_cannot_be() -> None:
    broken = cloud(30)
    broken[3, 0] = math.nan
    for measured in (kernel_distance, lambda a, b: kid("x", a, b)):
        with pytest.raises(InputError, match="allowed are .n, D. and .m, D."):
            measured(cloud(5, 3), cloud(5, 4))
        with pytest.raises(InputError, match="at least 2"):
            measured(cloud(5), cloud(1))
        with pytest.raises(InputError, match="NaN or infinity in 1 of 30 rows, the first at 3"):
            measured(broken, cloud(30))


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_a_difference_is_that_of_the_distances_and_turns_its_sign(seed: int) -> None:
    a, b, real = cloud(30, seed=seed), cloud(30, seed=seed + 1, shift=0.5), cloud(40, seed=seed + 2)
    found, turned = kid_difference(a, b, real), kid_difference(b, a, real)
    assert found.value == pytest.approx(kernel_distance(a, real) - kernel_distance(b, real), abs=ROUNDING)
    assert (turned.value, turned.lo, turned.hi) == pytest.approx((-found.value, -found.hi, -found.lo), abs=ROUNDING)
    itself = kid_difference(a, a, real)
    assert itself.value == itself.lo == itself.hi == 0


def test_rows_without_a_partner_are_refused() -> None:
    with pytest.raises(InputError, match="b: got 9 rows for 10 of a"):
        kid_difference(cloud(10), cloud(9), cloud(10))
