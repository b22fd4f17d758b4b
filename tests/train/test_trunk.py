"""What the runs of a lane leave for each other: the furthest state of their trunk, or the mark that it diverged."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from flops_fit.scaling.rules import stable_steps
from flops_fit.train.checkpoint import Checkpoints
from flops_fit.train.engine import Trainer
from flops_fit.train.options import BRANCHED
from train.test_checkpoint import SHAPE, Dropped, branch, killed_at, same
from train.test_engine import BATCH, Builds, data, spec, trainer

TABLE = trainer(**SHAPE)
BAD_STEP = 30  # whose batch holds the sample that makes the loss NaN


def poisoned() -> Trainer:
    """Diverges at BAD_STEP: a sample of that batch, and of none before, has no target."""
    clean = data(2000)
    order = trainer(dataset=clean).source.batches(BATCH, spec().seed)
    x, _ = next(itertools.islice(order, BAD_STEP, None))
    targets = clean.tensors[1].clone()
    targets[(clean.tensors[0] == x[0]).all(1)] = torch.nan
    return trainer(dataset=TensorDataset(clean.tensors[0], targets), builder=Builds(Dropped), **SHAPE)


POISONED = poisoned()


def test_a_shorter_branch_that_comes_later_leaves_the_longer_trunk(tmp_path: Path) -> None:
    one = TABLE.on(checkpoints=tmp_path)
    for steps, own in ((130, 130), (24, 24), (300, 300 - stable_steps(130, BRANCHED.decay))):
        assert one(branch(steps)).spent == pytest.approx(300.0 * BATCH * own), steps


@pytest.mark.parametrize("order", [(24, 50, 70, 130), (130, 24, 70, 33, 50), (33, 50, 41, 40, 130)])
def test_a_longer_branch_diverges_where_its_lane_did(order: tuple[int, ...], tmp_path: Path) -> None:
    """The same record as alone, without the steps: those with the trunk's learning rate are the same for all."""
    one, marked = POISONED.on(checkpoints=tmp_path), False
    for steps in order:
        result, alone = one(branch(steps)), POISONED(branch(steps))
        assert same(dataclasses.replace(result, spent=alone.spent), alone)
        assert alone.ok == (steps <= BAD_STEP)
        on_the_trunk = stable_steps(steps, BRANCHED.decay) > BAD_STEP
        assert (result.spent == 0.0) == (marked and on_the_trunk), steps
        if on_the_trunk:
            assert f"became nan at step {BAD_STEP} of {steps}" in result.reason
            assert result.tokens == (BAD_STEP + 1) * BATCH
        marked = marked or on_the_trunk


def test_a_run_that_diverged_and_was_not_recorded_is_recorded_the_same(tmp_path: Path) -> None:
    one = POISONED.on(checkpoints=tmp_path)
    one(branch(24))
    first = one(branch(50))
    assert first.spent == pytest.approx(300.0 * BATCH * (BAD_STEP + 1 - 18))
    assert same(one(branch(50)), first)


def test_a_study_that_begins_anew_knows_no_state_and_no_mark(tmp_path: Path) -> None:
    one = POISONED.on(checkpoints=tmp_path, checkpoint_seconds=0.0)
    one(branch(50)), killed_at(one, spec(), 8)
    assert len(list(tmp_path.iterdir())) > 1
    Checkpoints(tmp_path).clear()
    assert list(tmp_path.iterdir()) == []
    assert one(branch(130)).spent == 300.0 * BATCH * (BAD_STEP + 1)
