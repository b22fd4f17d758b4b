"""Losses beside the baselines: known where the data's law is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flops_fit.evaluate.flow import BANDS, TIMES, held_out_losses, straightness
from flops_fit.flow.baselines import full_covariance, zero
from flops_fit.flow.paths import PATHS
from flow.worlds import three

SAMPLING = 0.02  # relative, of means over some 100,000 numbers


@pytest.mark.parametrize(("path", "expected"), [("linear", 2.0), ("gvp", math.pi**2 / 4)])
def test_the_zero_predictor(path: str, expected: float) -> None:
    torch.manual_seed(7)
    found = {m.name: m for m in held_out_losses({"zero": zero}, PATHS[path], torch.randn(500, 20)).metrics()}
    assert found["loss_zero"].value == pytest.approx(expected, rel=SAMPLING)
    assert found["loss_zero"].lo < found["loss_zero"].value < found["loss_zero"].hi and found["loss_zero"].n == 500


def test_what_is_explained_is_one_less_the_share_of_zero() -> None:
    world = three()
    torch.manual_seed(7)
    data, _ = world.sample(600)
    path = PATHS["linear"]

    def truth(x: Tensor, t: Tensor) -> Tensor:
        return world.velocity(path, x, t)

    known = {"zero": zero, "gaussian": full_covariance(data).velocity(path), "model": truth}
    found = held_out_losses(known, path, data)
    told = {m.name: m for m in found.metrics()}
    bands = [f"explained_t{tenth / 10 + 0.05:.2f}" for tenth in range(10)]
    assert set(told) == {"loss_zero", "loss_gaussian", "loss", "explained_gaussian", "explained", *bands}
    shares = found.by_time()
    assert [told[band].value for band in bands] == pytest.approx(
        [1 - own / none for own, none in zip(shares["model"], shares["zero"], strict=True)]
    )
    assert told["loss"].value < told["loss_gaussian"].value < told["loss_zero"].value
    assert told["explained"].value == pytest.approx(1 - told["loss"].value / told["loss_zero"].value)
    assert told["explained"].lo > told["explained_gaussian"].value > 0


def test_every_predictor_meets_the_same_noise() -> None:
    found = held_out_losses({"zero": zero, "model": zero}, PATHS["linear"], torch.randn(30, 4))
    assert np.array_equal(found.by_name["zero"], found.by_name["model"])
    assert found.by_name["zero"].shape == (30, TIMES)


def test_by_time() -> None:
    """Zero on unit-variance data costs 2 at every time of the linear path."""
    torch.manual_seed(7)
    bands = held_out_losses({"zero": zero}, PATHS["linear"], torch.randn(400, 30)).by_time()
    assert len(bands["t"]) == BANDS and bands["t"] == sorted(bands["t"])
    assert bands["zero"] == pytest.approx([2.0] * BANDS, rel=SAMPLING)


def test_straightness_of_a_gaussian_by_its_closed_form() -> None:
    """Paths are x_t = x_0 r(t) with r = sqrt((s t)^2 + (1 - t)^2): S = int (r' - (s - 1))^2 dt, of unit noise."""
    scale, grid = 3.0, torch.linspace(0, 1, 20_001, dtype=torch.float64)
    rate = ((scale * grid) ** 2 + (1 - grid) ** 2).sqrt().diff() * 20_000
    expected = float((rate - (scale - 1)).square().mean())
    noise = torch.randn(4000, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    torch.manual_seed(7)
    data = scale * torch.nn.functional.normalize(torch.randn(4000, 5, dtype=torch.float64), dim=0) * 4000**0.5
    flow = full_covariance(data, shrinkage=1.0).velocity(PATHS["linear"])
    assert straightness(flow, noise, steps=200).value == pytest.approx(expected, rel=SAMPLING)


def test_a_constant_velocity_is_straight() -> None:
    found = straightness(lambda x, t: torch.ones_like(x), torch.randn(10, 3, dtype=torch.float64))
    assert found.value < 1e-20  # rounding of float64, squared
