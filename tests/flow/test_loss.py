"""The loss: what it is at known velocities, and that its minimum is the truth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from flops_fit.errors import InputError
from flops_fit.flow.baselines import zero
from flops_fit.flow.couplings import optimal
from flops_fit.flow.loss import Flow, flow_loss
from flops_fit.flow.paths import PATHS, Prediction, convert
from flow.worlds import three

N = 40_000
SAMPLING = 0.02  # relative, of a mean over N draws


@pytest.mark.parametrize(("path", "expected"), [("linear", 2.0), ("gvp", math.pi**2 / 4)])
def test_of_the_zero_predictor_on_unit_variance(path: str, expected: float) -> None:
    """E v^2 = alpha'^2 + sigma'^2: the row that every table shows."""
    torch.manual_seed(0)
    found = flow_loss(zero, Flow(path=PATHS[path]), torch.randn(N, 4))
    assert float(found) == pytest.approx(expected, rel=SAMPLING)


def test_a_true_velocity_has_the_least_loss() -> None:
    world = three()
    torch.manual_seed(0)
    data, _ = world.sample(N)

    def loss(off: float) -> float:
        torch.manual_seed(1)
        return float(flow_loss(lambda x, t: world.velocity(PATHS["linear"], x, t) * (1 + off) + off, Flow(), data))

    assert loss(0.0) < min(loss(0.05), loss(-0.05))


@pytest.mark.parametrize("predicts", ["data", "noise"])
def test_whatever_a_network_predicts_the_loss_is_of_its_velocity(predicts: Prediction) -> None:
    world, path = three(), PATHS["linear"]
    torch.manual_seed(0)
    data, _ = world.sample(N)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return convert(path, x, t, world.velocity(path, x, t), "velocity", predicts)

    torch.manual_seed(1)
    found = flow_loss(network, Flow(predicts=predicts), data)
    torch.manual_seed(1)
    expected = flow_loss(lambda x, t: world.velocity(path, x, t), Flow(), data)
    # what is divided by less than SMALLEST near an end is not got back: a twentieth of the times, where little is lost
    assert float(found) == pytest.approx(float(expected), rel=1e-3)


def test_another_prediction_is_another_loss() -> None:
    data = torch.randn(500, 2)
    losses = []
    for predicts in ("velocity", "data", "noise"):
        torch.manual_seed(1)
        losses.append(float(flow_loss(zero, Flow(predicts=predicts), data)))  # type: ignore[arg-type]
    assert len({round(loss, 1) for loss in losses}) == 3
    with pytest.raises(InputError, match="predicts: got 'velocty'; .*did you mean velocity"):
        Flow(predicts="velocty")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(8, 1), (3,), (8, 4)])
def test_a_network_of_another_shape_is_not_stretched_to_the_data(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"network: gave shape .*; allowed is that of its x, \(8, 3\)"):
        flow_loss(lambda x, t: torch.zeros(shape), Flow(), torch.randn(8, 3))


def test_optimal_pairs_leave_less_to_learn() -> None:
    torch.manual_seed(0)
    data = torch.randn(256, 2)
    assert float(flow_loss(zero, Flow(coupling=optimal), data)) < float(flow_loss(zero, Flow(), data))


def test_labels_reach_the_network_and_the_coupling() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return torch.zeros_like(x)

    labels = torch.arange(6) % 2
    flow_loss(network, Flow(coupling=optimal), torch.randn(6, 3), labels)
    assert torch.equal(seen[0], labels)


def test_gradients_reach_the_network() -> None:
    network = nn.Linear(3, 3)
    loss = flow_loss(lambda x, t: network(x), Flow(), torch.randn(16, 3))
    loss.backward()
    assert network.weight.grad is not None and bool(network.weight.grad.abs().sum() > 0)


def test_data_that_is_not_finite_is_refused() -> None:
    data = torch.randn(5, 3)
    data[1, 0], data[4, 2] = math.inf, math.nan
    with pytest.raises(InputError, match="data: got NaN or infinity in 2 of 5 rows, the first at 1"):
        flow_loss(zero, Flow(), data)
