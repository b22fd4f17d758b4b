"""What `flops-fit evaluate` is asked and what it answers: records that all kinds of bundles share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from flops_fit.errors import InputError
from flops_fit.evaluate.metric import Metric, table
from flops_fit.flow.solvers import FIXED

FEWEST = 20  # rows of a set whose distance to another says anything


@dataclass(frozen=True)
class Sampling:
    """How samples are generated to be judged. None: as the bundle has it.

    Args:
        samples: how many, of this `seed`.
        method, steps: of the solver.
        until: of sentences, the time at which samples are read, see `SentenceFlow.sample`; distances are of the whole
            way's samples.
        guidance: of pictures towards their class; 1: none.
    """

    samples: int
    seed: int = 0
    method: str | None = None
    steps: int | None = None
    until: float | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if self.samples < FEWEST:
            raise InputError(f"--samples: got {self.samples}; allowed are 0 (none) or at least {FEWEST}")
        if self.until is not None and not 0 < self.until <= 1:
            raise InputError(f"--until: got {self.until}; allowed is a time above 0, noise, up to 1, data")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise InputError(f"--guidance: got {self.guidance}; allowed are finite numbers from 0 on, 1 for none")
        if self.method not in (None, *FIXED, "dopri5"):
            raise InputError.unknown("method", self.method, [*FIXED, "dopri5"])

    @classmethod
    def asked(cls, samples: int, **how: Any) -> Sampling | None:
        """None for no samples. Raises InputError where it is said how to make them, and none are made."""
        if samples:
            return cls(samples, **how)
        plain = {one.name: one.default for one in fields(cls)}
        if told := [f"--{name}" for name, value in how.items() if value != plain[name]]:
            raise InputError(f"{', '.join(told)}: got without --samples, and nothing is generated; give --samples N")
        return None

    def filled(self, **usual: Any) -> Sampling:
        """What nobody asked for as the bundle has it. Raises InputError for what was asked for and is none of its."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if foreign := [f"--{name}" for name in given if name not in (*usual, "samples", "seed")]:
            raise InputError(f"{', '.join(foreign)}: this bundle's samples know no such thing; leave it out")
        return replace(self, **{name: value for name, value in usual.items() if name not in given})

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a bundle on data, and what is absent."""

    bundle: str
    data: str
    data_sha256: str
    metrics: tuple[Metric, ...]
    absent: Mapping[str, str] = field(default_factory=dict)
    by_time: Mapping[str, list[float]] = field(default_factory=dict)  # mean losses in bands of t
    by_class: Mapping[str, tuple[Metric, ...]] = field(default_factory=dict)
    sampled: Mapping[str, Any] = field(default_factory=dict)  # how samples were made; empty where none were
    measured_by: Mapping[str, str] = field(default_factory=dict)  # hashes of the networks that judged
    notes: tuple[str, ...] = ()  # what a reader must know of the numbers

    def to_dict(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle, "data": self.data, "data_sha256": self.data_sha256, "metrics": table(self.metrics),
            "absent": dict(self.absent), "by_time": dict(self.by_time),
            "by_class": {name: table(metrics) for name, metrics in self.by_class.items()},
            "sampled": dict(self.sampled), "measured_by": dict(self.measured_by), "notes": list(self.notes),
        }  # fmt: skip

    def __str__(self) -> str:
        width = max((len(metric.name) for metric in self.metrics), default=0)
        lines = [f"{self.bundle} on {self.data}"]
        lines += [
            f"{m.name:<{width}}  {m.value:>10.4g}   95% {m.lo:.4g} to {m.hi:.4g}   n = {m.n:,}" for m in self.metrics
        ]
        lines += [f"{name:<{width}}  absent: {reason}" for name, reason in self.absent.items()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
