"""Ranks that share a run: the loss is that of one process, whatever the batch, and user code sees its own model."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from flops_fit.errors import InputError
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.executors import choose
from flops_fit.train.engine import Trainer
from flops_fit.train.parallel import Ranks, join
from train.test_checkpoint import SHAPE, branch
from train.test_engine import Builds, spec, trainer

SAME = 1e-5  # relative: sums in another order, float32; the bar for two ranks against one process


class Blocks(nn.Module):
    """Has what parallel training trips over: a list of blocks, and a part that only some samples use."""

    def __init__(self, width: int, rare: bool = False) -> None:
        super().__init__()
        self.seldom = rare
        self.first = nn.Linear(4, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.rare, self.last = nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        for block in self.blocks:
            hidden = hidden + block(hidden).tanh()
        out: Tensor = self.last(hidden)
        if not self.seldom:
            return out + self.rare(hidden)
        chosen = x[:, :1] > 1.5
        return torch.where(chosen, out + self.rare(hidden), out) if bool(chosen.any()) else out


def seldom(width: int) -> Blocks:
    return Blocks(width, rare=True)


class FromTheMachine(nn.Linear):
    """Weights that no seed decides."""

    def __init__(self, width: int) -> None:
        super().__init__(4, 1)
        nn.init.constant_(self.bias, int.from_bytes(os.urandom(2), "big"))


def ignore(event: Any) -> None: ...


def shared(one: Trainer, *runs: RunSpec, **placement: Any) -> list[RunResult]:
    """The same runs, each carried out by two processes."""
    found = list(choose("ranks", 2).run(list(runs), one.on(ranks=2, **placement), ignore))
    assert all(result.ok for result in found), [result.reason for result in found]
    return found


TABLE = trainer(**SHAPE)
DEEP = trainer(builder=Builds(Blocks), **SHAPE)
LONE = spec(batch_size=1, tokens=30)  # nothing is left for the second rank
ODD = spec(batch_size=7, tokens=210)


def test_two_ranks_reach_the_loss_of_one_process() -> None:
    runs = [spec(), ODD, LONE]
    for one in (TABLE, DEEP, trainer(builder=Builds(seldom), **SHAPE)):
        alone = {run: one(run).loss for run in runs}
        for result in shared(one, *runs):
            assert result.loss == pytest.approx(alone[result.spec], rel=SAME)
            assert result.environment["ranks"] == "2"
            assert (result.tokens, result.flops) == (result.spec.tokens, result.spec.flops)


def test_each_rank_accumulates_micro_batches() -> None:
    [result] = shared(TABLE, spec(), micro_batch=3)
    assert result.loss == pytest.approx(TABLE(spec()).loss, rel=SAME)
    assert result.environment["micro batches"] == "3"  # 8 samples a rank, 3 at a time


def test_parameters_split_over_the_ranks_reach_the_same_loss(tmp_path: Path) -> None:
    """FSDP2, with states kept on the way: the second branch goes on from the trunk of the first."""
    runs = [branch(24), branch(50)]
    results = shared(DEEP, *runs, shard=True, checkpoints=tmp_path, checkpoint_seconds=1e-9)
    for run, result in zip(runs, results, strict=True):
        assert result.loss == pytest.approx(DEEP(run).loss, rel=SAME)
        assert result.environment["sharded"] == "FSDP2"
    assert results[1].spent is not None and results[1].spent < results[1].flops


def test_a_model_whose_weights_no_seed_decides_is_refused() -> None:
    one = trainer(builder=Builds(FromTheMachine))
    [result] = choose("ranks", 2).run([spec()], one.on(ranks=2), ignore)
    assert result.status == "failed"
    assert "the ranks built different weights" in result.reason


def test_fewer_processes_than_asked_for_are_not_taken_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="asked for 2, but WORLD_SIZE says 1"):
        join(2, torch.device("cpu"))
    with pytest.raises(InputError, match="asked for 2, but WORLD_SIZE says 1"):
        TABLE.on(ranks=2)(spec())


@given(batch=st.integers(1, 300), ranks=st.integers(1, 9), micro=st.none() | st.integers(1, 400))
def test_the_parts_of_a_batch_are_the_batch(batch: int, ranks: int, micro: int | None) -> None:
    parts = [Ranks(rank, ranks).cuts(batch, micro) for rank in range(ranks)]
    samples = [sample for cuts in parts for cut in cuts for sample in range(batch)[cut]]
    assert samples == list(range(batch))  # each once, in order
    assert all(cut.stop - cut.start <= (micro or batch) for cuts in parts for cut in cuts)
    sizes = [sum(cut.stop - cut.start for cut in cuts) for cuts in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_sharded_batch_too_small_for_all_ranks_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size: 2 samples leave nothing for one of 3 ranks"):
        Ranks(0, 3, sharded=True).cuts(2, None)
    assert dataclasses.replace(Ranks(0, 3), sharded=True).cuts(3, None) == (slice(0, 1),)
