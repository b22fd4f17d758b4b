"""Exact worlds: distributions whose velocity, sample and likelihood are known on every path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flops_fit.flow.paths import Path


@dataclass(frozen=True)
class Mixture:
    """sum_k weight_k N(mean_k, width_k^2 I): written independently of flops_fit.flow.baselines."""

    weights: Tensor  # (K,)
    means: Tensor    # (K, D)
    widths: Tensor   # (K,)

    def velocity(self, path: Path, x: Tensor, t: Tensor) -> Tensor:
        """E[alpha' x_1 + sigma' x_0 | x_t = x]: of each part by the normal's conditional mean, mixed by Bayes."""
        alpha, sigma, d_alpha, d_sigma = (value[:, None] for value in path.schedule(t))  # (B, 1) each
        variance = alpha**2 * self.widths**2 + sigma**2  # (B, K)
        off = x[:, None, :] - alpha[..., None] * self.means  # (B, K, D)
        dims = x.shape[1]
        log_part = self.weights.log() - 0.5 * off.square().sum(-1) / variance - 0.5 * dims * variance.log()
        share = log_part.softmax(dim=1)[..., None]  # (B, K, 1)
        data = self.means + (alpha * self.widths**2 / variance)[..., None] * off
        noise = (sigma / variance)[..., None] * off
        return (share * (d_alpha[..., None] * data + d_sigma[..., None] * noise)).sum(dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        parts = torch.distributions.Independent(torch.distributions.Normal(self.means, self.widths[:, None]), 1)
        return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(self.weights), parts).log_prob(x)

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """((n, D) points, (n,) which part each is of), from torch's global generator."""
        of = torch.multinomial(self.weights, n, replacement=True)
        noise = torch.randn(n, self.means.shape[1], dtype=self.means.dtype)
        return self.means[of] + self.widths[of][:, None] * noise, of


def three() -> Mixture:
    """Three unequal parts in the plane."""
    return Mixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([[-2.0, 0.0], [1.5, 1.5], [1.0, -2.0]], dtype=torch.float64),
        torch.tensor([0.5, 0.3, 0.8], dtype=torch.float64),
    )


def covariance(dims: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(mean (D,), S (D, D)) with eigenvalues from .1 to 3."""
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(dims, dims, dtype=torch.float64, generator=generator))
    eigenvalues = torch.logspace(-1, 0.5, dims, dtype=torch.float64)
    return torch.randn(dims, dtype=torch.float64, generator=generator), turn * eigenvalues @ turn.T
