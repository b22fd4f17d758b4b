"""Probability paths from noise to data, and what a network may predict on them (docs/math.md, F1-F3).

Time runs from 0, noise, to 1, data. A path is a pair of functions with their derivatives; nothing else in this folder
knows which one it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from flops_fit.errors import InputError

Prediction = Literal["velocity", "data", "noise"]
SMALLEST = 0.05  # of what a prediction is divided by near the ends: smaller, and its error swamps everything else


class Schedule(NamedTuple):
    """The path at times t, each shaped like t."""

    alpha: Tensor  # share of the data
    sigma: Tensor  # share of the noise
    d_alpha: Tensor  # their derivatives in t
    d_sigma: Tensor


class Point(NamedTuple):
    """Points on the path and the velocity there, of the pairs that were drawn."""

    x: Tensor  # (B, ...)
    t: Tensor  # (B,)
    velocity: Tensor  # (B, ...)


@dataclass(frozen=True)
class Path:
    """x_t = alpha(t) x_1 + sigma(t) x_0 (F1): data x_1, noise x_0, alpha from 0 to 1 and sigma from 1 to 0.

    Args:
        schedule: t -> (alpha, sigma, d_alpha, d_sigma), any shape of t. A path of your own is `Path("mine", f)`.
    """

    name: str
    schedule: Callable[[Tensor], Schedule]

    def at(self, t: Tensor, like: Tensor) -> Schedule:
        """The schedule at t (B,), shaped to multiply `like` (B, ...)."""
        check_times(t)
        return self.schedule(t.reshape(-1, *(1,) * (like.dim() - 1)))  # (B, 1, ...)

    def point(self, noise: Tensor, data: Tensor, t: Tensor) -> Point:
        """Where each pair is at its time t (B,), and how fast it goes (F2): alpha' x_1 + sigma' x_0.

        In the dtype of the data, whatever that of t.
        """
        alpha, sigma, d_alpha, d_sigma = self.at(t, data)
        ways = (alpha, sigma), (d_alpha, d_sigma)
        x, velocity = (torch.addcmul(a * data, b, noise).to(data.dtype) for a, b in ways)
        return Point(x, t, velocity)


def convert(path: Path, x: Tensor, t: Tensor, value: Tensor, given: Prediction, wanted: Prediction) -> Tensor:
    """What a network predicts at (x, t) in other terms (F3).

    x, value (B, ...), t (B,). Where `value` would be divided by less than `SMALLEST` - data near t = 1, noise near
    t = 0 - it is divided by that.

    Raises:
        InputError: `given` or `wanted` is no prediction.
    """
    check_prediction(given)
    check_prediction(wanted)
    if given == wanted:
        return value
    alpha, sigma, d_alpha, d_sigma = path.at(t, x)
    if given == "velocity":
        determinant = d_alpha * sigma - alpha * d_sigma  # never 0, so that data and noise follow from x and velocity
        data, noise = (sigma * value - d_sigma * x) / determinant, (d_alpha * x - alpha * value) / determinant
    elif given == "data":
        data, noise = value, (x - alpha * value) / sigma.clamp(min=SMALLEST)
    else:
        data, noise = (x - sigma * value) / alpha.clamp(min=SMALLEST), value
    return {"data": data, "noise": noise, "velocity": d_alpha * data + d_sigma * noise}[wanted]


def check_prediction(name: str) -> Prediction:
    if name not in get_args(Prediction):
        raise InputError.unknown("predicts", name, get_args(Prediction))
    return cast(Prediction, name)


def check_times(t: Tensor) -> None:
    """Raises InputError where a time lies outside of [0, 1] or is not a number."""
    if torch.compiler.is_compiling() or not t.numel():  # a look at values would break the graph
        return
    lowest, highest = (end.item() for end in t.aminmax())  # NaN, if there is one
    if not (lowest >= 0 and highest <= 1):
        wrong = highest if lowest >= 0 else lowest
        raise InputError(f"t: got {wrong:g}; allowed is 0 (noise) to 1 (data)")


def _linear(t: Tensor) -> Schedule:
    """Lipman et al. 2023 (arXiv 2210.02747) with no noise left at the end; Liu et al. 2023 (arXiv 2209.03003)."""
    return Schedule(t, 1 - t, torch.ones_like(t), -torch.ones_like(t))


def _trigonometric(t: Tensor) -> Schedule:
    """Albergo, Vanden-Eijnden 2023 (arXiv 2209.15571); "GVP" in SiT (arXiv 2401.08740): alpha^2 + sigma^2 = 1."""
    angle, rate = t * (math.pi / 2), math.pi / 2
    return Schedule(angle.sin(), angle.cos(), rate * angle.cos(), -rate * angle.sin())


BETA_SMALL, BETA_LARGE = 0.1, 20.0  # of Song et al. 2021 (arXiv 2011.13456), appendix C


def _variance_preserving(t: Tensor) -> Schedule:
    """Song et al. 2021 with time turned round: alpha = exp(-integral of beta / 2), alpha^2 + sigma^2 = 1 (F1b).

    At t = 1, sigma' is infinite; sigma is kept from 0 by a millionth, as there.
    """
    left = 1 - t
    log_alpha = -0.25 * left**2 * (BETA_LARGE - BETA_SMALL) - 0.5 * left * BETA_SMALL
    alpha = log_alpha.exp()
    sigma = (-torch.expm1(2 * log_alpha)).clamp(min=1e-6).sqrt()
    d_alpha = alpha * 0.5 * (BETA_SMALL + left * (BETA_LARGE - BETA_SMALL))
    return Schedule(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)


PATHS = {path.name: path for path in (
    Path("linear", _linear), Path("gvp", _trigonometric), Path("vp", _variance_preserving),
)}  # fmt: skip


def path_named(name: str) -> Path:
    if name not in PATHS:
        raise InputError.unknown("path", name, PATHS)
    return PATHS[name]
