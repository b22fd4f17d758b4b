"""Which times a training step looks at (docs/math.md, F4). Each sampler is a function (n, device) -> (n,)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flops_fit.errors import InputError


@dataclass(frozen=True)
class Times:
    """A mixture: with probability `uniform` a uniform time, else a logit-normal one of `mean` and `deviation`.

    The draws of one batch are stratified: n equal slices of probability hold one time each. Their mean over many
    batches is that of independent draws, and the loss of a batch varies less (variational diffusion models, Kingma et
    al. 2021, arXiv 2107.00630, appendix I.1).

    Args:
        uniform: 1: uniform; 0: logit-normal (Esser et al. 2024, arXiv 2403.03206, section 3.1).
        mean: of logit(t); below 0 leans to noise.
        deviation: of logit(t).
    """

    uniform: float = 1.0
    mean: float = 0.0
    deviation: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.uniform <= 1:
            raise InputError(f"uniform: got {self.uniform}; allowed is a probability, 0 to 1")
        if not self.deviation > 0:
            raise InputError(f"deviation: got {self.deviation}; allowed is a number above 0")

    def __call__(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """(n,) times in [0, 1], from torch's global generator."""
        flat = _stratified(n, device)
        if self.uniform == 1:
            return flat
        normal = self.mean + self.deviation * torch.special.ndtri(_stratified(n, device))
        return torch.where(torch.rand(n, device=device) < self.uniform, flat, torch.sigmoid(normal))


def _stratified(n: int, device: torch.device | str) -> Tensor:
    """(n,): one uniform draw in each of n equal slices of [0, 1], in random order."""
    return torch.rand(n, device=device).add_(torch.randperm(n, device=device)).div_(n)


TIMES: dict[str, Callable[[], Times]] = {
    "uniform": Times,
    "logit-normal": lambda: Times(uniform=0.0),
    "mixture": lambda: Times(uniform=0.2, mean=-0.4),
}


def times_named(name: str) -> Times:
    if name not in TIMES:
        raise InputError.unknown("times", name, TIMES)
    return TIMES[name]()
