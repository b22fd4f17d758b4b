"""From noise to samples: dx/dt = v(x, t) solved from t = 0 to 1 (docs/math.md, F9). Every solver has one signature.

step(velocity, x, t, dt) -> x at t + dt          the fixed-step ones, a function each; order and price in FIXED
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from flops_fit.errors import FitError, InputError

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x (B, ...), t (B,)) -> (B, ...)
Step = Callable[[Velocity, Tensor, Tensor, Tensor], Tensor]

MOST_STEPS = 10_000  # of the adaptive solver: beyond it the velocity is no function that can be followed


@dataclass(frozen=True)
class Solution:
    """What a solver reached and what that cost."""

    x: Tensor  # (B, ...) at the last time
    nfe: int  # evaluations of the velocity, each on the whole batch
    times: Tensor  # (S + 1,) of the steps taken
    trajectory: Tensor | None  # (S + 1, B, ...), when asked for


class Solver(NamedTuple):
    step: Step
    order: int
    evaluations: int  # a step


def euler(velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    return x + dt * _at(velocity, x, t)


def midpoint(velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    half = x + dt / 2 * _at(velocity, x, t)
    return x + dt * _at(velocity, half, t + dt / 2)


def heun(velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    first = _at(velocity, x, t)
    return x + dt / 2 * (first + _at(velocity, x + dt * first, t + dt))


def rk4(velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    k1 = _at(velocity, x, t)
    k2 = _at(velocity, x + dt / 2 * k1, t + dt / 2)
    k3 = _at(velocity, x + dt / 2 * k2, t + dt / 2)
    k4 = _at(velocity, x + dt * k3, t + dt)
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


FIXED = {
    "euler": Solver(euler, 1, 1),
    "midpoint": Solver(midpoint, 2, 2),
    "heun": Solver(heun, 2, 2),
    "rk4": Solver(rk4, 4, 4),
}


@torch.no_grad()
def solve(
    velocity: Velocity,
    x: Tensor,  # (B, ...) at the first time: noise
    method: str = "euler",  # euler | midpoint | heun | rk4 | dopri5
    steps: int = 50,  # of the fixed-step methods, equally long
    start: float = 0.0,  # first time; above `end` to go from data to noise
    end: float = 1.0,
    times: Tensor | None = None,  # (S + 1,) instead of equal steps from start to end
    rtol: float = 1e-5,  # of dopri5, for the root mean square of each row's error
    atol: float = 1e-5,
    trajectory: bool = False,  # keep x at all times
) -> Solution:
    """x at the end of its way along `velocity`.

    Raises:
        InputError: unknown method, no step, or times that do not go one way within [0, 1].
        FitError: dopri5 cannot follow the velocity with `MOST_STEPS` steps.
    """
    if method == "dopri5":
        _check_adaptive(times, rtol, atol)
        return _adaptive(velocity, x, start, end, rtol, atol, trajectory)
    if method not in FIXED:
        raise InputError.unknown("method", method, [*FIXED, "dopri5"])
    grid = _grid(x, steps, start, end) if times is None else times.to(x.device, _precise(x))
    _check(grid)
    solver, kept = FIXED[method], [x]
    for t, after in pairwise(grid):
        x = solver.step(velocity, x, t, after - t)
        if trajectory:
            kept.append(x)
    nfe = solver.evaluations * (len(grid) - 1)
    return Solution(x, nfe, grid, torch.stack(kept) if trajectory else None)


def times_asked(method: str, steps: int) -> Tensor:
    """(n,) ascending: the times at which a solver asks for the velocity, as it says itself of one that is zero."""
    asked: list[float] = []

    def still(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t[0]))
        return torch.zeros_like(x)

    solve(still, torch.zeros(1, 1), method, steps)
    return torch.tensor(sorted(set(asked)))


# Dormand, Prince 1980: a row for each stage, then the weights of the fifth order and of its difference to the fourth.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0  # Hairer, Norsett, Wanner 1993, II.4


def _adaptive(
    velocity: Velocity, x: Tensor, start: float, end: float, rtol: float, atol: float, trajectory: bool
) -> Solution:
    """Dormand-Prince 5(4), one step length for the whole batch; the last stage of a step is the first of the next."""
    _check(torch.tensor([start, end]))
    t, goal = torch.tensor([start, end], dtype=_precise(x), device=x.device)
    first, nfe = _at(velocity, x, t), 1
    dt = 0.01 * (goal - t)
    kept, grid = [x], [t]
    for _ in range(MOST_STEPS):
        dt = dt if (t + dt - goal) * dt.sign() < 0 else goal - t
        stages = [first]
        for node, row in zip(_NODES[1:], _STAGES[1:], strict=True):
            inner = x + dt * sum(weight * k for weight, k in zip(row, stages, strict=True))
            stages.append(_at(velocity, inner, t + node * dt))
        nfe += len(_NODES) - 1
        wrong = dt * sum(weight * k for weight, k in zip(_ERROR, stages, strict=True))
        scale = atol + rtol * torch.maximum(x.abs(), inner.abs())
        size = max((wrong / scale).flatten(1).square().mean(dim=1).sqrt().tolist(), default=0.0)
        if not size < float("inf"):
            raise FitError(f"dopri5: the velocity is not finite near t = {float(t):.3g}; look at the model there")
        if size <= 1:
            t, x, first = (goal if dt == goal - t else t + dt), inner, stages[-1]
            grid.append(t)
            if trajectory:
                kept.append(x)
            if t == goal:
                return Solution(x, nfe, torch.stack(grid), torch.stack(kept) if trajectory else None)
        dt = dt * min(_GROW, max(_SHRINK, _SAFETY * size**-0.2 if size > 0 else _GROW))
    raise FitError(f"dopri5: {MOST_STEPS} steps end at t = {float(t):.3g}; raise rtol and atol, or take heun")


def _at(velocity: Velocity, x: Tensor, t: Tensor) -> Tensor:
    """The velocity of the whole batch at one time, which rounding must not carry out of [0, 1]."""
    return velocity(x, t.clamp(0, 1).expand(len(x)))


def _grid(x: Tensor, steps: int, start: float, end: float) -> Tensor:
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise InputError(f"steps: got {steps!r}; allowed is a whole number from 1 on")
    return torch.linspace(start, end, int(steps) + 1, dtype=_precise(x), device=x.device)


def _precise(x: Tensor) -> torch.dtype:
    """Of times: in half precision some steps would be half as long as others."""
    return torch.promote_types(x.dtype, torch.float32)


def _check_adaptive(times: Tensor | None, rtol: float, atol: float) -> None:
    if times is not None:
        raise InputError("times: got times with dopri5, which finds its own; allowed are start and end, or heun")
    if not (0 <= rtol < math.inf and 0 < atol < math.inf):
        raise InputError(f"rtol, atol: got {rtol}, {atol}; allowed are finite numbers, rtol from 0 on, atol above 0")


def _check(times: Tensor) -> None:
    ahead = times.diff()
    if len(times) < 2 or not (bool((ahead > 0).all()) or bool((ahead < 0).all())):
        raise InputError(f"times: got {times.tolist()}; allowed are at least two that go one way")
    if not bool(((times >= 0) & (times <= 1)).all()):
        raise InputError(f"times: got {times.tolist()}; allowed is 0 (noise) to 1 (data)")
