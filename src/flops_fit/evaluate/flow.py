"""What a velocity network learned: its held-out loss beside those of predictors that need no training, by time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flops_fit.evaluate.metric import Metric, mean_of, ratio_of
from flops_fit.flow.loss import squared_error
from flops_fit.flow.paths import Path
from flops_fit.flow.solvers import Velocity, solve
from flops_fit.progress import shown

TIMES = 40  # midpoints of equal slices of [0, 1]
BANDS = 10  # of time, in tables
AT_ONCE = 512


@dataclass(frozen=True)
class Losses:
    """(n, TIMES) squared errors of the velocity by held-out row and time; the noise is the same for all predictors."""

    times: NDArray[np.float64]
    by_name: Mapping[str, NDArray[np.float64]]

    def metrics(self, model: str = "model") -> list[Metric]:
        """Mean losses, and the share of the zero predictor's that is explained: 1 - loss / loss_zero."""
        rows = {name: losses.mean(axis=1) for name, losses in self.by_name.items()}  # (n,) each
        found = [mean_of("loss" if name == model else f"loss_{name}", values) for name, values in rows.items()]
        for name in (name for name in rows if name != "zero"):
            label = "explained" if name == model else f"explained_{name}"
            found.append(_explained(label, rows[name], rows["zero"]))
        return found + (self._explained_by_time(model) if model in rows else [])

    def _explained_by_time(self, model: str) -> list[Metric]:
        """What the model explains in each band of time: explained_t0.05 is near the noise, explained_t0.95 the data."""
        own, zero = (self.by_name[name].reshape(-1, BANDS, TIMES // BANDS).mean(axis=2) for name in (model, "zero"))
        middles = self.times.reshape(BANDS, -1).mean(axis=1)
        return [
            _explained(f"explained_t{middle:.2f}", own[:, band], zero[:, band])
            for band, middle in enumerate(middles)
        ]

    def by_time(self) -> dict[str, list[float]]:
        """Mean loss of each predictor in each band of time, and the bands' middles."""
        middles = self.times.reshape(BANDS, -1).mean(axis=1)
        means = {name: losses.mean(axis=0).reshape(BANDS, -1).mean(axis=1) for name, losses in self.by_name.items()}
        return {"t": middles.tolist(), **{name: values.tolist() for name, values in means.items()}}


@torch.no_grad()
def held_out_losses(
    velocities: Mapping[str, Callable[..., Tensor]], path: Path, data: Tensor, seed: int = 0,
    conditions: Mapping[str, Tensor] | None = None,
) -> Losses:  # fmt: skip
    """Every predictor's errors on held-out data (n, ...): uniform t, independent noise, the same for all of them.

    Args:
        velocities: each (x (B, ...), t (B,), **conditions of those rows) -> like x.
        conditions: (n, ...) of the rows, by name.
    """
    generator = torch.Generator().manual_seed(seed)
    times = (torch.arange(TIMES, dtype=torch.float64) + 0.5) / TIMES
    found: dict[str, list[Tensor]] = {name: [] for name in velocities}
    for time in shown(times, TIMES, f"losses of {len(data):,} rows", quiet=len(data) < AT_ONCE // 2):
        noise = torch.randn(data.shape, generator=generator).to(data)
        for name in velocities:
            found[name].append(torch.empty(len(data), dtype=torch.float64))
        for start in range(0, len(data), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            point = path.point(noise[rows], data[rows], time.to(data).expand(len(data[rows])))
            known = {name: values[rows] for name, values in (conditions or {}).items()}
            for name, velocity in velocities.items():
                found[name][-1][rows] = squared_error(velocity(point.x, point.t, **known), point).double().cpu()
    return Losses(times.numpy(), {name: torch.stack(columns, dim=1).numpy() for name, columns in found.items()})


@torch.no_grad()
def straightness(velocity: Velocity, noise: Tensor, steps: int = 32) -> Metric:
    """How far paths are from straight lines, in squared units a number: 0 where one Euler step is exact (V5; Liu et al.
    2023, arXiv 2209.03003, Eq. 6). A flow that leads nowhere is straight too: read it beside the quality of samples.

    Args:
        noise: (n, ...) where the paths begin.
        steps: of Heun's method along them.
    """
    found = solve(velocity, noise, "heun", steps, trajectory=True)
    assert found.trajectory is not None
    x = found.trajectory  # (steps + 1, n, ...)
    gap = (x[-1] - x[0]) - (x[1:] - x[:-1]) * steps  # chords of equal lengths of time, for the velocity there
    return mean_of("straightness", gap.square().flatten(2).mean(dim=(0, 2)).double().cpu().numpy())


def _explained(name: str, losses: NDArray[np.float64], zero: NDArray[np.float64]) -> Metric:
    return ratio_of(name, zero - losses, zero)
