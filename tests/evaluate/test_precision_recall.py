"""Precision, recall, density, coverage: by their definitions in plain loops, by peers' numbers, and in known cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.evaluate import precision_recall as module
from flops_fit.evaluate.metric import Metric
from flops_fit.evaluate.precision_recall import NEIGHBOURS, precision_recall

INDEPENDENT = 1e-6  # relative, shares of few rows: a single one that is counted otherwise is more; the bar is 1e-3
KINDS = ["precision", "recall", "density", "coverage"]


def cloud(n: int, dims: int = 4, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed)) + shift


def values(real: Tensor, generated: Tensor, k: int = NEIGHBOURS) -> list[float]:
    return [metric.value for metric in precision_recall("x", real, generated, k)]


def wave(n: int, dims: int, phase: float) -> Tensor:
    """Numbers of -1 to 1 without a pattern, the same on every machine."""
    i, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(dims, dtype=torch.float64)
    return ((i * 12.9898 + j * 78.233 + phase).sin() * 43758.5453).frac()


# prdc 0.2 (of the authors of density and coverage), compute_prdc of wave(n, D, 0) and 1.3 wave(n, D, 1) + .1; the first
# two are also those of torch-fidelity 0.4.0
PEER = {
    (300, 12, 3): [0.36666666666666664, 0.9633333333333334, 0.1988888888888889, 0.3566666666666667],
    (300, 12, 5): [0.5033333333333333, 0.9866666666666667, 0.2026666666666667, 0.5233333333333333],
    (60, 100, 5): [0.35, 1.0, 0.08666666666666667, 0.3333333333333333],
}


@pytest.mark.parametrize(("n", "dims", "k"), PEER)
def test_they_are_those_of_the_authors(n: int, dims: int, k: int) -> None:
    found = values(wave(n, dims, 0), 1.3 * wave(n, dims, 1) + 0.1, k)
    assert found == pytest.approx(PEER[n, dims, k], rel=INDEPENDENT)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(7, 30), st.integers(7, 30))
def test_they_are_their_definitions(seed: int, k: int, n: int, m: int) -> None:
    real, made = cloud(n, 3, seed).tolist(), cloud(m, 3, seed + 1, 0.5).tolist()

    def reach(rows: list[list[float]]) -> list[float]:
        return [sorted(math.dist(x, y) for j, y in enumerate(rows) if j != i)[k - 1] for i, x in enumerate(rows)]

    real_reach, made_reach = reach(real), reach(made)
    in_real = [[math.dist(x, y) <= r for x, r in zip(real, real_reach, strict=True)] for y in made]  # (m, n)
    in_made = [[math.dist(x, y) <= r for y, r in zip(made, made_reach, strict=True)] for x in real]  # (n, m)
    expected = [
        np.mean([any(row) for row in in_real]),
        np.mean([any(row) for row in in_made]),
        np.sum(in_real) / (k * m),
        np.mean(np.any(in_real, axis=0)),
    ]
    assert values(torch.tensor(real), torch.tensor(made), k) == pytest.approx(expected, rel=INDEPENDENT)


@pytest.mark.parametrize(("n", "dims"), [(50, 4), (50, 200), (module.AT_ONCE + 9, 4)])
def test_a_set_against_itself(n: int, dims: int) -> None:
    rows = 100 * cloud(n, dims, shift=3.0)
    assert values(rows, rows) == [1.0, 1.0, pytest.approx(1.0), 1.0]
    assert values(rows, rows[torch.randperm(n)]) == [1.0, 1.0, pytest.approx(1.0), 1.0]


def test_rows_that_come_many_times_are_at_their_own_centres() -> None:
    """Balls no wider than a point hold the point, though products of other sizes round otherwise."""
    for seed in range(5):
        rows = cloud(100, 1280, seed, shift=7.0)
        precision, _, _, coverage = values(rows.repeat(2, 1), rows[:50], 1)
        assert [precision, coverage] == [1.0, 0.5]


def test_a_row_is_not_its_own_neighbour() -> None:
    """On a line at 0, 1, 3 and k = 1 the balls reach 1, 1 and 2: a row at 4.9 is in the last, one at 5.1 in none."""
    real = torch.tensor([[0.0], [1.0], [3.0]])
    inside, outside = (torch.tensor([[far], [far + 100], [far + 300]]) for far in (4.9, 5.1))
    assert values(real, inside, 1)[0] == pytest.approx(1 / 3)
    assert values(real, outside, 1)[0] == 0


def test_drawn_alike_they_have_density_1() -> None:
    found = np.mean([values(cloud(100, seed=2 * seed), cloud(80, seed=2 * seed + 1))[2] for seed in range(60)])
    assert found == pytest.approx(1.0, abs=0.05)  # each has a standard deviation of some .1: four standard errors


def test_far_apart_all_are_0() -> None:
    assert values(cloud(40), cloud(40, seed=1, shift=100.0)) == [0.0, 0.0, 0.0, 0.0]


def test_what_collapsed_is_precise_and_covers_nothing() -> None:
    real = cloud(300)
    collapsed = 1e-3 * cloud(300, seed=1)
    precision, recall, density, coverage = values(real, collapsed)
    assert precision == 1.0 and recall == 0.0 and density > 1 and coverage < 0.1


def test_what_is_wider_covers_and_is_less_precise() -> None:
    found = [values(cloud(300), scale * cloud(300, seed=1)) for scale in (0.5, 1.0, 2.0, 4.0)]
    precision, recall, density, _ = zip(*found, strict=True)
    assert list(precision) == sorted(precision, reverse=True) and list(recall) == sorted(recall)
    assert list(density) == sorted(density, reverse=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_rotations_shifts_units_and_order_of_rows_change_nothing(seed: int) -> None:
    real, made = cloud(30, 4, seed).double(), cloud(25, 4, seed + 1, 0.4).double()
    turn = torch.linalg.qr(cloud(4, 4, seed).double()).Q
    known = values(real, made)
    assert values(3 * real @ turn + 1e6, 3 * made @ turn + 1e6) == pytest.approx(known)
    assert values(real[torch.randperm(30)], made.flip(0)) == pytest.approx(known)
    assert values(made, real)[:2] == pytest.approx(known[1::-1])  # precision and recall change places


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = cloud(40), cloud(30, seed=1)
    whole = precision_recall("x", real, made)
    monkeypatch.setattr(module, "AT_ONCE", 7)
    assert precision_recall("x", real, made) == whole


def test_metrics_have_names_intervals_and_the_rows_that_were_counted() -> None:
    found = precision_recall("to_held_out", cloud(60), cloud(40, seed=1, shift=0.7))
    assert [metric.name for metric in found] == [f"{kind}_to_held_out" for kind in KINDS]
    assert [metric.n for metric in found] == [40, 60, 40, 60]
    assert all(isinstance(metric, Metric) and metric.lo < metric.value < metric.hi for metric in found)


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="k: got 5 with 5 rows in a set; allowed are 1 to 4"):
        precision_recall("x", cloud(9), cloud(5))
    with pytest.raises(InputError, match="k: got 0"):
        precision_recall("x", cloud(9), cloud(9), k=0)
    with pytest.raises(InputError, match="allowed are .n, D. and .m, D."):
        precision_recall("x", cloud(9, 3), cloud(9, 4))
    broken = cloud(30)
    broken[3, 0] = math.nan
    with pytest.raises(InputError, match="NaN or infinity in 1 of 30 rows, the first at 3"):
        precision_recall("x", cloud(30), broken)
