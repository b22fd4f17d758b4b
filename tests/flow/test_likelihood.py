"""Likelihoods against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.flow.baselines import Gaussian, zero
from flops_fit.flow.likelihood import log_likelihood
from flops_fit.flow.paths import PATHS
from flow.worlds import covariance, three

CLOSED_FORM = 1e-6  # nats, at the tolerance of the solver below
SOLVER = {"method": "dopri5", "rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_of_gaussian_data(path: str) -> None:
    mean, cov = covariance(5)
    truth = torch.distributions.MultivariateNormal(mean, cov)
    x = mean + torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ cov
    variances, basis = torch.linalg.eigh(cov)
    found = log_likelihood(Gaussian(mean, variances, basis, 0.0).velocity(PATHS[path]), x, "exact", **SOLVER)
    torch.testing.assert_close(found, truth.log_prob(x), rtol=0, atol=CLOSED_FORM)


def test_of_a_mixture() -> None:
    world = three()
    torch.manual_seed(0)
    x, _ = world.sample(30)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return world.velocity(PATHS["linear"], x, t)

    found = log_likelihood(velocity, x, "exact", **SOLVER)
    torch.testing.assert_close(found, world.log_prob(x), rtol=0, atol=CLOSED_FORM)


def test_probes_are_right_on_average_and_the_same_for_one_seed() -> None:
    mean, cov = covariance(4)
    variances, basis = torch.linalg.eigh(cov)
    velocity = Gaussian(mean, variances, basis, 0.0).velocity(PATHS["linear"])
    x = mean.expand(2000, 4)  # one point, 2,000 probes
    found = log_likelihood(velocity, x, steps=50, method="heun")
    exact = log_likelihood(velocity, x[:1], "exact", steps=50, method="heun")
    assert float(found.std()) > 0.01  # it does draw
    error = float(found.std()) / 2000**0.5
    assert abs(float(found.mean() - exact[0])) < 5 * error
    assert torch.equal(found, log_likelihood(velocity, x, steps=50, method="heun"))
    assert not torch.equal(found, log_likelihood(velocity, x, seed=1, steps=50, method="heun"))


def test_images_are_taken_as_they_are() -> None:
    data = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    found = log_likelihood(lambda x, t: torch.zeros_like(x) * x, data, "exact", steps=1)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(data).flatten(1).sum(dim=1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_a_velocity_that_forgets_x_leaves_the_noise_as_it_is(divergence: str) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    found = log_likelihood(zero, x, divergence, method="euler", steps=2)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(dim=1))


def test_an_unknown_divergence_is_told() -> None:
    with pytest.raises(InputError, match="divergence: got 'exakt'; .*did you mean exact"):
        log_likelihood(zero, torch.zeros(1, 2), "exakt")  # type: ignore[arg-type]
