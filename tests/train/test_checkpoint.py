"""A run that is killed, branched, or short of memory or disk ends with the loss of the run that nothing happened to."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from flops_fit.records import RunResult, RunSpec
from flops_fit.scaling.rules import stable_steps
from flops_fit.train.engine import CURVE_POINTS, Trainer, thinned
from flops_fit.train.loss import Objective
from flops_fit.train.options import BRANCHED
from train.test_engine import BATCH, Builds, data, spec, trainer

REORDERED = 1e-5  # relative: sums of a batch in another order, float32, over 30 steps
MACHINE = {"seconds": 0.0, "peak_memory_bytes": 0}  # what is of the machine and not of the computation


class Dropped(nn.Module):
    """Draws random numbers in every forward pass, from all three global generators."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        noise = random.random() + float(np.random.rand()) if self.training else 0.0
        hidden = nn.functional.dropout(self.first(x).tanh(), 0.2, self.training)
        return self.second(hidden) + 0.01 * noise  # type: ignore[no-any-return]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        x, y = data().tensors
        return zip(x, y, strict=True)


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours may catch it."""


SHAPE = {"decay": BRANCHED.decay, "shape": BRANCHED.shape}
KINDS = {
    "table": trainer(**SHAPE),
    "stream": trainer(dataset=Stream(), **SHAPE),
    "random": trainer(builder=Builds(Dropped), **SHAPE),
}


def branch(steps: int) -> RunSpec:
    return spec(steps=steps, tokens=steps * BATCH, warmup_steps=4)


def same(one: RunResult, other: RunResult) -> bool:
    return dataclasses.replace(one, **MACHINE) == dataclasses.replace(other, **MACHINE)


def killed_at(one: Trainer, run: RunSpec, step: int) -> None:
    def progress(done: int, loss: float) -> None:
        if done == step:
            raise Killed

    with pytest.raises(Killed):
        one(run, progress)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", [spec(), branch(30)], ids=["own", "branch"])
def test_a_killed_run_goes_on_bit_identically(kind: str, run: RunSpec, tmp_path: Path) -> None:
    undisturbed = KINDS[kind](run)
    one = KINDS[kind].on(checkpoints=tmp_path, checkpoint_seconds=0.0)
    for step in (7, 8, 25, 30):
        killed_at(one, run, step)
    assert same(one(run), undisturbed)
    assert undisturbed.spent == undisturbed.flops


def test_what_was_kept_is_not_done_again(tmp_path: Path) -> None:
    one = KINDS["table"].on(checkpoints=tmp_path, checkpoint_seconds=0.0)
    killed_at(one, spec(), 20)
    told: list[tuple[int, bool]] = []
    one(spec(), lambda step, loss: told.append((step, math.isnan(loss))))
    assert told[:2] == [(19, True), (20, False)]  # the state of step 19 was on the disk when step 20 told its loss


@pytest.mark.parametrize("kind", KINDS)
def test_branches_of_a_trunk_are_the_runs_that_each_would_be_alone(kind: str, tmp_path: Path) -> None:
    one, before = KINDS[kind].on(checkpoints=tmp_path), 0
    for steps in (24, 50, 130):
        result, alone = one(branch(steps)), KINDS[kind](branch(steps))
        assert same(dataclasses.replace(result, spent=alone.spent), alone)
        assert result.spent == pytest.approx(300.0 * BATCH * (steps - before))
        planned = dataclasses.replace(branch(steps), shared_steps=before)
        assert result.spent == pytest.approx(planned.cost)
        assert result.curve[-1][0] == steps * BATCH and len(result.curve) <= CURVE_POINTS
        before = stable_steps(steps, BRANCHED.decay)


@settings(max_examples=6, deadline=None)
@given(order=st.permutations([20, 33, 40, 57]), kill=st.integers(1, 60))
def test_branches_do_not_depend_on_their_order_or_on_kills(
    order: list[int], kill: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    one = KINDS["random"].on(checkpoints=tmp_path_factory.mktemp("states"), checkpoint_seconds=0.0)
    for steps in order:
        run = branch(steps)
        if kill <= steps:
            _killed_if_reached(one, run, kill)
        assert same(dataclasses.replace(one(run), spent=0.0), dataclasses.replace(ALONE[steps], spent=0.0))


def _killed_if_reached(one: Trainer, run: RunSpec, step: int) -> None:
    def progress(done: int, loss: float) -> None:
        if done == step:
            raise Killed

    with contextlib.suppress(Killed):
        one(run, progress)


ALONE = {steps: KINDS["random"](branch(steps)) for steps in (20, 33, 40, 57)}


def test_other_trunks_are_not_mistaken_for_this_one(tmp_path: Path) -> None:
    one = KINDS["table"].on(checkpoints=tmp_path)
    one(branch(24))
    for change in ({"lr": 0.01}, {"seed": 6}, {"batch_size": 8, "tokens": 50 * 8}, {"warmup_steps": 5}, {"size": 9}):
        run = dataclasses.replace(branch(50), **change)
        assert same(one(run), KINDS["table"](run)), change


@pytest.mark.parametrize("content", [b"", b"torn", b"PK\x03\x04 half of an archive"], ids=["empty", "text", "torn"])
def test_a_damaged_state_costs_time_only(content: bytes, tmp_path: Path) -> None:
    one = KINDS["table"].on(checkpoints=tmp_path, checkpoint_seconds=0.0)
    killed_at(one, branch(30), 28)
    files = list(tmp_path.iterdir())
    assert len(files) == 2  # its own state, and that of the trunk
    for path in files:
        path.write_bytes(content)
    assert same(one(branch(30)), KINDS["table"](branch(30)))


def test_a_state_of_another_version_is_not_used(tmp_path: Path) -> None:
    one = KINDS["table"].on(checkpoints=tmp_path)
    one(branch(24))
    [path] = tmp_path.iterdir()
    torch.save(torch.load(path, weights_only=True) | {"format": 0}, path)
    assert one(branch(50)).spent == branch(50).flops


def test_a_state_of_another_number_of_ranks_or_kind_of_device_is_not_used(tmp_path: Path) -> None:
    one = KINDS["table"].on(checkpoints=tmp_path)
    one(branch(24))
    [path] = tmp_path.iterdir()
    kept = torch.load(path, weights_only=True)
    for place in ("2 x cpu", "1 x cuda", None):
        for step in (kept["step"], 10**6):
            torch.save(kept | {"place": place, "step": step}, path)
            assert one(branch(50)).spent == branch(50).flops
        assert torch.load(path, weights_only=True)["by"] == branch(50).key  # nor does it stand in the way of a new one
        torch.save(kept, path)


DAMAGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a layer of another shape": lambda kept: {"model": kept["model"] | {"second.weight": torch.zeros(2, 8)}},
    "a missing group": lambda kept: {"optimizer": kept["optimizer"] | {"param_groups": []}},
    "no generators": lambda kept: {"random": []},
    "half of the generators": lambda kept: {"random": [kept["random"][0] | {"torch": torch.zeros(3)}]},
    "a curve of something else": lambda kept: {"curve": [None]},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_that_cannot_be_restored_costs_time_only(damage: str, tmp_path: Path) -> None:
    """What was loaded of it before it was refused must not train on; nor may the numbers drawn meanwhile differ."""
    one = KINDS["random"].on(checkpoints=tmp_path)
    one(branch(24))
    [path] = tmp_path.iterdir()
    kept = torch.load(path, weights_only=True)
    torch.save(kept | DAMAGES[damage](kept) | {"step": kept["step"] + 5}, path)
    with pytest.warns(UserWarning, match="does not fit"):
        assert same(one(branch(50)), KINDS["random"](branch(50)))
    assert one(branch(130)).spent == pytest.approx(300.0 * BATCH * (130 - 37))  # from the trunk of 50, not from that


def _in_process(body: str, folder: Path) -> str:
    """What a fresh interpreter prints that runs `body` beside this file's definitions."""
    head = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\nfrom train.test_checkpoint import *\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(body), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_disk_that_takes_nothing_does_not_stop_the_run(tmp_path: Path) -> None:
    """The limit on file sizes makes every write fail as a full disk does: in the middle, with an error."""
    printed = _in_process("""
        import resource, signal, warnings
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = KINDS["table"].on(checkpoints=Path(sys.argv[1]), checkpoint_seconds=0.0)(branch(30))
        assert any("could not be kept" in str(w.message) for w in caught)
        print(repr(result.loss))
    """, tmp_path)
    assert float(printed) == KINDS["table"](branch(30)).loss
    assert list(tmp_path.iterdir()) == []  # no half of a file is left behind


