"""Images as frequencies: a Gaussian that costs a few numbers, and networks that learn only what it does not know.

Pictures look alike wherever one looks at them, so their frequencies hardly know of each other: along those, and along
three mixtures of the colours, their covariance is nearly diagonal (docs/math.md, F20).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flops_fit.errors import InputError
from flops_fit.flow.loss import check_finite
from flops_fit.flow.paths import Path
from flops_fit.flow.precondition import Around, gaussian_parts
from flops_fit.flow.solvers import Velocity

AT_ONCE = 256  # images
LEAST = 1e-6  # of the mean variance: a frequency that the data do not know is not blown up further


class Spectrum(nn.Module):
    """Mean and variances of images (C, S, S) along frequencies and mixtures of their channels. Saved with its model.

    A fresh one knows no statistics: `fit` it, or load it.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        blank = torch.full((channels, size, size), float("nan"))
        self.register_buffer("mean", blank)  # (C, S, S) in its own coordinates, as the variances
        self.register_buffer("variances", blank.clone())
        self.register_buffer("colours", torch.eye(channels))  # (C, C) columns are the mixtures
        self.register_buffer("waves", cosines(size), persistent=False)  # (S, S) rows are the waves
        self.mean: Tensor
        self.variances: Tensor
        self.colours: Tensor
        self.waves: Tensor

    def fit(self, images: Tensor) -> Spectrum:
        """To images (n, C, S, S), n at least 2.

        Raises:
            InputError: another shape, fewer than two, numbers that are not finite, or images that are all the same.
        """
        if images.shape[1:] != self.mean.shape or len(images) < 2:
            allowed = f"at least 2 of {tuple(self.mean.shape)}"
            raise InputError(f"images: got shape {tuple(images.shape)}; allowed are {allowed}")
        check_finite("images", images)
        centre = images.mean(dim=0)  # (C, S, S)
        covariance = images.new_zeros(len(self.mean), len(self.mean))
        for some in images.split(AT_ONCE):  # there may be no memory for a second copy
            flat = (some - centre).transpose(0, 1).flatten(1)  # (C, n S S)
            covariance += flat @ flat.T
        self.colours.copy_(torch.linalg.eigh(covariance).eigenvectors)
        self.mean.copy_(self.there(centre[None])[0])
        variances = torch.zeros_like(self.mean)
        for some in images.split(AT_ONCE):
            variances += (self.there(some) - self.mean).square().sum(dim=0) / len(images)
        typical = float(variances.mean())
        if not typical > 0:
            raise InputError("images: all of them are the same; give images that differ")
        self.variances.copy_(variances.clamp(min=LEAST * typical))
        return self

    def there(self, x: Tensor) -> Tensor:
        """(B, C, S, S) pixels -> (B, C, S, S) coordinates; lengths stay, since it is a rotation."""
        with torch.autocast(x.device.type, enabled=False):  # a rotation in half precision is none
            mixed = torch.einsum("bchw,cm->bmhw", x.float(), self.colours)
            return self.waves @ mixed @ self.waves.T

    def back(self, y: Tensor) -> Tensor:
        """The inverse of `there`."""
        with torch.autocast(y.device.type, enabled=False):
            return torch.einsum("bmhw,cm->bchw", self.waves.T @ y.float() @ self.waves, self.colours)

    def velocity(self, path: Path) -> Velocity:
        """(x (B, C, S, S), t (B,)) -> E[velocity | x_t = x] of this Gaussian on that path (F15)."""
        self._check()

        def expected(x: Tensor, t: Tensor) -> Tensor:
            return self.back(gaussian_parts(path, self.mean, self.variances, self.there(x), t).expected)

        return expected

    def _check(self) -> None:
        if torch.compiler.is_compiling():  # values cannot be looked at there; a network around it was looked at before
            return
        if not bool(torch.isfinite(self.variances).all()):
            raise InputError("spectrum: it has no statistics; fit it on training images, or load it with its model")


class AroundSpectrum(Around):
    """A network with the Gaussian of a spectrum around it. One that says 0 has the loss of the Gaussian.

    Args:
        network: (x (B, C, S, S), t (B,), **conditions) -> like x, best one that starts at 0.
        spectrum: fitted.
        path: that it is trained on, or its name.
    """

    def __init__(self, network: nn.Module, spectrum: Spectrum, path: Path | str = "linear") -> None:
        super().__init__(network, path)
        spectrum._check()
        self.spectrum = spectrum


class SpectralPreconditioned(AroundSpectrum):
    """v(x, t) = the Gaussian's velocity + spread(t) network(x whitened, t), along frequencies (F18, F20).

    The network sees and answers in pixels.
    """

    def around(self, network: Callable[..., Tensor], x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        spectrum = self.spectrum
        expected, whitened, spread = gaussian_parts(
            self.path, spectrum.mean, spectrum.variances, spectrum.there(x), t
        )
        said = network(spectrum.back(whitened), t, **conditions)
        return spectrum.back(expected + spread * spectrum.there(said))


class SpectralResidual(AroundSpectrum):
    """v(x, t) = the Gaussian's velocity along frequencies + network(x / deviation(t), t), both in pixels (F20).

    Unlike with `SpectralPreconditioned`, the network sees frequencies as large as they are in pictures, and learns
    those first that are large.
    """

    def around(self, network: Callable[..., Tensor], x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        scaled = gaussian_parts(self.path, x.new_zeros(()), x.new_ones(()), x, t).whitened
        return self.spectrum.velocity(self.path)(x, t) + network(scaled, t, **conditions)


def cosines(size: int) -> Tensor:
    """(S, S): row k is the k-th cosine wave over S points; rows are orthonormal (DCT-II; Ahmed et al. 1974)."""
    steps = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi / size * (steps + 0.5) * steps[:, None]) * math.sqrt(2 / size)  # (S, S)
    waves[0] /= math.sqrt(2)
    return waves.float()
