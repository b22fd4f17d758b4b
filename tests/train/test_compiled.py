"""Compiled training steps: the same run but for rounding, and it goes on like any other."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from train.test_checkpoint import killed_at, same
from train.test_engine import spec, trainer

pytestmark = [
    pytest.mark.skipif(
        shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler"
    ),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),  # torch's own imports, once a process
]
ROUNDING = 1e-4  # relative, of a loss after 30 steps in float32 whose sums are taken in another order


def test_a_compiled_run_is_the_same_run_and_goes_on_bit_identically(tmp_path: Path) -> None:
    plain, one = trainer()(spec()), trainer().on(compiled=True)
    whole = one(spec())
    assert whole.loss == pytest.approx(plain.loss, rel=ROUNDING)
    assert [loss for _, loss in whole.curve] == pytest.approx([loss for _, loss in plain.curve], rel=ROUNDING)
    assert (whole.environment.get("compiled"), plain.environment.get("compiled")) == ("training steps", None)
    kept = one.on(checkpoints=tmp_path, checkpoint_seconds=0.0)
    killed_at(kept, spec(), 12)
    assert same(kept(spec()), whole)


def test_only_training_steps_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks have other shapes and modes: each would be compiled anew."""
    modes: list[bool] = []

    def watched(model: torch.nn.Module, dynamic: bool) -> torch.nn.Module:
        class Watched(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                modes.append(model.training)
                return model(x)  # type: ignore[no-any-return]

        return Watched()

    monkeypatch.setattr(torch, "compile", watched)
    trainer(looks=3).on(compiled=True)(spec())
    assert modes == [True] * spec().steps