@pytest.mark.parametrize("micro", [1, 3, 5, 16, 1000])
def test_micro_batches_add_up_to_the_batch(micro: int) -> None:
    whole, cut = KINDS["table"](spec()), KINDS["table"].on(micro_batch=micro)(spec())
    assert cut.loss == pytest.approx(whole.loss, rel=REORDERED)
    assert cut.tokens == whole.tokens
    pieces = -(-BATCH // min(micro, BATCH))
    assert cut.environment.get("micro batches") == (str(pieces) if pieces > 1 else None)


def test_out_of_memory_cuts_the_batch_until_it_fits() -> None:
    """An address space that holds the activations of a small part of the batch, and not of all of it."""
    printed = _in_process("""
        import resource
        class Hungry(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.first, self.second = nn.Linear(4, width), nn.Linear(width, 1)
            def forward(self, x):
                return self.second(self.first(x).tanh().repeat(1, 1).sigmoid())
        WIDTH = 16384
        run = dataclasses.replace(spec(steps=4, batch_size=512, tokens=2048), size=WIDTH)
        one = trainer(builder=Builds(Hungry))
        one(dataclasses.replace(run, batch_size=32, tokens=128))  # what torch itself needs is there from now on
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20,) * 2)
        print(one(run).environment["micro batches"])
    """, Path())
    assert int(printed) > 1


def test_memory_that_never_suffices_is_an_error_with_the_smallest_batch_tried() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(f"asked for {len(outputs)}")

    with pytest.raises(torch.OutOfMemoryError, match="asked for 1"):
        trainer(objective=Objective(loss_fn=loss))(spec())


def test_a_thinned_curve_keeps_its_end_and_its_mean() -> None:
    curve = [(step, float(step)) for step in range(1, 641)]
    short = thinned(curve)
    assert len(short) == CURVE_POINTS
    assert short[-1][0] == 640
    assert sum(loss for _, loss in short) / len(short) == pytest.approx(320.5)
    assert thinned(curve[:10]) == tuple(curve[:10])
