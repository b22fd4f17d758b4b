"""Guidance: wrappers of a velocity that are velocities, so that any solver takes them (docs/math.md, F10-F13)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.flow.loss import check_finite
from flops_fit.flow.paths import Path, convert
from flops_fit.flow.solvers import Velocity

Conditional = Callable[..., Tensor]  # (x (B, ...), t (B,), labels=(B,)) -> (B, ...)
ROUNDING = 1e-6  # of times in float32: a step that begins at an end of an interval is inside


def classifier_free(
    network: Conditional,
    labels: Tensor,  # (B,) what is wanted, a label a row
    null: int,  # the label that was put in the place of dropped ones in training
    scale: float,  # 1: none; above: more typical of the label
    interval: tuple[float, float] = (0.0, 1.0),  # times with guidance (Kynkaanniemi et al. 2024, arXiv 2404.07724)
    optimised: bool = False,  # CFG-Zero* (Fan et al. 2025, arXiv 2503.18886): best multiple of the null velocity
    still_until: float = 0.0,  # CFG-Zero*: no motion before this time, where a velocity is least certain
) -> Velocity:
    """v_null + scale (v_label - v_null), Ho and Salimans 2022 (arXiv 2207.12598); both in one pass of 2B rows (F10)."""
    _check_interval(interval)
    _check_scale(scale)
    low, high = interval[0] - ROUNDING, interval[1] + ROUNDING

    def guided(x: Tensor, t: Tensor) -> Tensor:
        now = float(t[0])  # a solver has one time for all rows
        if now < still_until:
            return torch.zeros_like(x)
        if scale == 1 or not low <= now <= high:
            return network(x, t, labels=labels)
        both = torch.cat((labels, torch.full_like(labels, null)))
        towards, anyhow = network(torch.cat((x, x)), torch.cat((t, t)), labels=both).chunk(2)
        if optimised:
            anyhow = projection(towards, anyhow)
        return anyhow + scale * (towards - anyhow)

    return guided


def autoguidance(network: Velocity, weaker: Velocity, scale: float) -> Velocity:
    """Away from a worse model of the same data, Karras et al. 2024 (arXiv 2406.02507): w + scale (v - w) (F11)."""
    _check_scale(scale)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        worse = weaker(x, t)
        return worse + scale * (network(x, t) - worse)

    return guided


def towards_higher(
    velocity: Velocity,
    gradient: Callable[[Tensor], Tensor],  # data (B, ...) -> gradient of a score of each row, of the same shape
    path: Path,
    strength: float,  # length of what is added, as a share of the velocity's; not `adaptive`: its factor
    adaptive: bool = True,  # the same share wherever the gradient is steep or flat
    clip: float = 1.0,  # largest length of what is added, as a share of the velocity's
    still_until: float = 0.0,  # no gradient before this time: the data that x tells of is a blur there
) -> Velocity:
    """Up the gradient of a score of the data that (x, t) leads to (F12), the network not differentiated.

    The gradient is taken at the expected data (F3), as in universal guidance (Bansal et al. 2023, arXiv 2302.07121).
    """

    def guided(x: Tensor, t: Tensor) -> Tensor:
        v = velocity(x, t)
        if float(t[0]) < still_until or strength == 0:
            return v
        up = gradient(convert(path, x, t, v, "velocity", "data"))
        check_finite("gradient", up)
        length, whole = _norm(up), _norm(v)
        added = strength * (whole * (up / length) if adaptive else up)
        return v + added * (clip * whole / _norm(added)).clamp(max=1)

    return guided


def projection(onto: Tensor, value: Tensor) -> Tensor:
    """`value` times the factor that brings each row nearest to `onto`, both (B, ...) (F13)."""
    product = (onto * value).flatten(1).sum(dim=1)
    factor = product / value.flatten(1).square().sum(dim=1).clamp(min=torch.finfo(value.dtype).tiny)
    return value * factor.reshape(-1, *(1,) * (value.dim() - 1))


def _norm(x: Tensor) -> Tensor:
    """(B, 1, ...): length of each row, scaled so that no square leaves the dtype's range; of 0 its least number."""
    rows = x.flatten(1)
    largest = rows.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)  # (B, 1)
    length = largest * (rows / largest).square().sum(dim=1, keepdim=True).sqrt().clamp(min=1)
    return length.reshape(-1, *(1,) * (x.dim() - 1))


def _check_scale(scale: float) -> None:
    if not 0 <= scale < math.inf:
        raise InputError(f"guidance: got {scale}; allowed are finite numbers from 0 on, 1 for none")


def _check_interval(interval: tuple[float, float]) -> None:
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise InputError(f"interval: got {interval}; allowed are two times in order, from 0 (noise) to 1 (data)")
