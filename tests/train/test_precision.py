"""In which numbers a run multiplies: where half precision is taken, that it learns as much, that it can go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flops_fit.errors import InputError
from flops_fit.train import precision
from flops_fit.train.options import TrainOptions
from flops_fit.train.precision import HALF, autocast, half_is_faster, precision_of
from train.test_checkpoint import killed_at, same
from train.test_engine import spec, trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NEARLY = 0.05  # relative, of a loss after 30 steps whose products are rounded to 8 bits


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that is fast at it, whichever this one is."""
    monkeypatch.setattr(precision, "half_is_faster", lambda: True)


def test_half_precision_is_where_it_is_asked_for_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [precision_of(asked, CUDA) for asked in ("auto", "fast", "fp32")] == [HALF, HALF, "fp32"]
    for faster in (True, False):
        monkeypatch.setattr(precision, "half_is_faster", lambda faster=faster: faster)
        told = [precision_of(asked, CPU) for asked in ("auto", "fast", "fp32")]
        assert told == ["fp32", HALF if faster else "fp32", "fp32"]
    with pytest.raises(InputError, match="fast"):
        precision_of("fats", CPU)
    with pytest.raises(InputError, match="precision"):
        TrainOptions(precision="half")


@pytest.mark.parametrize(("double_as_fast", "told"), [(0.5, True), (1.0, False), (5.0, False)])
def test_it_is_fast_where_its_products_are(double_as_fast: float, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {torch.float32: 1.0, torch.bfloat16: double_as_fast}
    monkeypatch.setattr(precision, "_seconds", lambda a: taken[a.dtype])
    assert half_is_faster.__wrapped__() is told


def test_a_machine_that_is_busy_for_a_moment_is_as_fast_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other work takes turns with the products; one quiet moment of each kind is enough."""
    busy = iter([9.0, 9.0, 1.0, 9.0, 9.0, 0.5] + [9.0] * 2 * precision.TIMES)
    monkeypatch.setattr(precision, "_seconds", lambda a: next(busy))
    assert half_is_faster.__wrapped__() is True


def test_products_are_in_the_precision_that_is_told() -> None:
    a = torch.randn(3, 3)
    with autocast(CPU, HALF):
        assert (a @ a).dtype is torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (a @ a).dtype is torch.float32


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_in_half_precision_learns_as_much(optimizer: str) -> None:
    whole, halved = (trainer(precision=asked, optimizer=optimizer)(spec()) for asked in ("fp32", "fast"))
    assert (whole.environment["precision"], halved.environment["precision"]) == ("fp32", HALF)
    assert halved.loss != whole.loss and halved.loss == pytest.approx(whole.loss, rel=NEARLY)


@pytest.mark.usefixtures("half")
def test_a_killed_run_in_half_precision_goes_on_bit_identically(tmp_path: Path) -> None:
    one = trainer(precision="fast")
    kept = one.on(checkpoints=tmp_path, checkpoint_seconds=0.0)
    for step in (7, 25):
        killed_at(kept, spec(), step)
    assert same(kept(spec()), one(spec()))


def test_a_run_ends_in_the_precision_that_it_began_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured anew, a machine near the border or beside other work may say otherwise."""
    monkeypatch.setattr(precision, "half_is_faster", lambda: True)
    one = trainer(precision="fast")
    kept, whole = one.on(checkpoints=tmp_path, checkpoint_seconds=0.0), one(spec())
    killed_at(kept, spec(), 12)
    monkeypatch.setattr(precision, "half_is_faster", lambda: False)
    resumed = kept(spec())
    assert same(resumed, whole) and resumed.environment["precision"] == HALF


def test_studies_of_before_stay_what_they_were() -> None:
    assert "precision" not in TrainOptions().identity()
    assert TrainOptions(precision="fast").identity()["precision"] == "fast"
