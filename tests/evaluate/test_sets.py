"""Distances of sets: zero from a set to itself, right where the answer is known, equal to independent ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.evaluate import sets
from flops_fit.evaluate.sets import BANDWIDTHS, compared, energy_distance, memorised, mmd, sliced_wasserstein

ITSELF = 1e-6      # the bar
INDEPENDENT = 1e-3  # relative, the bar

DISTANCES = [energy_distance, mmd, sliced_wasserstein]


def cloud(n: int, dims: int = 6, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_set_is_no_distance_from_itself(distance: object) -> None:
    rows = cloud(200)
    assert abs(distance(rows, rows)) <= ITSELF  # type: ignore[operator]
    assert abs(distance(rows, rows[torch.randperm(200)])) <= ITSELF  # type: ignore[operator]


@pytest.mark.parametrize("distance", DISTANCES)
def test_farther_sets_are_farther(distance: object) -> None:
    found = [distance(cloud(300, shift=shift), cloud(300, seed=1)) for shift in (0.0, 0.5, 1.0, 2.0)]  # type: ignore[operator]
    assert found == sorted(found)


def test_energy_distance_on_a_line_is_that_of_scipy() -> None:
    """scipy's is the square root of ours: Szekely and Rizzo's 2 int (F - G)^2."""
    a, b = cloud(60, 1), cloud(80, 1, seed=1, shift=0.5)
    expected = stats.energy_distance(a[:, 0].numpy(), b[:, 0].numpy()) ** 2
    assert energy_distance(a, b) == pytest.approx(expected, rel=INDEPENDENT)


def test_mmd_is_that_of_its_definition() -> None:
    a, b = cloud(20).double().numpy(), cloud(15, seed=1, shift=0.3).double().numpy()
    among = sorted(math.dist(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j)
    unit = among[(len(among) - 1) // 2]  # torch's median is the lower one

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([math.exp(-0.5 * (math.dist(x, y) / (w * unit)) ** 2) for w in BANDWIDTHS]))

    means = [np.mean([kernel(x, y) for x in p for y in q]) for p, q in ((a, a), (b, b), (a, b))]
    expected = means[0] + means[1] - 2 * means[2]
    assert mmd(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=INDEPENDENT)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 70)])
def test_projections_are_compared_by_scipys_quantiles(n: int, m: int) -> None:
    """In one dimension every direction is +-1: the distance is that of the line, here by a fine grid of quantiles."""
    a, b = cloud(n, 1), cloud(m, 1, seed=1, shift=1.0)
    grid = (np.arange(350_000) + 0.5) / 350_000  # a multiple of both sizes: every step is met exactly
    x, y = (np.quantile(rows[:, 0].double().numpy(), grid, method="inverted_cdf") for rows in (a, b))
    assert sliced_wasserstein(a, b) == pytest.approx(math.sqrt(np.mean((x - y) ** 2)), rel=INDEPENDENT)


def test_a_shift_costs_its_length_over_the_root_of_the_dimension() -> None:
    rows = cloud(500, 8)
    found = sliced_wasserstein(rows, rows + 2.0)
    assert found == pytest.approx(2.0, rel=0.1)  # |shift| / sqrt(D) = 2 sqrt(8) / sqrt(8), over 256 directions


def test_compared_gives_the_same_with_intervals() -> None:
    a, b = cloud(100), cloud(120, seed=1, shift=0.4)
    found = {metric.name: metric for metric in compared("to_held_out", a, b)}
    own = {"energy_distance": energy_distance, "mmd": mmd, "sliced_wasserstein": sliced_wasserstein}
    assert found.keys() == {f"{name}_to_held_out" for name in own}
    for name, distance in own.items():
        metric = found[f"{name}_to_held_out"]
        assert metric.value == pytest.approx(distance(a, b)) and metric.n == 100
        assert 0 <= metric.lo < metric.value < metric.hi


@pytest.mark.parametrize(("dim", "shift"), [(4, 0.5), (4, 0.0), (64, 0.0)])
def test_the_interval_of_a_distance_holds_what_sets_of_that_size_are_apart(
    dim: int, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite sets lie apart though they are drawn alike: the interval is of the mean distance of many pairs of sets."""
    monkeypatch.setattr(sets, "SLICED_DRAWS", 2)  # not asked for here

    def pair(seed: int) -> tuple[Tensor, Tensor]:
        return cloud(100, dim, seed=2 * seed), cloud(100, dim, seed=2 * seed + 1, shift=shift)

    expected = np.mean([energy_distance(*pair(seed)) for seed in range(100, 200)])
    found = [compared("x", *pair(seed))[0] for seed in range(20)]
    assert sum(one.lo <= expected <= one.hi for one in found) >= 16  # of 20 at 95%: fewer have a chance of .3%


def test_equal_rows_have_a_unit_all_the_same() -> None:
    """Most rows equal: the median distance is 0 and tells no width; all equal: there is nothing to tell apart."""
    a, b = cloud(20), torch.cat((cloud(2, seed=1), torch.zeros(18, 6)))
    assert 0 < mmd(a, b) < 2  # of kernels, which are 0 to 1
    assert mmd(torch.zeros(5, 3), torch.zeros(5, 3)) == 0


def test_copies_are_noticed() -> None:
    training, held_out = cloud(400, 4), cloud(300, 4, seed=1)
    copies, real = memorised(training[:200] + 1e-4, training, held_out)
    invented, same = memorised(cloud(300, 4, seed=2), training, held_out)
    assert copies.value == 1.0 and real == same
    assert invented.value == pytest.approx(real.value, abs=0.05)  # both are drawn alike; standard error .017 each


def test_rows_that_come_twice_do_not_hide_copies() -> None:
    once, held_out = cloud(900, 4), cloud(300, 4, seed=1)
    training = torch.cat((once, once[:100]))
    copies, real = memorised(training[:300], training, held_out)
    assert copies.value == 1.0
    assert real == memorised(once, once, held_out)[1]  # as near is near as without them


def test_what_is_not_finite_is_not_measured() -> None:
    a, broken = cloud(30), cloud(30, seed=1)
    broken[3, 0] = math.nan
    for measured in (*DISTANCES, lambda x, y: memorised(y, x, x), lambda x, y: compared("x", x, y)):
        with pytest.raises(InputError, match=r"NaN or infinity in 1 of 30 rows, the first at 3"):
            measured(a, broken)


def test_what_cannot_be() -> None:
    for distance in DISTANCES:
        with pytest.raises(InputError, match="allowed are .n, D. and .m, D."):
            distance(cloud(5, 3), cloud(5, 4))
        with pytest.raises(InputError, match="at least 2"):
            distance(cloud(1), cloud(5))


def test_near_copies_of_other_forms_are_repeats_and_unseen_rows_are_not() -> None:
    """Rows whose other form lies near to them, as mirror images do: they must not say what is near."""
    training, unseen = cloud(400, 12), cloud(400, 12, seed=1)
    also = training + 0.01 * cloud(400, 12, seed=2)
    copies = also + 0.01 * cloud(400, 12, seed=3)
    repeated, held_out = memorised(copies, training, unseen, also)
    assert repeated.value > 0.99 and sets.CLOSE / 3 < held_out.value < 3 * sets.CLOSE
