"""What happens to one rank is told to all: they go on together, begin anew together, or fail together."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import RanksExecutor
from flops_fit.runs.task import Progress
from flops_fit.train.engine import Trainer
from flops_fit.train.loss import Objective
from train.test_checkpoint import KINDS, SHAPE, branch, same
from train.test_engine import data, spec, squared, trainer

SAME = 1e-5  # relative: sums in another order, float32
HANG = 60.0  # seconds without progress: a scenario that leaves a rank waiting ends the group, and all tests here fail
LAST = 25    # the training step, of 30, at which something happens


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


@dataclass
class Fails:
    """A loss that raises in rank 1 (and `other` in rank 0), while training or, `evaluating`, while not."""

    error: Exception | None
    other: Exception | None = None
    evaluating: bool = False
    most: int = 0  # samples that still fit
    steps: int = 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.steps += torch.is_grad_enabled()
        mine = self.error if rank() else self.other
        due = self.steps >= LAST and torch.is_grad_enabled() != self.evaluating and len(outputs) > self.most
        if mine is not None and due:
            raise mine
        return squared(outputs, targets)


class Unreadable(Dataset[Any]):
    """Whose samples cannot be fetched any more, by rank 1, from some point of the run on."""

    def __init__(self) -> None:
        self.fetched = 0

    def __len__(self) -> int:
        return len(data())

    def __getitem__(self, index: int) -> Any:
        self.fetched += rank()
        if self.fetched > 1000:
            raise OSError("disk is gone")
        x, y = data().tensors
        return x[index], y[index]


def objects(error: type[Exception]) -> Progress:
    def progress(step: int, loss: float) -> None:
        if step == LAST and not rank():
            raise error("nobody listens")

    return progress


def failing(*errors: Exception | None, **when: Any) -> Trainer:
    """With enough data that each rank has a batch to evaluate."""
    return trainer(dataset=data(4000), objective=Objective(loss_fn=Fails(*errors, **when)), **SHAPE)


def states(folder: Path, one: Trainer) -> Iterator[tuple[str, RunResult]]:
    """What becomes of states that not all ranks can go on from. `folder` holds one that a single process left."""
    yield "of one process", one.on(checkpoints=folder)(branch(50))
    both = folder / "both"
    yield "shorter", one.on(checkpoints=both)(branch(24))
    [path] = both.iterdir()
    kept = torch.load(path, weights_only=True)
    yield "not everywhere", one.on(checkpoints=both if rank() == 0 else folder / "nothing")(branch(50))
    mine = folder / f"of {rank()}"
    mine.mkdir(exist_ok=True)
    torch.save(kept | ({"random": kept["random"][:1]} if rank() else {}), mine / path.name)
    yield "misfit in one", one.on(checkpoints=mine)(branch(50))


SCENARIOS: dict[str, Callable[[], RunResult]] = {
    "loss": lambda: failing(ValueError("bad sample")).on(ranks=2)(spec()),
    "evaluation": lambda: failing(ValueError("bad sample"), evaluating=True).on(ranks=2)(spec()),
    "data": lambda: trainer(dataset=Unreadable(), **SHAPE).on(ranks=2)(spec(steps=300, tokens=4800)),
    "listener": lambda: KINDS["table"].on(ranks=2)(spec(), objects(BrokenPipeError)),
    "both kinds": lambda: failing(ValueError("bad sample"), MemoryError("full")).on(ranks=2)(spec()),
    "memory": lambda: failing(torch.OutOfMemoryError("full"), most=3).on(ranks=2)(spec()),
    "memory while evaluating": lambda: failing(MemoryError("full"), most=5, evaluating=True).on(ranks=2)(spec()),
}


def told(call: Callable[[], RunResult]) -> Any:
    try:
        return call().to_dict()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Everything:
    """A task that carries out all scenarios, so that two processes are started once; each writes what it met."""

    folder: Path

    def __call__(self, run: RunSpec, progress: Progress) -> RunResult:
        one = KINDS["random"].on(ranks=2)
        alone = one(branch(50))
        met = {name: told(call) for name, call in SCENARIOS.items()}
        met |= {"undisturbed": alone.to_dict(), **{name: r.to_dict() for name, r in states(self.folder, one)}}
        (self.folder / f"{rank()}.json").write_text(json.dumps(met))
        return dataclasses.replace(alone, spec=run)


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What rank 0 and rank 1 met in each scenario: a message, or a result."""
    folder = tmp_path_factory.mktemp("ranks")
    KINDS["random"].on(checkpoints=folder)(branch(24))
    executor = RanksExecutor(2, retries=0, patience=HANG)
    [result] = executor.run([spec()], Everything(folder), lambda event: None)
    assert result.ok, result.reason
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(("scenario", "own", "words"), [
    ("loss", 1, "ValueError: bad sample"),
    ("evaluation", 1, "ValueError: bad sample"),
    ("data", 1, "OSError: disk is gone"),
    ("listener", 0, "BrokenPipeError: nobody listens"),
    ("both kinds", 1, "ValueError: bad sample"),
])  # fmt: skip
def test_an_error_in_one_rank_fails_the_run_in_all(
    scenario: str, own: int, words: str, met: list[dict[str, Any]]
) -> None:
    assert met[own][scenario] == words
    told = f"FlopsFitError: rank {own} of this run met {words} (test_ranks_agree.py:"  # and the line
    assert met[1 - own][scenario].startswith(told)


@pytest.mark.parametrize(("scenario", "pieces"), [("memory", "4"), ("memory while evaluating", "2")])
def test_all_ranks_cut_the_batch_when_one_has_no_memory(
    scenario: str, pieces: str, met: list[dict[str, Any]]
) -> None:
    results = [RunResult.from_dict(one[scenario]) for one in met]
    assert same(*results)
    assert results[0].environment["micro batches"] == pieces
    assert results[0].loss == pytest.approx(failing(None)(spec()).loss, rel=SAME)


@pytest.mark.parametrize("scenario", ["of one process", "not everywhere", "misfit in one"])
def test_a_state_that_one_rank_cannot_use_is_used_by_none(scenario: str, met: list[dict[str, Any]]) -> None:
    for one in met:
        result = RunResult.from_dict(one[scenario])
        assert same(result, RunResult.from_dict(one["undisturbed"]))
        assert result.spent == result.flops
