"""An average of a run's weights whose length is a share of the run, whatever its steps (docs/math.md, T1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flops_fit.errors import InputError

Numbers = NDArray[np.float64]

LONGEST = 0.25  # of a run: a power of 0.7; with a smaller one the average still knows the first steps


def power_of(length: float) -> float:
    """gamma of the profile t^gamma whose standard deviation is `length` of the run (T1b).

    Karras et al. 2024 (arXiv 2312.02696), Eq. 123: length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
    """
    if not 0 < length <= LONGEST:
        raise InputError(
            f"ema: got {length}; allowed is a share of the run above 0 and up to {LONGEST}, or None for none"
        )
    wide = length**-2
    return float(np.roots([1, 7, 16 - wide, 12 - wide]).real.max())


def shares(snapshots: Sequence[tuple[float, float]], step: float, length: float) -> Numbers:
    """(n,) shares of snapshots whose sum has most nearly the profile of an average of `length` at `step` (T1c).

    Args:
        snapshots: (step, length) of the averages that were kept.

    Raises:
        InputError: there are none.
    """
    if not snapshots:
        raise InputError("snapshots: got none; train with snapshots=2 or more")
    steps = np.array([at for at, _ in snapshots], dtype=float)
    powers = np.array([power_of(wide) for _, wide in snapshots])
    among = _overlap(steps[:, None], powers[:, None], steps, powers)  # (n, n)
    wanted = _overlap(steps, powers, np.array(step), np.array(power_of(length)))  # (n,)
    found = np.linalg.lstsq(among, wanted, rcond=None)[0]
    return np.asarray(found / found.sum(), dtype=np.float64)  # what never changed must come out as it was


def _overlap(s: Numbers, a: Numbers, t: Numbers, b: Numbers) -> Numbers:
    """Integral of the product of two profiles, of powers a at step s and b at step t (Karras et al. 2024, Eq. 151)."""
    within = np.where(s < t, (s / t) ** b, (t / s) ** a)
    return np.asarray((a + 1) * (b + 1) * within / ((a + b + 1) * np.maximum(s, t)), dtype=np.float64)


class PowerEMA:
    """Weights averaged with a profile that grows as t^gamma: after any number of steps the same picture of the run.

    An average of fixed decay remembers the untrained network in a short run; this one forgets it at the first step.
    """

    def __init__(self, model: nn.Module, length: float) -> None:
        self.power = power_of(length)
        self.average = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After optimiser step `step`, counted from 1: average <- beta average + (1 - beta) weights (T1a)."""
        beta = (1 - 1 / step) ** (self.power + 1)
        now = dict(model.named_parameters())
        names = list(self.average)
        torch._foreach_lerp_([self.average[n] for n in names], [now[n].detach() for n in names], 1 - beta)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights inside, with its own after."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self.average[name].copy_(value)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name in self.average:
                own = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name].copy_(own)
