"""A network over the Gaussian: without a network it is the Gaussian, and what it adds is in fair units."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flops_fit.errors import InputError
from flops_fit.flow.baselines import full_covariance
from flops_fit.flow.loss import Flow
from flops_fit.flow.paths import PATHS
from flops_fit.flow.precondition import GaussianPreconditioned, Turned, rotated
from flow.worlds import covariance

EXACT = 1e-9
DIMS = 6

paths = pytest.mark.parametrize("path", PATHS)


def data(n: int) -> Tensor:
    mean, cov = covariance(DIMS)
    noise = torch.randn(n, DIMS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return mean + noise @ torch.linalg.cholesky(cov).T


class Zero(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Recorder(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen = x
        return torch.zeros_like(x)


@paths
@pytest.mark.parametrize("n", [4, 50])
def test_a_network_that_says_nothing_leaves_the_gaussian(path: str, n: int) -> None:
    rows = data(n)
    gaussian = full_covariance(rows)
    axes, along = rotated(gaussian)
    torch.testing.assert_close(axes.T @ axes, torch.eye(DIMS, dtype=torch.float64), rtol=0, atol=EXACT)
    model = GaussianPreconditioned(Zero(), along.mean, along.variances, path)
    x, t = torch.randn(20, DIMS, dtype=torch.float64), torch.linspace(0, 1, 20, dtype=torch.float64)
    expected = gaussian.velocity(PATHS[path])(x, t)
    torch.testing.assert_close(model(x @ axes, t) @ axes.T, expected, rtol=EXACT, atol=EXACT)


@paths
def test_what_the_network_sees_and_what_is_left_to_it_have_unit_variance(path: str) -> None:
    """At every time, along every axis: (v - expected) / spread, the target in the network's units."""
    rows = data(100_000)
    axes, along = rotated(full_covariance(rows, 0.0))
    rows = rows @ axes
    inner = Recorder()
    model = GaussianPreconditioned(inner, along.mean, along.variances, PATHS[path])  # as a path of one's own is given
    torch.manual_seed(1)  # not the data's
    flow = Flow(path=PATHS[path])
    for t in (0.1, 0.5, 0.9):
        point = flow.path.point(torch.randn_like(rows), rows, torch.full((len(rows),), t, dtype=torch.float64))
        left = point.velocity - model(point.x, point.t)
        ones = GaussianPreconditioned(Ones(), along.mean, along.variances, path)(point.x, point.t)
        spread = ones - model(point.x, point.t)
        for values in (inner.seen, left / spread):
            torch.testing.assert_close(values.std(dim=0), torch.ones(DIMS, dtype=torch.float64), rtol=0.02, atol=0)


class Ones(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.ones_like(x)


def test_only_the_network_is_trained_and_all_is_saved() -> None:
    model = GaussianPreconditioned(nn.Linear(3, 3), torch.zeros(3), torch.ones(3))
    assert model.num_params() == 12
    assert set(model.state_dict()) == {"network.weight", "network.bias", "mean", "variances"}


@pytest.mark.parametrize("variances", [torch.ones(4), torch.tensor([1.0, 0.0, 1.0])])
def test_what_cannot_be(variances: Tensor) -> None:
    with pytest.raises(InputError, match="variances: got shape"):
        GaussianPreconditioned(Zero(), torch.zeros(3), variances)


def test_turned_is_the_network_in_its_own_axes() -> None:
    """And whitened along principal axes, then turned back, the vector is C^-1/2 (x - m)."""
    torch.manual_seed(5)
    data = torch.randn(500, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    axes, along = rotated(full_covariance(data, 0.0))
    seen: list[Tensor] = []

    def look(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return 2 * x

    class Look(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return look(x, t)

    turned = Turned(Look(), axes)
    x = data @ axes
    torch.testing.assert_close(turned(x, torch.ones(500)), 2 * x)
    torch.testing.assert_close(seen.pop(), data)
    GaussianPreconditioned(turned, along.mean, along.variances)(x, torch.ones(500, dtype=torch.float64))
    covariance = (data - data.mean(0)).T @ (data - data.mean(0)) / len(data)
    values, vectors = torch.linalg.eigh(covariance)
    inverse_root = vectors @ torch.diag(values**-0.5) @ vectors.T
    torch.testing.assert_close(seen.pop(), (data - data.mean(0)) @ inverse_root)
    assert not turned.state_dict() and turned.num_params() == 0
