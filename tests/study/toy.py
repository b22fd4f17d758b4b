"""The toy study of these tests: a network of one hidden layer, and a law that its losses can be computed from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.watch import Quiet
from flops_fit.scaling.law import Law
from flops_fit.scaling.rules import LrRule
from flops_fit.study import Study, Sweep
from flops_fit.train.synthetic import SyntheticTrainer

INPUTS = 8
LAW = Law(E=1.0, A=10.0, B=33.0, alpha=0.4, beta=0.4)  # best at D/N near 20, where the plan looks
BUDGETS = (1e8, 3e8, 1e9, 3e9)
DRAWS = 40  # the fewest that make an interval: these tests are about what runs, not about the law
MACHINE = {"seconds", "cpu_seconds", "joules", "peak_memory_bytes"}  # of a record: the machine, not the computation


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, 1))

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def samples(count: int = 2000, seed: int = 0) -> TensorDataset:
    x = torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, :1] * x[:, 1:2]).sin() + x.square().mean(1, keepdim=True))


def study(**changes: Any) -> Study:
    """Computed from LAW unless `trainer=None` is given."""
    given: dict[str, Any] = {
        "model_cls": Net, "model_size_param": "width", "dataset": samples(), "loss_fn": squared_error,
        "compute_budgets": BUDGETS, "size_multiple": 4, "max_epochs": 1e9, "lr": LrRule(0.3),
        "trainer": SyntheticTrainer(LAW),
    }  # fmt: skip
    return Study(**given | changes)


class Listener(Quiet):
    """Remembers what a sweep tells: lines, runs finished, and how many each part took from the journal."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.finished: list[RunResult] = []
        self.reused: list[int] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def begin(self, specs: Any, reused: int) -> None:
        self.reused.append(reused)

    def done(self, result: RunResult) -> None:
        self.finished.append(result)

    @property
    def specs(self) -> list[RunSpec]:
        return [result.spec for result in self.finished]

    @property
    def keys(self) -> set[str]:
        return {spec.key for spec in self.specs}


def find(one: Study, folder: Path, *, executor: Any = "inline", **options: Any) -> tuple[Any, Listener]:
    """(Result, what was told)."""
    listener = Listener()
    chosen: dict[str, Any] = {"resume": True, "extend": 2, "verify": None, "bootstrap": DRAWS}
    sweep = Sweep(one, executor=executor, workers=2, watch=listener)
    return sweep.find(folder, **chosen | options), listener


def content(folder: Path) -> Any:
    """result.json without what is of the machine: the clock and the memory of its process."""
    return _without_machine(json.loads((folder / "result.json").read_text()))


def _without_machine(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_machine(member) for name, member in value.items() if name not in MACHINE}
    return [_without_machine(member) for member in value] if isinstance(value, list) else value
