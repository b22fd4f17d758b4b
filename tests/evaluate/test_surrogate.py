"""The Gaussian process against its textbook formula, its gradient against differences, and guidance that climbs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.flow.baselines import full_covariance
from flops_fit.flow.guidance import towards_higher
from flops_fit.flow.paths import PATHS
from flops_fit.flow.solvers import solve

pytest.importorskip("gpytorch", reason="pip install 'flops-fit[guided]'")

from flops_fit.evaluate.surrogate import Surrogate, correlation

DIM = 5


def points(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors, and a score that rises along the first direction and falls off to the sides of the second."""
    x = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, 2 * x[:, 0] - 0.5 * x[:, 1].square() + 3


def test_the_posterior_is_rasmussens() -> None:
    """Eq. 2.25 and 2.26 of Rasmussen and Williams, with the hyperparameters that were found."""
    x, scores = points()
    found = Surrogate(x, scores)
    process, likelihood = found._model, found._likelihood
    length, scale = process.kernel.base_kernel.lengthscale.item(), process.kernel.outputscale.item()
    near, unseen = found._near(x), found._near(points(20, 1)[0])

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return scale * torch.exp(-torch.cdist(a, b).square() / (2 * length**2))

    noisy = kernel(near, near) + likelihood.noise.item() * torch.eye(len(x))
    targets = (scores - scores.mean()) / scores.std()
    constant = process.mean.constant.item()
    mean = constant + kernel(unseen, near) @ torch.linalg.solve(noisy, targets - constant)
    drop = (kernel(unseen, near) * torch.linalg.solve(noisy, kernel(near, unseen)).T).sum(dim=1)
    got_mean, got_variance = found._posterior(points(20, 1)[0])
    torch.testing.assert_close(got_mean.detach(), mean.detach(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(got_variance.detach(), (scale - drop).detach(), rtol=1e-3, atol=1e-3)


def test_it_knows_a_score_that_can_be_known_and_no_other() -> None:
    x, scores = points(120)
    assert correlation(x, scores, x) > 0.9
    luck = torch.randn(120, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    assert abs(correlation(x, luck, x)) < 0.3  # of 120 pairs: three standard errors


@pytest.mark.parametrize("kappa", [0.0, 2.0])
def test_the_gradient_is_that_of_the_bound(kappa: float) -> None:
    found = Surrogate(*points())
    x, step = points(7, 2)[0], 1e-5
    by_differences = torch.stack([
        (found.upper(x + step * one, kappa) - found.upper(x - step * one, kappa)) / (2 * step)
        for one in torch.eye(DIM, dtype=torch.float64)
    ], dim=1)  # fmt: skip
    torch.testing.assert_close(found.gradient(x, kappa), by_differences, rtol=1e-3, atol=1e-4)


def test_guided_samples_score_higher_and_more_so_with_strength() -> None:
    x, scores = points(100)
    guide, path = Surrogate(x, scores), PATHS["linear"]
    velocity = full_covariance(x.float()).velocity(path)
    noise = torch.randn(200, DIM, generator=torch.Generator().manual_seed(3))
    reached = []
    for strength in (0.0, 0.2, 0.5):
        made = solve(towards_higher(velocity, guide.gradient, path, strength), noise, "heun", 20).x
        reached.append(float((2 * made[:, 0] - 0.5 * made[:, 1].square() + 3).mean()))
    assert reached[0] + 0.1 < reached[1] < reached[2]


def test_what_cannot_be() -> None:
    x, scores = points()
    with pytest.raises(InputError, match="at least 8 vectors"):
        Surrogate(x[:7], scores[:7])
    with pytest.raises(InputError, match="one for each"):
        Surrogate(x, scores[:9])
    with pytest.raises(InputError, match="all are the same"):
        Surrogate(x, torch.ones(len(x)))
