"""Every path keeps the same laws; what a network predicts can be told in each of three ways."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.flow.paths import PATHS, SMALLEST, Path, Prediction, Schedule, check_prediction, convert, path_named

ROUNDING = 1e-9  # float64 after a few products
VP_START = 0.0066  # alpha(0) of the diffusion path: its noise still holds so much data (Song et al. 2021)

CUBIC = Path("cubic", lambda t: Schedule(t**3, 1 - t**3, 3 * t**2, -3 * t**2))  # of a user's own
paths = pytest.mark.parametrize("path", [*PATHS.values(), CUBIC], ids=lambda path: path.name)
times = st.floats(0.01, 0.99)


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise, data = torch.randn(2, 6, 3, 2, dtype=torch.float64, generator=generator)
    return noise, data


@paths
def test_it_leads_from_noise_to_data(path: Path) -> None:
    noise, data = pair()
    first = path.point(noise, data, torch.zeros(6, dtype=torch.float64)).x
    last = path.point(noise, data, torch.ones(6, dtype=torch.float64)).x
    torch.testing.assert_close(first, noise, rtol=0, atol=5 * VP_START if path.name == "vp" else ROUNDING)
    torch.testing.assert_close(last, data, rtol=0, atol=5e-3 if path.name == "vp" else ROUNDING)  # vp: sigma(1) = .001


@paths
@settings(deadline=None)
@given(t=times)
def test_the_velocity_is_the_derivative_of_the_point(path: Path, t: float) -> None:
    noise, data = pair()
    at = torch.full((6,), t, dtype=torch.float64, requires_grad=True)
    columns = path.point(noise, data, at).x.flatten(1).unbind(dim=1)  # each (B,)
    derivatives = [torch.autograd.grad(column.sum(), at, retain_graph=True)[0] for column in columns]
    by_autograd = torch.stack(derivatives, dim=1)
    velocity = path.point(noise, data, at).velocity.flatten(1)  # (B, 6)
    torch.testing.assert_close(velocity.detach(), by_autograd, rtol=1e-6, atol=1e-6)


@paths
def test_data_grows_and_noise_falls_all_the_way(path: Path) -> None:
    alpha, sigma, d_alpha, d_sigma = path.schedule(torch.linspace(0.001, 0.999, 999, dtype=torch.float64))
    assert bool((alpha.diff() > 0).all()) and bool((sigma.diff() < 0).all())
    assert bool((d_alpha > 0).all()) and bool((d_sigma < 0).all())


@pytest.mark.parametrize("name", ["gvp", "vp"])
def test_variance_is_preserved(name: str) -> None:
    alpha, sigma, _, _ = PATHS[name].schedule(torch.linspace(0, 1, 101, dtype=torch.float64))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=2e-6)  # vp's floor of sigma^2


@paths
@settings(deadline=None)
@given(t=st.floats(0.1, 0.9))
def test_each_prediction_follows_from_each(path: Path, t: float) -> None:
    noise, data = pair()
    point = path.point(noise, data, torch.full((6,), t, dtype=torch.float64))
    truth: dict[Prediction, Tensor] = {"velocity": point.velocity, "data": data, "noise": noise}
    alpha, sigma, _, _ = path.schedule(point.t[:1])
    for given_, value in truth.items():
        if (given_ == "data" and sigma < SMALLEST) or (given_ == "noise" and alpha < SMALLEST):
            continue  # divided by SMALLEST instead, on purpose
        for wanted, expected in truth.items():
            found = convert(path, point.x, point.t, value, given_, wanted)
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)  # alpha, sigma down to .05


def test_at_the_ends_a_prediction_of_data_is_not_divided_by_zero() -> None:
    x = torch.ones(1, 2)
    velocity = convert(PATHS["linear"], x, torch.ones(1), torch.zeros(1, 2), "data", "velocity")
    torch.testing.assert_close(velocity, -x / SMALLEST, rtol=0, atol=0)


def test_the_trigonometric_path_in_the_middle() -> None:
    alpha, sigma, _, _ = PATHS["gvp"].schedule(torch.tensor(0.5, dtype=torch.float64))
    assert float(alpha) == pytest.approx(math.sqrt(0.5)) and float(sigma) == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("t", [-0.1, 1.5, math.nan])
def test_a_time_outside_is_refused(t: float) -> None:
    noise, data = pair()
    with pytest.raises(InputError, match="allowed is 0 .noise. to 1 .data."):
        PATHS["linear"].point(noise, data, torch.full((6,), t, dtype=torch.float64))


def test_unknown_names_are_told_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean linear"):
        path_named("liner")
    with pytest.raises(InputError, match="allowed are velocity, data, noise"):
        check_prediction("x")
    assert check_prediction("noise") == "noise"
