"""What a score would be where it was not measured: a Gaussian process over vectors. The home of gpytorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flops_fit.errors import InputError, MissingExtra
from flops_fit.flow.loss import check_finite

DIRECTIONS = 8  # principal ones, in which the process lives: few points say nothing of more
SMALLEST = 1e-6  # of the largest deviation: below it a direction is none
STEPS, RATE = 150, 0.05  # of Adam on the marginal likelihood
FEWEST = 8  # points


class Surrogate:
    """A Gaussian process (Rasmussen and Williams 2006) with an RBF kernel over the leading principal directions.

    Args:
        x: (n, D) vectors whose score is known.
        scores: (n,).
        space: (m, D) vectors whose principal directions are taken; None: x.

    Raises:
        InputError: fewer than `FEWEST` points, other shapes, or scores that are all the same.
        MissingExtra: gpytorch is not installed.
    """

    def __init__(self, x: Tensor, scores: Tensor, space: Tensor | None = None) -> None:
        if x.dim() != 2 or scores.shape != x.shape[:1] or len(x) < FEWEST:
            told = f"scores: got {tuple(scores.shape)} for vectors of shape {tuple(x.shape)}"
            raise InputError(f"{told}; allowed are one for each of at least {FEWEST} vectors")
        check_finite("x", x)
        check_finite("scores", scores)
        scores = scores.double()
        if space is not None and space.shape[1:] != x.shape[1:]:
            raise InputError(f"space: got vectors of {tuple(space.shape[1:])} numbers; those of x have {x.shape[1]}")
        if not float(scores.std()) > 0:
            raise InputError("scores: all are the same; there is nothing to climb")
        whole = (x if space is None else space).double()
        self._centre = whole.mean(dim=0)
        _, deviations, axes = torch.linalg.svd(whole - self._centre, full_matrices=False)
        kept = min(DIRECTIONS, int((deviations > SMALLEST * deviations[0]).sum()))
        self._to = axes[:kept].T / (deviations[:kept] / max(len(whole) - 1, 1) ** 0.5)  # (D, kept): to unit variance
        self._level, self._unit = float(scores.double().mean()), float(scores.double().std())
        inputs, targets = self._near(x), (scores.double() - self._level) / self._unit
        self._model, self._likelihood = _process(inputs, targets)
        _fit(self._model, self._likelihood, inputs, targets)

    def _near(self, x: Tensor) -> Tensor:
        near: Tensor = (x.double() - self._centre) @ self._to
        return near

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, variance) (n,), of scores without noise, standardised."""
        found = self._model(self._near(x))
        return found.mean, found.variance.clamp(min=1e-12)

    @torch.no_grad()
    def mean(self, x: Tensor) -> Tensor:
        """(n, D) -> (n,): expected scores, in their own unit."""
        return self._level + self._unit * self._posterior(x)[0]

    @torch.no_grad()
    def upper(self, x: Tensor, kappa: float = 1.0) -> Tensor:
        """(n, D) -> (n,): upper confidence bound, mean + kappa standard deviations (Srinivas et al. 2010, Eq. 6)."""
        mean, variance = self._posterior(x)
        return self._level + self._unit * (mean + kappa * variance.sqrt())

    def gradient(self, x: Tensor, kappa: float = 1.0) -> Tensor:
        """(n, D) -> (n, D): of the upper confidence bound."""
        with torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            mean, variance = self._posterior(at)
            (found,) = torch.autograd.grad((mean + kappa * variance.sqrt()).sum(), at)
        return (self._unit * found).to(x.dtype)


def correlation(x: Tensor, scores: Tensor, space: Tensor, parts: int = 5) -> float:
    """Of scores with what a surrogate of the other parts expected of them, the mean over parts: 0, it knows nothing.

    Within each part: what is left out lowers the mean of the others, which over all parts would look like knowledge.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    found = []
    for part in order.chunk(parts):
        rest = torch.ones(len(x), dtype=torch.bool)
        rest[part] = False
        expected = Surrogate(x[rest], scores[rest], space).mean(x[part])
        flat = not float(expected.std()) > 0 or not float(scores[part].std()) > 0
        found.append(0.0 if flat else float(np.corrcoef(expected.numpy(), scores[part].double().numpy())[0, 1]))
    return float(np.mean(found))


def _process(inputs: Tensor, targets: Tensor) -> tuple[Any, Any]:
    try:
        import gpytorch
    except ImportError as error:
        raise MissingExtra.of("gpytorch", "guided", "to guide by a score") from error

    class Process(gpytorch.models.ExactGP):  # type: ignore[misc]
        def __init__(self, likelihood: Any) -> None:
            super().__init__(inputs, targets, likelihood)
            self.mean = gpytorch.means.ConstantMean()
            self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    return Process(likelihood).double(), likelihood.double()


def _fit(model: Any, likelihood: Any, inputs: Tensor, targets: Tensor) -> None:
    import gpytorch

    model.train()
    likelihood.train()
    evidence = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        loss = -evidence(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    likelihood.eval()
