"""The Gaussian along frequencies: a rotation, the right answer for data that are so, and a network over it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.fft import dctn
from torch import Tensor, nn

from flops_fit.errors import InputError
from flops_fit.flow.baselines import full_covariance
from flops_fit.flow.paths import PATHS
from flops_fit.flow.spectral import SpectralPreconditioned, SpectralResidual, Spectrum

FLOAT32 = 2e-5  # rounding of two products of 8 x 8 and one of 3 x 3
SIZE, CHANNELS = 8, 3
FEW = 0.05  # relative: variances of 4,000 draws are 2.2% off, and what follows from them less

paths = pytest.mark.parametrize("path", PATHS)


def pictures(n: int, seed: int = 0) -> Tensor:
    """Drawn from a Gaussian that is diagonal along frequencies and mixtures of colours, of a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.arange(1.0, SIZE + 1)
    power = 3 / (waves[:, None] * waves) * torch.tensor([4.0, 1.0, 0.25])[:, None, None]  # (C, S, S)
    mixtures, _ = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(7)))
    drawn = power.sqrt() * torch.randn(n, CHANNELS, SIZE, SIZE, generator=generator)
    basis = torch.from_numpy(dctn(torch.eye(SIZE).numpy(), axes=0, norm="ortho"))  # scipy's waves, for ours to meet
    return torch.einsum("bmhw,cm->bchw", basis.T @ drawn @ basis, mixtures) + 0.5


class Zero(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Recorder(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen = x
        return torch.zeros_like(x)


@pytest.fixture(scope="module")
def spectrum() -> Spectrum:
    return Spectrum(CHANNELS, SIZE).fit(pictures(4000))


def test_the_way_there_is_a_rotation_by_cosine_waves(spectrum: Spectrum) -> None:
    x = pictures(5, seed=1)
    y = spectrum.there(x)
    torch.testing.assert_close(spectrum.back(y), x, rtol=0, atol=FLOAT32)
    torch.testing.assert_close(y.square().sum(), x.square().sum(), rtol=FLOAT32, atol=0)
    mixed = torch.einsum("bchw,cm->bmhw", x, spectrum.colours)
    by_scipy = torch.from_numpy(dctn(mixed.numpy(), axes=(2, 3), norm="ortho"))
    torch.testing.assert_close(y, by_scipy, rtol=0, atol=FLOAT32)


@paths
def test_where_data_are_so_it_is_the_full_covariance_gaussian(path: str, spectrum: Spectrum) -> None:
    """Of 192 numbers and 4,000 rows, so that the full covariance is well known too: both say the same velocity."""
    full = full_covariance(pictures(4000), 0.0).velocity(PATHS[path])
    noise, t = torch.randn(200, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(2)), torch.rand(200)
    point = PATHS[path].point(noise, pictures(200, seed=3), t.clamp(0.05, 0.95))
    ours, theirs = spectrum.velocity(PATHS[path])(point.x, point.t), full(point.x, point.t)
    assert (ours - theirs).square().mean() < FEW * theirs.square().mean()
    own, other = ((v - point.velocity).square().mean() for v in (ours, theirs))
    assert own < other  # and fewer numbers are known better, so held-out rows are told better


@paths
@pytest.mark.parametrize("kind", [SpectralPreconditioned, SpectralResidual])
def test_a_network_that_says_nothing_leaves_the_gaussian(kind: Any, path: str, spectrum: Spectrum) -> None:
    x, t = torch.randn(20, CHANNELS, SIZE, SIZE), torch.linspace(0, 1, 20)
    said = kind(Zero(), spectrum, path)(x, t)
    torch.testing.assert_close(said, spectrum.velocity(PATHS[path])(x, t), rtol=FLOAT32, atol=FLOAT32)


@paths
def test_what_a_network_says_in_pixels_is_added(path: str, spectrum: Spectrum) -> None:
    x, t = torch.randn(20, CHANNELS, SIZE, SIZE), torch.linspace(0, 1, 20)
    seen = []

    class Says(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return torch.full_like(x, 0.5)

    said = SpectralResidual(Says(), spectrum, path)(x, t) - spectrum.velocity(PATHS[path])(x, t)
    torch.testing.assert_close(said, torch.full_like(x, 0.5), rtol=0, atol=FLOAT32)
    torch.testing.assert_close(seen[0][0], x[0], rtol=0, atol=FLOAT32)  # at the noise, whose deviation is 1, or nearly


@paths
def test_what_the_network_sees_has_unit_variance_at_every_time(path: str, spectrum: Spectrum) -> None:
    inner = Recorder()
    model, data = SpectralPreconditioned(inner, spectrum, PATHS[path]), pictures(4000, seed=4)
    for time in (0.0, 0.3, 0.7, 0.99):
        point = PATHS[path].point(torch.randn_like(data), data, torch.full((4000,), time))
        model(point.x, point.t)
        assert inner.seen.var().item() == pytest.approx(1, rel=FEW)


def test_it_travels_with_its_model(spectrum: Spectrum) -> None:
    blank = Spectrum(CHANNELS, SIZE)
    with pytest.raises(InputError, match="no statistics"):
        SpectralPreconditioned(Zero(), blank)
    assert set(blank.state_dict()) == {"mean", "variances", "colours"}  # waves are known anyway
    blank.load_state_dict(spectrum.state_dict())
    x, t = torch.randn(2, CHANNELS, SIZE, SIZE), torch.tensor([0.2, 0.9])
    assert torch.equal(blank.velocity(PATHS["linear"])(x, t), spectrum.velocity(PATHS["linear"])(x, t))


@pytest.mark.parametrize(("images", "said"), [
    (torch.zeros(5, 3, 4, 4), "got shape"), (torch.zeros(1, 3, 8, 8), "at least 2"),
    (torch.full((2, 3, 8, 8), torch.nan), "NaN"), (torch.ones(3, 3, 8, 8), "all of them are the same"),
])  # fmt: skip
def test_what_cannot_be_fitted(images: Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Spectrum(CHANNELS, SIZE).fit(images)


def test_half_precision_does_not_reach_it(spectrum: Spectrum) -> None:
    """Under autocast products are rounded to 8 bits; of a rotation that would be noise of .4%."""
    x, t = torch.randn(2, CHANNELS, SIZE, SIZE), torch.tensor([0.2, 0.9])
    with torch.autocast("cpu", torch.bfloat16):
        inside = spectrum.velocity(PATHS["linear"])(x, t)
    assert torch.equal(inside, spectrum.velocity(PATHS["linear"])(x, t))
