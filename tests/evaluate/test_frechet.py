"""Frechet distance: by its closed forms, by another algorithm, by a peer's numbers, and its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.evaluate import frechet as module
from flops_fit.evaluate.frechet import frechet, frechet_difference, frechet_distance

ITSELF = 1e-6  # the bar
INDEPENDENT = 1e-6  # relative, of two float64 algorithms; the bar is 1e-3
WIDTH = 0.3  # relative, of an interval: the spread of 100 sets is known to 7%, and of 20 its own width varies
TOO_WIDE = 2.0  # times, of sets that are drawn nearly alike: resamples of what is near 0 spread more than it does
ROUNDING = 1e-9  # relative, of float64 sums in another order

seeds = st.integers(0, 10_000)
sizes = st.sampled_from([(40, 5), (12, 30)])  # more rows than numbers in each, and fewer


def cloud(n: int, dims: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.5, 2.0, dims, dtype=torch.float64)
    return torch.randn(n, dims, generator=generator, dtype=torch.float64) * spread + shift


def rotation(dims: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dims, dims, generator=generator, dtype=torch.float64)).Q


def whitened(n: int, dims: int, seed: int = 0) -> Tensor:
    """Rows with mean 0 and covariance I, to rounding."""
    rows = cloud(n, dims, seed)
    rows = rows - rows.mean(dim=0)
    return rows @ torch.linalg.inv(torch.linalg.cholesky(rows.T @ rows / (n - 1))).T


def wave(n: int, dims: int, phase: float) -> Tensor:
    """Numbers of -1 to 1 without a pattern, the same on every machine."""
    i, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(dims, dtype=torch.float64)
    return ((i * 12.9898 + j * 78.233 + phase).sin() * 43758.5453).frac()


# torch-fidelity 0.4.0, metric_fid.fid_statistics_to_metric, of wave(n, D, 0) and 1.3 wave(n, D, 1) + .1
PEER = {(300, 12): 0.571942093067138, (100, 40): 3.066797283389235, (400, 64): 3.5008117863590513}


@pytest.mark.parametrize(("n", "dims"), PEER)
def test_it_is_that_of_torch_fidelity(n: int, dims: int) -> None:
    found = frechet_distance(wave(n, dims, 0), 1.3 * wave(n, dims, 1) + 0.1)
    assert found == pytest.approx(PEER[n, dims], rel=INDEPENDENT)


@pytest.mark.parametrize(("n", "m", "dims"), [(200, 200, 8), (90, 150, 20)])
def test_it_is_its_definition_by_scipys_root(n: int, m: int, dims: int) -> None:
    """Full rank and well conditioned, where the root of a matrix can be had."""
    a, b = cloud(n, dims).numpy(), cloud(m, dims, 1, 0.3).numpy() @ rotation(dims, 2).numpy()
    first, second = np.cov(a.T), np.cov(b.T)
    root = sqrtm(first @ second).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=INDEPENDENT)


@pytest.mark.parametrize(("n", "dims"), [(200, 8), (8, 9), (30, 300), (2, 50)])
def test_a_set_is_no_distance_from_itself(n: int, dims: int) -> None:
    rows = cloud(n, dims, shift=5.0)
    assert frechet_distance(rows, rows) <= ITSELF
    assert frechet_distance(rows, rows[torch.randperm(n)]) <= ITSELF
    assert frechet_distance(rows, torch.cat((rows, rows[:1]))) > ITSELF  # one row more is another set


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.lists(st.floats(0.1, 10), min_size=3, max_size=3))
def test_covariances_along_the_same_axes(first: list[float], second: list[float]) -> None:
    """sum (sqrt l - sqrt k)^2 of their variances, here exact since the rows have exactly these."""
    rows, axes = whitened(50, 3), rotation(3, 1)
    a, b = (rows @ torch.tensor(deviations, dtype=torch.float64).diag() @ axes for deviations in (first, second))
    expected = sum((x - y) ** 2 for x, y in zip(first, second, strict=True))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING * 100)  # of variances to 100


@settings(deadline=None, max_examples=30)
@given(sizes, seeds, st.floats(-20, 20))
def test_a_shift_alone_costs_its_square(size: tuple[int, int], seed: int, shift: float) -> None:
    rows = cloud(*size, seed)
    expected = size[1] * shift**2
    assert frechet_distance(rows, rows + shift) == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING * 100)


@settings(deadline=None, max_examples=30)
@given(sizes, seeds)
def test_rotations_order_of_rows_and_of_sets_change_nothing(size: tuple[int, int], seed: int) -> None:
    a, b = cloud(*size, seed), cloud(size[0] + 3, size[1], seed + 1, 0.5)
    known, turn = frechet_distance(a, b), rotation(size[1], seed)
    assert frechet_distance(b, a) == pytest.approx(known, rel=ROUNDING)
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(known, rel=ROUNDING)
    assert frechet_distance(a[torch.randperm(len(a))], b.flip(0)) == pytest.approx(known, rel=ROUNDING)
    assert frechet_distance(10 * a, 10 * b) == pytest.approx(100 * known, rel=ROUNDING)


def test_numbers_that_are_always_0_change_nothing() -> None:
    """Covariances without full rank though n > D; and the same rows as fewer than numbers and as more."""
    a, b = cloud(40, 6), cloud(40, 6, 1, 0.5)
    wide = [torch.cat((rows, torch.zeros(40, 80, dtype=torch.float64)), dim=1) for rows in (a, b)]
    narrow = [torch.cat((rows, torch.zeros(40, 3, dtype=torch.float64)), dim=1) for rows in (a, b)]
    known = frechet_distance(a, b)
    assert frechet_distance(*wide) == pytest.approx(known, rel=ROUNDING)
    assert frechet_distance(*narrow) == pytest.approx(known, rel=ROUNDING)


def test_half_precision_and_gradients_come_in() -> None:
    a, b = cloud(50, 4).half(), cloud(50, 4, 1).half()
    known = frechet_distance(a.double(), b.double())
    assert frechet_distance(a, b.float().requires_grad_()) == known


@pytest.mark.parametrize(("n", "dims"), [(60, 4), (20, 40)])
def test_the_metric_has_the_distance_and_its_interval(n: int, dims: int) -> None:
    a, b = cloud(n, dims), cloud(n + 5, dims, 1, 0.4)
    found = frechet("to_held_out", a, b)
    assert found.name == "frechet_to_held_out" and found.n == n
    assert found.value == frechet_distance(a, b) and 0 <= found.lo < found.value < found.hi
    assert found == frechet("to_held_out", a, b)  # the same draws
    itself = frechet("itself", a, a)
    assert itself.value <= ITSELF and itself.lo == 0


def test_a_resample_by_counts_is_the_set_with_its_rows_repeated() -> None:
    rows, counts = cloud(6, 4), torch.tensor([2, 0, 1, 3, 0, 0])
    mean, factor = module._gaussian(rows, counts)
    repeated = rows.repeat_interleave(counts, dim=0)
    torch.testing.assert_close(mean, repeated.mean(dim=0))
    torch.testing.assert_close(factor.T @ factor, torch.cov(repeated.T))


@pytest.mark.parametrize(("dims", "shift"), [(4, 2.0), (4, 0.0), (150, 0.3)])
def test_the_interval_holds_what_sets_of_that_size_are_apart(
    dims: int, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRAWS", 100)  # as wide, and half the time

    def pair(seed: int) -> tuple[Tensor, Tensor]:
        return cloud(60, dims, 2 * seed), cloud(60, dims, 2 * seed + 1, shift)

    apart = [frechet_distance(*pair(seed)) for seed in range(100, 200)]
    found = [frechet("x", *pair(seed)) for seed in range(20)]
    assert sum(one.lo <= np.mean(apart) <= one.hi for one in found) >= 16  # of 20 at 95%: fewer have a chance of .3%
    width = np.mean([one.hi - one.lo for one in found]) / (2 * 1.96 * np.std(apart))
    assert 1 - WIDTH < width < (1 + WIDTH if shift == 2 else TOO_WIDE)


def test_what_cannot_be() -> None:
    broken = cloud(30, 3)
    broken[3, 0] = math.inf
    for measured in (frechet_distance, lambda a, b: frechet("x", a, b)):
        with pytest.raises(InputError, match="allowed are .n, D. and .m, D."):
            measured(cloud(5, 3), cloud(5, 4))
        with pytest.raises(InputError, match="allowed are .n, D. and .m, D."):
            measured(torch.zeros(5, 0), torch.zeros(5, 0))
        with pytest.raises(InputError, match="at least 2"):
            measured(cloud(1, 3), cloud(5, 3))
        with pytest.raises(InputError, match="NaN or infinity in 1 of 30 rows, the first at 3"):
            measured(cloud(30, 3), broken)


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_a_difference_is_that_of_the_distances_and_turns_its_sign(seed: int) -> None:
    a, b, real = cloud(30, 4, seed), cloud(30, 4, seed + 1, shift=1.0), cloud(40, 4, seed + 2)
    found, turned = frechet_difference(a, b, real), frechet_difference(b, a, real)
    assert found.value == pytest.approx(frechet_distance(a, real) - frechet_distance(b, real), abs=ROUNDING)
    assert (turned.value, turned.lo, turned.hi) == pytest.approx((-found.value, -found.hi, -found.lo), abs=ROUNDING)
    itself = frechet_difference(a, a, real)
    assert itself.value == itself.lo == itself.hi == 0


def test_pairs_tell_a_small_difference_that_distances_alone_do_not() -> None:
    """b is a moved away from the real rows by a hair, row by row."""
    real, a = cloud(300, 5, 0), cloud(300, 5, 1, shift=0.3)
    b = a + 0.03
    found = frechet_difference(a, b, real)
    alone = frechet("a", a, real)
    assert found.hi < 0 and found.hi - found.lo < (alone.hi - alone.lo) / 2


def test_rows_without_a_partner_are_refused() -> None:
    with pytest.raises(InputError, match="b: got 9 rows for 10 of a"):
        frechet_difference(cloud(10, 3), cloud(9, 3), cloud(10, 3))
