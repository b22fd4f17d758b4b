"""Solvers keep their order, count what they ask for, and refuse what they cannot follow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flops_fit.errors import FitError, InputError
from flops_fit.flow.solvers import FIXED, solve

ORDER_WITHIN = 0.2  # of the claimed order, float64, over three halvings of the step
ROUNDING = 1e-12


def spiral(x: Tensor, t: Tensor) -> Tensor:
    """dx/dt = A x + cos(3 t) b: linear, not the same at all times, and its solution is known."""
    a = torch.tensor([[-0.5, 2.0], [-2.0, -0.5]], dtype=x.dtype)
    return x @ a.T + torch.cos(3 * t)[:, None] * torch.tensor([1.0, -2.0], dtype=x.dtype)


def exact(x: Tensor) -> Tensor:
    """The solution at t = 1, by the matrix exponential of the system with cos and sin as two more unknowns."""
    a = torch.zeros(4, 4, dtype=torch.float64)
    a[:2, :2] = torch.tensor([[-0.5, 2.0], [-2.0, -0.5]])
    a[0, 2], a[1, 2] = 1.0, -2.0
    a[2, 3], a[3, 2] = -3.0, 3.0  # c' = -3 s, s' = 3 c
    whole = torch.cat((x, torch.tensor([[1.0, 0.0]], dtype=x.dtype).expand(len(x), 2)), dim=1)
    return (whole @ torch.linalg.matrix_exp(a).T)[:, :2]


def start() -> Tensor:
    return torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", FIXED)
def test_the_order_of_each_method(method: str) -> None:
    steps = np.array([20, 40, 80, 160])
    errors = [float((solve(spiral, start(), method, int(n)).x - exact(start())).norm()) for n in steps]
    slope = np.polyfit(np.log(1 / steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(FIXED[method].order, abs=ORDER_WITHIN)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8, 1e-10])
def test_the_adaptive_one_reaches_its_tolerance(tolerance: float) -> None:
    found = solve(spiral, start(), "dopri5", rtol=tolerance, atol=tolerance)
    assert float((found.x - exact(start())).abs().max()) < 10 * tolerance  # local errors add up over a dozen steps


def test_the_adaptive_one_is_of_fifth_order() -> None:
    """Its error falls with the fifth power of the price."""
    found = [solve(spiral, start(), "dopri5", rtol=tol, atol=tol) for tol in (1e-6, 1e-8, 1e-10, 1e-12)]
    errors = [float((one.x - exact(start())).norm()) for one in found]
    slope = np.polyfit(np.log([1 / one.nfe for one in found]), np.log(errors), 1)[0]
    assert slope == pytest.approx(5, abs=0.5)  # steps change in length, so the slope is no exact one


@pytest.mark.parametrize("method", [*FIXED, "dopri5"])
def test_evaluations_are_counted(method: str) -> None:
    seen = []

    def counted(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        assert t.shape == (len(x),) and bool(((t >= 0) & (t <= 1)).all())
        return spiral(x, t)

    found = solve(counted, start(), method, steps=7, trajectory=True)
    assert found.nfe == len(seen)
    assert found.trajectory is not None and found.trajectory.shape == (len(found.times), 8, 2)
    assert torch.equal(found.trajectory[0], start()) and torch.equal(found.trajectory[-1], found.x)
    assert float(found.times[0]) == 0 and float(found.times[-1]) == 1


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_there_and_back_again(method: str) -> None:
    there = solve(spiral, start(), method, steps=400, rtol=1e-10, atol=1e-10).x
    back = solve(spiral, there, method, steps=400, start=1.0, end=0.0, rtol=1e-10, atol=1e-10).x
    torch.testing.assert_close(back, start(), rtol=0, atol=1e-8)  # both ways' errors, at most 1e-9 each


def test_times_of_ones_own() -> None:
    times = torch.linspace(0, 1, 41, dtype=torch.float64) ** 2
    found = solve(spiral, start(), "heun", times=times)
    assert torch.equal(found.times, times) and found.nfe == 80
    torch.testing.assert_close(found.x, exact(start()), rtol=0, atol=5e-3)  # steps of up to .05, second order


def test_a_straight_line_takes_one_step_of_any_method() -> None:
    """Constant velocity, as rectified flow aims at."""
    for method in (*FIXED, "dopri5"):
        found = solve(lambda x, t: torch.ones_like(x), start(), method, steps=1)
        torch.testing.assert_close(found.x, start() + 1, rtol=0, atol=ROUNDING)


def test_a_velocity_that_blows_up_is_told() -> None:
    with pytest.raises(FitError, match="dopri5"):
        solve(lambda x, t: x**2 * 50, start().abs() + 1, "dopri5")
    with pytest.raises(FitError, match=r"not finite near t = 0\b"):
        solve(lambda x, t: x * math.nan, start(), "dopri5")


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="did you mean euler"):
        solve(spiral, start(), "eulr")
    for steps in (0, 1.5, True):
        with pytest.raises(InputError, match="steps: got"):
            solve(spiral, start(), steps=steps)  # type: ignore[arg-type]
    for times in ([0.0, 0.5, 0.5, 1.0], [0.0], [0.0, 1.2]):
        with pytest.raises(InputError, match="times: got"):
            solve(spiral, start(), times=torch.tensor(times))
    with pytest.raises(InputError, match="times: got times with dopri5"):
        solve(spiral, start(), "dopri5", times=torch.tensor([0.0, 0.5]))
    for wrong in ({"atol": 0.0}, {"rtol": -1.0}, {"rtol": math.nan}):
        with pytest.raises(InputError, match="rtol, atol: got"):
            solve(spiral, start(), "dopri5", **wrong)


@pytest.mark.parametrize("method", [*FIXED, "dopri5"])
def test_no_row_has_no_way_to_go(method: str) -> None:
    assert solve(spiral, start()[:0], method).x.shape == start()[:0].shape


def test_times_of_half_precision_are_not_rounded() -> None:
    """In bfloat16, steps of 1/200 would stand still or be twice as long."""
    found = solve(lambda x, t: torch.ones_like(x), torch.zeros(2, 1, dtype=torch.bfloat16), "euler", np.int64(200))
    torch.testing.assert_close(found.times, torch.linspace(0, 1, 201))
    assert found.x.dtype == torch.bfloat16
