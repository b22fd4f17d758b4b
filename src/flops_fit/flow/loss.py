"""The flow-matching loss: one function (docs/math.md, F8; Lipman et al. 2023, arXiv 2210.02747, Eq. 9)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.flow.couplings import Coupling, independent
from flops_fit.flow.paths import PATHS, Path, Point, Prediction, check_prediction, convert
from flops_fit.flow.times import Times

Network = Callable[..., Tensor]  # (x (B, ...), t (B,), **conditions) -> like x


@dataclass(frozen=True)
class Flow:
    """What is learned: along which path, at which times, with which pairs, and what the network says.

    A network is worthless without it, so it is saved with the model.
    """

    path: Path = PATHS["linear"]
    times: Times = field(default_factory=Times)
    coupling: Coupling = independent
    predicts: Prediction = "velocity"

    def __post_init__(self) -> None:
        check_prediction(self.predicts)

    def draw(self, data: Tensor, labels: Tensor | None = None) -> Point:
        """Noise from torch's global generator, paired with data (B, ...) and put on the path at random times.

        Autocast does not reach the pairing: in half precision it would be another one.
        """
        with torch.autocast(data.device.type, enabled=False):
            noise = self.coupling(torch.randn_like(data), data, labels)
        return self.path.point(noise, data, self.times(len(data), data.device))

    def velocity(self, network: Network) -> Network:
        """The network's prediction as a velocity, whatever it predicts."""
        if self.predicts == "velocity":
            return network

        def as_velocity(x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
            return convert(self.path, x, t, network(x, t, **conditions), self.predicts, "velocity")

        return as_velocity


def flow_loss(network: Network, flow: Flow, data: Tensor, labels: Tensor | None = None) -> Tensor:
    """Mean squared error of the velocity at random points of the path, a scalar; 2 on unit-variance data for zero.

    data (B, ...); labels (B,), if any, go to the coupling and, as `labels=`, to the network.

    Raises:
        InputError: data holds what is not finite, or no row.
    """
    check_finite("data", data)
    if not len(data):
        raise InputError("data: got no rows; give at least one")
    point = flow.draw(data, labels)
    conditions = {} if labels is None else {"labels": labels}
    return squared_error(flow.velocity(network)(point.x, point.t, **conditions), point).mean()


def squared_error(velocity: Tensor, point: Point) -> Tensor:
    """(B,): error of each row, the mean over its numbers.

    Raises:
        InputError: the velocity has another shape than the data, and would be stretched to it.
    """
    if velocity.shape != point.velocity.shape:
        raise InputError(
            f"network: gave shape {tuple(velocity.shape)}; allowed is that of its x, {tuple(point.velocity.shape)}"
        )
    return (velocity - point.velocity).square().flatten(1).mean(dim=1)


def check_finite(name: str, values: Tensor) -> None:
    if math.isfinite(values.sum().item()):  # one number tells nearly always, and NaN and infinity reach it
        return
    if not bool(torch.isfinite(values).all()):
        rows = (~torch.isfinite(values.flatten(1))).any(dim=1).nonzero()[:, 0]
        raise InputError(
            f"{name}: got NaN or infinity in {len(rows)} of {len(values)} rows, the first at {int(rows[0])}; "
            "allowed are finite numbers: leave those rows out"
        )
