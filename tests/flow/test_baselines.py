"""What needs no training: the closed forms are the conditional means that they claim to be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.flow.baselines import Gaussian, full_covariance, isotropic, zero
from flops_fit.flow.loss import Flow, flow_loss
from flops_fit.flow.paths import PATHS, Path
from flow.worlds import Mixture, covariance

EXACT = 1e-9  # float64, a few products of well-conditioned matrices

paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def samples(n: int, dims: int, seed: int = 0) -> Tensor:
    mean, cov = covariance(dims)
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(n, dims, dtype=torch.float64, generator=generator) @ torch.linalg.cholesky(cov).T


def conditional_mean(path: Path, mean: Tensor, cov: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """E[v | x_t = x] of jointly normal v and x_t, by a solve with the whole matrix for each row."""
    rows = []
    for row, now in zip(x, t, strict=True):
        alpha, sigma, d_alpha, d_sigma = path.schedule(now)
        eye = torch.eye(len(mean), dtype=x.dtype)
        across = d_alpha * alpha * cov + d_sigma * sigma * eye
        rows.append(d_alpha * mean + across @ torch.linalg.solve(alpha**2 * cov + sigma**2 * eye, row - alpha * mean))
    return torch.stack(rows)


@paths
def test_the_gaussian_is_the_conditional_mean(path: Path) -> None:
    mean, cov = covariance(6)
    variances, basis = torch.linalg.eigh(cov)
    x = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(0.01, 0.99, 20, dtype=torch.float64)
    found = Gaussian(mean, variances, basis, 0.0).velocity(path)(x, t)
    torch.testing.assert_close(found, conditional_mean(path, mean, cov, x, t), rtol=EXACT, atol=EXACT)


@paths
def test_with_fewer_samples_than_dimensions_as_with_the_whole_matrix(path: Path) -> None:
    """The low-rank form with its rest equals the full matrix (1 - s) S + s level I."""
    data = samples(5, 8)
    gaussian = full_covariance(data, shrinkage=0.3)
    assert gaussian.basis.shape[1] <= 4 and "5 samples in 8 dimensions, shrunk by 0.3" in gaussian.note
    centred = data - data.mean(dim=0)
    cov = 0.7 * centred.T @ centred / 5 + 0.3 * centred.square().mean() * torch.eye(8, dtype=torch.float64)
    x, t = samples(12, 8, seed=2), torch.linspace(0.05, 0.95, 12, dtype=torch.float64)
    found = gaussian.velocity(path)(x, t)
    torch.testing.assert_close(found, conditional_mean(path, data.mean(dim=0), cov, x, t), rtol=EXACT, atol=EXACT)


@paths
def test_at_the_ends_of_the_path_all_is_finite(path: Path) -> None:
    data = samples(40, 6)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for gaussian in (full_covariance(data, 0.0), full_covariance(data[:4]), isotropic(data)):
        assert bool(torch.isfinite(gaussian.velocity(path)(data[:2], ends)).all())


@paths
def test_isotropic_is_a_mixture_of_one(path: Path) -> None:
    data = samples(200, 3)
    one = isotropic(data)
    deviation = (data - data.mean(dim=0)).square().mean().sqrt()
    mixture = Mixture(torch.ones(1, dtype=torch.float64), one.mean[None], deviation[None])
    x, t = samples(10, 3, seed=1), torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    torch.testing.assert_close(one.velocity(path)(x, t), mixture.velocity(path, x, t), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("shrinkage", [None, 0.2])
def test_a_gaussian_made_round_is_the_isotropic_one_of_its_data(shrinkage: float | None) -> None:
    data = samples(12, 20)  # fewer than dims: there is a rest
    ours, direct = full_covariance(data, shrinkage).isotropic(), isotropic(data)
    assert torch.equal(ours.mean, direct.mean) and ours.rest == pytest.approx(direct.rest)


def test_shrinkage_is_that_of_ledoit_and_wolf() -> None:
    """Against their definition, sample by sample: b^2 = mean_k |x_k x_k' - S|^2 / n / D, d^2 = |S - m I|^2 / D."""
    for n, dims in ((30, 6), (6, 30)):
        rows = samples(n, dims).numpy()
        rows = rows - rows.mean(axis=0)
        cov = rows.T @ rows / n
        level = np.trace(cov) / dims
        away = np.linalg.norm(cov - level * np.eye(dims)) ** 2 / dims
        noise = sum(np.linalg.norm(np.outer(row, row) - cov) ** 2 for row in rows) / n**2 / dims
        found = full_covariance(samples(n, dims)).shrinkage
        assert found == pytest.approx(min(noise, away) / away, rel=1e-9)
        assert 0 < found < 1


def test_more_data_is_shrunk_less_and_the_truth_is_found() -> None:
    mean, cov = covariance(6)
    shares = [full_covariance(samples(n, 6)).shrinkage for n in (10, 100, 10_000)]
    assert shares == sorted(shares, reverse=True)
    found = full_covariance(samples(100_000, 6))
    back = (found.basis * found.variances) @ found.basis.T
    torch.testing.assert_close(back, cov, rtol=0, atol=0.05)  # standard error of a variance of 3: .013
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=0.03)


def loss_of(velocity: object, data: Tensor) -> float:
    torch.manual_seed(0)
    return float(flow_loss(velocity, Flow(), data))  # type: ignore[arg-type]


def test_losses_come_in_the_order_of_what_is_known() -> None:
    """Zero, one variance, all covariances, the truth: each knows more than the one before."""
    data, fresh = samples(400, 6), samples(50_000, 6, seed=1)
    fresh, data = (one / samples(100_000, 6, seed=2).std(dim=0) for one in (fresh, data))
    linear = PATHS["linear"]
    known = (zero, isotropic(data).velocity(linear), full_covariance(data).velocity(linear))
    losses = [loss_of(velocity, fresh) for velocity in known]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(float(fresh.square().mean()) + 1, rel=0.02)  # E|x_1 - x_0|^2 / D


def test_no_other_linear_map_beats_the_closed_form() -> None:
    data = samples(20_000, 4)
    gaussian = full_covariance(data, 0.0)
    best = loss_of(gaussian.velocity(PATHS["linear"]), data)
    for variance in (0.8, 1.25):
        other = Gaussian(gaussian.mean, gaussian.variances * variance, gaussian.basis, 0.0)
        assert loss_of(other.velocity(PATHS["linear"]), data) > best
    moved = Gaussian(gaussian.mean + 0.2, gaussian.variances, gaussian.basis, 0.0)
    assert loss_of(moved.velocity(PATHS["linear"]), data) > best


def test_images_go_in_and_come_out_as_images() -> None:
    data = samples(20, 12).view(20, 3, 2, 2)
    gaussian = full_covariance(data)
    x, t = data[:4], torch.full((4,), 0.4, dtype=torch.float64)
    flat = full_covariance(data.flatten(1)).velocity(PATHS["linear"])(x.flatten(1), t)
    assert torch.equal(gaussian.velocity(PATHS["linear"])(x, t), flat.view(4, 3, 2, 2))


def test_what_cannot_be() -> None:
    data = samples(4, 6)
    with pytest.raises(InputError, match="4 samples of 6 numbers, whose covariance is singular"):
        full_covariance(data, 0.0)
    with pytest.raises(InputError, match="shrinkage: got 1.5"):
        full_covariance(data, 1.5)
    with pytest.raises(InputError, match="at least 2"):
        full_covariance(data[:1])
    data[2, 3] = math.nan
    with pytest.raises(InputError, match="NaN or infinity in 1 of 4 rows, the first at 2"):
        isotropic(data)
