"""Muon: the momentum of a matrix, made orthogonal, is its step (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

All singular directions of a matrix move alike, those that hardly show in the gradient too. Scaled so that a step is as
large as one of AdamW (Liu et al. 2025, arXiv 2502.16982, section 2.2), both share the learning rate and its schedule.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95  # with Nesterov's look ahead
LIKE_ADAMW = 0.2  # root mean square of a step of AdamW
A, B, C = 3.4445, -4.7750, 2.0315  # X <- A X + (B G + C G^2) X, G = X X': singular values to about 1 (Jordan et al.)
ROUNDS = 5
LEAST = 1e-7  # norm of a gradient: less, and its squares are no numbers to build a step on


class Muon(torch.optim.AdamW):
    """AdamW, but for groups with `muon` true, whose members are matrices.

    Args: those of AdamW; each group says `muon`.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._turn(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            return super().step(closure)  # type: ignore[no-any-return]
        finally:
            self.param_groups = groups

    def _turn(self, group: dict[str, Any]) -> None:
        """One step of every matrix in the group; those of one shape together."""
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for shape, parameters in by_shape.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            momenta = [self._momentum(p) for p in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            ahead = torch.stack(torch._foreach_lerp(gradients, momenta, MOMENTUM))  # (K, m, n)
            rate = group["lr"] * LIKE_ADAMW * math.sqrt(max(shape))
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, list(orthogonal(ahead).unbind()), alpha=-rate)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["step"] = torch.zeros(())  # AdamW looks for it in every state that it loads
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]  # type: ignore[no-any-return]


def orthogonal(matrices: Tensor) -> Tensor:
    """(K, m, n) -> (K, m, n): U V' of each U S V', nearly: singular values come out between about .7 and 1.2.

    By products alone (Newton and Schulz, a quintic): in bfloat16 on CUDA and under autocast, in float32 on other CPUs.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=LEAST)[:, None, None]
    x = x if x.device.type == "cpu" else x.bfloat16()
    for _ in range(ROUNDS):
        gram = x @ x.mT  # (K, m, m), of the smaller side
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return (x.mT if tall else x).to(matrices.dtype)


def hidden_matrices(model: nn.Module) -> frozenset[str]:
    """Names of the weights of linear layers inside of blocks (modules in a ModuleList): what Muon is for.

    A model, or a module inside of it, may offer `hidden_matrices() -> names` of its own.
    """
    for name, module in model.named_modules():
        tell = getattr(module, "hidden_matrices", None)
        if tell is not None:
            return frozenset(f"{name}.{own}" if name else own for own in tell())
    found = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            linear = [(inner, one) for inner, one in module.named_modules() if isinstance(one, nn.Linear)]
            found |= {f"{name}.{inner}.weight" for inner, _ in linear}
    return frozenset(found)
