"""Compiled training steps: the same run but for rounding, and it goes on like any other."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flops_fit.errors import InputError
from flops_fit.train.options import Placement
from train.test_checkpoint import killed_at, same
from train.test_engine import Builds, spec, trainer

HEADER = Path(sysconfig.get_path("include")) / "Python.h"
COMPILES = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None or not HEADER.exists(), reason="needs g++ and Python's headers"
)
COMPILER_WARNS = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # of torch's own imports
ROUNDING = 1e-4  # relative, of a loss after 30 steps in float32 whose sums are taken in another order


@COMPILES
@COMPILER_WARNS
def test_a_compiled_run_is_the_same_run_and_goes_on_bit_identically(tmp_path: Path) -> None:
    plain, one = trainer()(spec()), trainer().on(compiled=True)
    whole = one(spec())
    assert whole.loss == pytest.approx(plain.loss, rel=ROUNDING)
    assert [loss for _, loss in whole.curve] == pytest.approx([loss for _, loss in plain.curve], rel=ROUNDING)
    assert (whole.environment.get("compiled"), plain.environment.get("compiled")) == ("training steps", None)
    kept = one.on(checkpoints=tmp_path, checkpoint_seconds=0.0)
    killed_at(kept, spec(), 12)
    assert same(kept(spec()), whole)


def watched(modes: list[bool], fails: bool = False) -> Callable[..., nn.Module]:
    """A compiler that does nothing but tell in which mode a model is asked, or one that is not there."""

    def compiler(model: nn.Module, dynamic: bool) -> nn.Module:
        class Watched(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                if fails:
                    raise RuntimeError("no g++ here\nand much more")
                modes.append(model.training)
                return model(x)  # type: ignore[no-any-return]

        return Watched()

    return compiler


def test_only_training_steps_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks have other shapes and modes: each would be compiled anew. One step more finds out whether it can be."""
    modes: list[bool] = []
    monkeypatch.setattr(torch, "compile", watched(modes))
    found = trainer(looks=3).on(compiled=True)(spec())
    assert modes == [True] * (spec().steps + 1)
    monkeypatch.undo()
    assert found.loss == trainer(looks=3)(spec()).loss, "the step more leaves no trace"


def test_the_step_that_finds_out_leaves_running_means_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", watched([]))
    normed = Builds(lambda width: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1)))
    assert trainer(normed).on(compiled=True)(spec()).loss == trainer(normed)(spec()).loss


def test_where_it_cannot_be_compiled_the_run_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", watched([], fails=True))
    with pytest.warns(UserWarning, match=r"not compiled \(RuntimeError: no g\+\+ here\); the run goes on without"):
        found = trainer().on(compiled=True)(spec())
    assert same(found, trainer()(spec()))


def test_a_run_goes_on_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled or not, whatever is asked for later."""
    modes: list[bool] = []
    monkeypatch.setattr(torch, "compile", watched(modes))
    for began in (True, False):
        one = trainer().on(checkpoints=tmp_path / str(began), checkpoint_seconds=0.0)
        killed_at(one.on(compiled=began), spec(), 12)
        modes.clear()
        found = one.on(compiled=not began)(spec())
        assert ("compiled" in found.environment, bool(modes)) == (began, began)


def test_several_ranks_are_not_compiled() -> None:
    with pytest.raises(InputError, match="compiled: got true with ranks=2; allowed is one rank"):
        Placement(compiled=True, ranks=2)
