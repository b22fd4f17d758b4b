"""log p(x) of a flow by the change of variables (docs/math.md, F14; Chen et al. 2018, arXiv 1806.07366)."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.flow.loss import check_finite
from flops_fit.flow.solvers import Velocity, solve

Divergence = Literal["exact", "hutchinson"]


def log_likelihood(
    velocity: Velocity,
    data: Tensor,  # (B, ...)
    divergence: Divergence = "hutchinson",  # D passes backwards an evaluation, or one
    seed: int = 0,  # of the probes, one a row, the same at all times
    **solver: Any,  # what `solve` takes: method, steps, rtol, atol; dopri5 where no method is named
) -> Tensor:
    """(B,) nats: log N(x_0; 0, I) minus the divergence along the way from x_0 to `data` (F14).

    With dopri5's usual tolerances, 1e-5, the error is about as small; 1e-6 nats take rtol=atol=1e-9 in float64. Steps
    of a fixed length are blind to directions of small variance near the data.

    "hutchinson" (Grathwohl et al. 2019, arXiv 1810.01367) has the right mean; its spread over seeds is the noise of it.
    """
    if divergence not in get_args(Divergence):
        raise InputError.unknown("divergence", divergence, get_args(Divergence))
    if not data.is_floating_point():
        raise InputError(f"data: got {data.dtype}; allowed are floats")
    check_finite("data", data)
    rows, shape, solver = data.flatten(1), data.shape[1:], {"method": "dopri5", **solver}
    generator = torch.Generator(data.device).manual_seed(seed)
    probe = torch.randint(0, 2, rows.shape, generator=generator, device=data.device).to(rows) * 2 - 1  # +-1

    def with_divergence(state: Tensor, t: Tensor) -> Tensor:
        x = state[:, :-1].detach().requires_grad_()  # (B, D)
        with torch.enable_grad():
            v = velocity(x.view(-1, *shape), t).flatten(1) + 0 * x  # a velocity may forget x: its divergence is 0
            change = _trace(v, x) if divergence == "exact" else _along(v, x, probe)
        return torch.cat((v.detach(), change[:, None]), dim=1)  # (B, D + 1)

    start = torch.cat((rows, rows.new_zeros(len(rows), 1)), dim=1)
    end = solve(with_divergence, start, start=1.0, end=0.0, **solver).x
    noise, gained = end[:, :-1], end[:, -1]  # gained: the integral from 1 to 0, so minus that from 0 to 1
    return -0.5 * (noise.square().sum(dim=1) + noise.shape[1] * math.log(2 * math.pi)) + gained


def _trace(v: Tensor, x: Tensor) -> Tensor:
    """(B,): sum of dv_i / dx_i, a pass backwards for each i; rows must not see each other."""
    columns = [torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1])]
    return torch.stack(columns).sum(dim=0)


def _along(v: Tensor, x: Tensor, probe: Tensor) -> Tensor:
    """(B,): probe' (dv/dx) probe."""
    return (torch.autograd.grad((v * probe).sum(), x)[0] * probe).sum(dim=1)
