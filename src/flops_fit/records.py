"""The small frozen records that travel between the floors: plan -> RunSpec -> RunResult -> fit.

Standard library only. Every record goes to JSON and back without loss (`to_dict`, `from_dict`).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Status = Literal["ok", "diverged", "failed"]
Role = Literal["sweep", "probe", "verify", "train"]

LABELS = frozenset({"budget", "role", "shared_steps"})  # why a run was asked for, and who paid; not what it computes


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Base of all records: JSON both ways, unknown fields refused."""

    def to_dict(self) -> dict[str, Any]:
        """Its fields by name, records inside as dicts too. What is not a record is not copied: asdict() is slow."""
        return {name: _without_records(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement(Record):
    """One size of a model, measured without training it. FLOPs are of forward and backward."""

    size: int
    params: int
    flops_per_token: float  # per token or sample, the unit of D
    how: str                # "measured on meta" | "measured on cpu" | "forward measured on meta, x3" | "6N rule"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec(Record):
    """One training run, described completely. Two equal keys mean the same computation."""

    study: str              # identity hash: model, data, objective and training options
    size: int               # value of the model's size parameter
    params: int             # N, counted on the model itself
    flops_per_token: float  # measured, forward and backward, per token (or sample)
    steps: int              # optimiser steps
    batch_size: int         # samples a step
    tokens: int             # D = steps x batch_size x tokens a sample
    lr: float               # peak learning rate
    seed: int
    budget: float           # label: the compute budget (FLOPs) that asked for this run
    role: Role = "sweep"    # label
    warmup_steps: int | None = None  # a number: a branch of the trunk that all runs of its `lane` share (Eq. P7)
    shared_steps: int = 0   # label: first steps of this run that a shorter one of its lane pays for

    @property
    def flops(self) -> float:
        """C of this run after rounding D to whole steps, in FLOPs."""
        return self.flops_per_token * self.tokens

    @property
    def cost(self) -> float:
        """FLOPs that this run adds to a sweep: C without the steps that a shorter run of its lane has already done."""
        return self.flops * (self.steps - self.shared_steps) / self.steps

    @property
    def lane(self) -> str:
        """Runs of one lane begin with the same steps, so they go one after the other; "" goes at any time."""
        if self.warmup_steps is None:
            return ""
        return f"{self.study}-{self.size}-{self.batch_size}-{self.lr!r}-{self.seed}-{self.warmup_steps}"

    @property
    def key(self) -> str:
        """Hash of everything that changes the outcome (labels do not)."""
        content = {name: value for name, value in self.to_dict().items() if name not in LABELS}
        if self.warmup_steps is None:
            del content["warmup_steps"]  # as before there were branches: journals of then stay valid
        return content_hash(content)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult(Record):
    """What one run really did. `loss` is None exactly when `status` is not "ok"."""

    spec: RunSpec
    status: Status
    loss: float | None                 # mean loss on the held-out windows, the same for all runs
    reason: str = ""                   # why the run is not "ok"
    tokens: int = 0                    # D really trained on
    flops: float = 0.0                 # C of the training behind the loss, shared steps included
    spent: float | None = None         # FLOPs that were done for this run alone; None: all of `flops`
    seconds: float = 0.0               # wall time of the run, sittings before a resume included
    cpu_seconds: float = field(default=0.0, compare=False)      # of all threads of the process, likewise
    joules: float | None = field(default=None, compare=False)  # of the machine meanwhile, where it tells them
    peak_memory_bytes: int = 0         # resident memory of the process in this run (CPU), or allocated (CUDA)
    curve: tuple[tuple[int, float], ...] = ()   # (tokens, training loss), thinned
    looks: tuple[tuple[int, float], ...] = ()   # (tokens, held-out loss) from untrained on, when asked for
    environment: dict[str, str] = field(default_factory=dict)  # device, precision, versions
    synthetic: bool = False            # True: computed by SyntheticTrainer, nothing was trained

    def __post_init__(self) -> None:
        finite = self.loss is not None and math.isfinite(self.loss)
        if finite != (self.status == "ok"):
            raise ValueError(f"RunResult: status {self.status!r} with loss {self.loss!r}; only 'ok' runs have a loss")

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        data = dict(data)
        data["spec"] = RunSpec.from_dict(data["spec"])
        for name in ("curve", "looks"):
            data[name] = tuple((int(tokens), float(loss)) for tokens, loss in data.get(name, ()))
        return cls(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped(Record):
    """A pair of budget and size that was not run, with the reason shown to the user."""

    budget: float | None
    size: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut(Record):
    """A finished run that the law was not fitted to, and why."""

    row: int      # position in the table of runs
    reason: str


def _without_records(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, tuple) and value and isinstance(value[0], Record):
        return tuple(one.to_dict() for one in value)
    return value


def seed_of(*parts: int) -> int:
    """A seed for each tuple of whole numbers, of 32 bits: torch's generator on the CPU looks at no more."""
    return int(content_hash(list(parts), 8), 16)


def content_hash(content: Any, length: int = 16) -> str:
    """Hash of a JSON-able value; independent of key order and of the machine."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
