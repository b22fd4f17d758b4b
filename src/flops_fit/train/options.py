"""How a study trains its runs (part of its identity), and how one machine carries them out (not part of it)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flops_fit.errors import InputError
from flops_fit.records import RunSpec
from flops_fit.train.ema import power_of
from flops_fit.train.machine import device_of
from flops_fit.train.precision import PRECISIONS
from flops_fit.train.schedule import Shape, wsd

Show = Callable[[nn.Module, int], None]
Look = Callable[[int, float], None]
MOST_WARMUP = 0.1
OPTIMIZERS = ("adamw", "muon")
CHECKPOINT_SECONDS = 60.0  # a shorter run is done again sooner than a reader notices


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How every run of a study is trained; part of the study's identity."""

    warmup: float = 0.1         # fraction of the run, at most 0.1; on a trunk, of its shortest run (Eq. P7)
    decay: float = 0.5          # fraction of the run over which the learning rate falls to zero
    shape: Shape = "linear"     # of the decay
    weight_decay: float = 0.1   # on matrices; vectors and scalars are not decayed
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    clip: float = 1.0           # largest norm of the gradient
    optimizer: str = "adamw"    # "muon": on the matrices of blocks, AdamW on all else (train.muon)
    device: str = "auto"        # "auto": CUDA when there
    precision: str = "auto"     # "fp32"; "auto": bf16 autocast on CUDA; "fast": on CPUs too that multiply it faster
    heads_first: float = 0.0    # share of the run in which the model is frozen but for its heads (model.freeze(bool))
    ema: float | None = None    # length of the average of weights that is evaluated, as a share of the run (Eq. T1)
    looks: int = 0              # at the held-out loss on the way, equally far apart; the last one is at the end
    snapshots: int = 0          # of two averages on the way, so that one of any length can be had after the run
    learns_by: float | None = None  # share of the run by which a look must beat the untrained model, or it fails
    patience: int = 0           # looks without a new best after which the run ends; 0: it never ends early

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= MOST_WARMUP:
            raise InputError(
                f"warmup: got {self.warmup}; allowed is 0 to {MOST_WARMUP} of the run "
                "(longer bends the law, docs/math.md P4)"
            )
        if not 0 <= self.decay <= 1 - self.warmup:
            raise InputError(f"decay: got {self.decay}; allowed is 0 to {1 - self.warmup:g} (1 - warmup) of the run")
        if self.shape not in ("linear", "1-sqrt"):
            raise InputError(f'shape: got {self.shape!r}; allowed are "linear" and "1-sqrt" (how the decay falls)')
        if self.optimizer not in OPTIMIZERS:
            raise InputError.unknown("optimizer", self.optimizer, OPTIMIZERS)
        if self.precision not in PRECISIONS:
            raise InputError.unknown("precision", self.precision, PRECISIONS)
        if not 0 <= self.heads_first < 1:
            raise InputError(f"heads_first: got {self.heads_first}; allowed is a share of the run from 0 to below 1")
        if self.ema is not None:
            power_of(self.ema)
        if self.learns_by is not None and not (0 < self.learns_by <= 1 and self.looks):
            raise InputError(f"learns_by: got {self.learns_by}; allowed is a share of the run, and it takes looks")
        if self.snapshots < 0:
            raise InputError(f"snapshots: got {self.snapshots}; allowed are whole numbers from 0 on")
        if self.looks < 0 or self.patience < 0 or (self.patience and not self.looks):
            raise InputError(
                f"looks, patience: got {self.looks}, {self.patience}; allowed are whole numbers from 0 on, and to end "
                "a run early takes looks"
            )

    def identity(self) -> dict[str, Any]:
        """All fields that change a run. Later ones are left out where unused: journals of before stay valid."""
        unused = {
            "optimizer": "adamw", "heads_first": 0.0, "ema": None, "looks": 0, "snapshots": 0, "learns_by": None,
            "patience": 0, "precision": "auto",
        }  # fmt: skip
        return {name: value for name, value in asdict(self).items() if name not in unused or value != unused[name]}

    def torch_device(self) -> torch.device:
        return device_of(self.device)

    def lr_factor(self, spec: RunSpec, step: int) -> float:
        """Factor of the peak learning rate at `step` (0-based) of a run (Eq. P4; a branch of a trunk: P7)."""
        warmup = self.warmup * spec.steps if spec.warmup_steps is None else spec.warmup_steps
        return wsd(step, spec.steps, warmup, self.decay * spec.steps, self.shape)


BRANCHED = TrainOptions(warmup=0.05, decay=0.25, shape="1-sqrt")
"""The default of a trunk with branches: a short decay, since it is paid once for each D, of the shape that loses least
by being short; and a warmup that is no large part of its shortest run (experiments/gpt-python/LOG.md)."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a machine carries runs out: changes no more than the last digits of a loss, so no part of the identity."""

    micro_batch: int | None = None     # samples that go through the model at once; gradients add up to the whole batch
    threads: int | None = None         # CPU threads of a run; None: as many as the process has
    ranks: int = 1                     # processes that share a run (executor "ranks")
    shard: bool | None = None          # parameters split over the ranks (FSDP2); None: when a device is too small
    checkpoints: Path | None = None    # folder of the states of unfinished runs; None: a killed run begins anew
    weights: Path | None = None        # folder for the run's last and best weights (train.keep); None: not kept
    checkpoint_seconds: float = CHECKPOINT_SECONDS  # at least so long between two states of a run; 0: after each step
    checkpoint_every: int | None = None  # steps from one state to the next, instead of seconds
    compiled: bool = False             # training steps by torch.compile; a dropout draws other numbers then
    show: Show | None = None           # (model with averaged weights, step), called on the way
    show_every: int | None = None      # steps from one call to the next
    look: Look | None = None           # is told (step, held-out loss) after every look

    def __post_init__(self) -> None:
        if self.compiled and self.ranks > 1:
            raise InputError(f"compiled: got true with ranks={self.ranks}; allowed is one rank: leave one of them out")
        for name in ("micro_batch", "threads", "ranks", "checkpoint_every", "show_every"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name}: got {value!r}; allowed is a whole number from 1 on; leave it out for all")
