"""A network that learns only what a Gaussian does not know (docs/math.md, F18)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from flops_fit.errors import InputError
from flops_fit.flow.baselines import Gaussian
from flops_fit.flow.paths import Path, path_named


class GaussianPreconditioned(nn.Module):
    """v(x, t) = Gaussian's velocity + spread(t) network(x whitened, t) (F18), along the axes of x.

    The Gaussian is taken along the axes: turn the data into its principal ones first (`rotated`); that changes no loss.
    What the network sees has unit variance at every time, and its output is in units of what the Gaussian leaves open.
    So a network that says 0 has the loss of the full-covariance Gaussian, and no path of it is lost in tiny directions.

    Args:
        network: (x (B, D), t (B,)) -> (B, D), best one that starts at 0.
        mean: (D,) of the data.
        variances: (D,) of the data along each axis, above 0.
        path: that it is trained on, or its name.
    """

    def __init__(self, network: nn.Module, mean: Tensor, variances: Tensor, path: Path | str = "linear") -> None:
        super().__init__()
        if mean.shape != variances.shape or mean.dim() != 1 or not bool((variances > 0).all()):
            raise InputError(
                f"variances: got shape {tuple(variances.shape)}, least {float(variances.min()):g}, for a mean of "
                f"{tuple(mean.shape)}; allowed is one number above 0 for each: shrink the covariance"
            )
        self.network, self.path = network, path if isinstance(path, Path) else path_named(path)
        self.register_buffer("mean", mean)
        self.register_buffer("variances", variances)

    def num_params(self) -> int:
        """N: the network's; mean and variances are measured, not trained."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        mean, variances = cast(Tensor, self.mean), cast(Tensor, self.variances)
        expected, whitened, spread = gaussian_parts(self.path, mean, variances, x, t)
        return expected + spread * cast(Tensor, self.network(whitened, t, **conditions))


class Around(nn.Module, ABC):
    """A network with a velocity around it that needs no training. Says what `around` gives with its own network."""

    def __init__(self, network: nn.Module, path: Path | str = "linear") -> None:
        super().__init__()
        self.network = network
        self.path = path if isinstance(path, Path) else path_named(path)

    def num_params(self) -> int:
        """N: the network's; what is around it is measured, not trained."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return self.around(self.network, x, t, **conditions)

    @abstractmethod
    def around(self, network: Callable[..., Tensor], x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """`forward` with another network inside, such as one that is prepared for sampling."""


class UnitPreconditioned(Around):
    """v(x, t) = velocity of N(0, I) + spread(t) network(x / deviation(t), t): F18 with mean 0 and variance 1.

    What the network sees and what it is to say have unit variance at every time, if the data have (Karras et al. 2022,
    arXiv 2206.00364, section 5; on the linear path its c_skip, c_out and c_in as a velocity).

    Args:
        network: (x (B, ...), t (B,), **conditions) -> like x.
    """

    def around(self, network: Callable[..., Tensor], x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        expected, scaled, spread = gaussian_parts(self.path, x.new_zeros(()), x.new_ones(()), x, t)
        return expected + spread * network(scaled, t, **conditions)


class Parts(NamedTuple):
    """What a Gaussian says of x at t, each like x."""

    expected: Tensor  # velocity
    whitened: Tensor  # x with mean 0 and variance 1
    spread: Tensor  # deviation of the velocity from the expected one


def gaussian_parts(path: Path, mean: Tensor, variances: Tensor, x: Tensor, t: Tensor) -> Parts:
    """Of x (B, ...) at t (B,), where data have this mean and these variances (...) along their axes (F16, F18)."""
    alpha, sigma, d_alpha, d_sigma = path.at(t, x)  # (B, 1, ...) each
    total = (alpha.square() * variances + sigma.square()).clamp(min=torch.finfo(x.dtype).tiny)  # (B, ...)
    off = x - alpha * mean
    expected = d_alpha * mean + (d_alpha * alpha * variances + d_sigma * sigma) / total * off
    deviation = total.sqrt()
    spread = (d_alpha * sigma - alpha * d_sigma).abs() * variances.sqrt() / deviation
    return Parts(expected, off / deviation, spread)


class Turned(nn.Module):
    """A network that sees x (B, D) in other axes than the flow: in those where its pieces are pieces.

    A network that cuts the vector into pieces wants pieces that belong together, and principal axes know none. x that
    was whitened along principal axes and is turned back is whitened with the least change (ZCA; Kessy et al. 2018,
    arXiv 1512.00809).

    Args:
        axes: (D, D) columns are the flow's axes in the network's ones; not saved with it.
    """

    def __init__(self, network: nn.Module, axes: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("axes", axes, persistent=False)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        axes = cast(Tensor, self.axes)
        return cast(Tensor, self.network(x @ axes.T, t) @ axes)


def rotated(gaussian: Gaussian) -> tuple[Tensor, Gaussian]:
    """(axes (D, D), the Gaussian in them): principal axes, then the rest of space; x @ axes are coordinates."""
    dims, known = gaussian.basis.shape
    whole, _ = torch.linalg.qr(torch.cat((gaussian.basis, torch.eye(dims).to(gaussian.basis)), dim=1))  # (D, D)
    axes = torch.cat((gaussian.basis, whole[:, known:]), dim=1)
    variances = torch.cat((gaussian.variances, gaussian.mean.new_full((dims - known,), gaussian.rest)))
    along = Gaussian(gaussian.mean @ axes, variances, torch.eye(dims).to(axes), 0.0, gaussian.shrinkage, gaussian.note)
    return axes, along
