"""What a run keeps beside its last weights: an average with the promised profile, looks, best weights, an early end."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flops_fit.data.batches import prepare
from flops_fit.errors import InputError
from flops_fit.models import weights
from flops_fit.records import RunSpec
from flops_fit.train.ema import PowerEMA, _overlap, power_of, shares
from flops_fit.train.engine import Trainer
from flops_fit.train.keep import BEST, LAST, averaged_after
from flops_fit.train.loss import Objective
from flops_fit.train.options import Placement, TrainOptions

STEPS, BATCH = 40, 8
FLOAT32 = 1e-6
EXACT, CLOSE = 1e-4, 0.1  # of the way from an average to the last weights: rounding; 8 of 400 steps are kept


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())  # type: ignore[no-any-return]


class Builds:
    def build(self, size: int) -> nn.Module:
        return Net(size)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that draws noise, as flow matching does."""
    return (outputs - targets + 0.1 * torch.randn_like(outputs)).square().mean()


def spec(**changes: Any) -> RunSpec:
    given = {"study": "test", "size": 8, "params": 49, "flops_per_token": 300.0, "steps": STEPS, "batch_size": BATCH,
             "tokens": STEPS * BATCH, "lr": 0.02, "seed": 5, "budget": 1e5}  # fmt: skip
    return RunSpec(**given | changes)


def trainer(folder: Path | None = None, loss: Any = squared, **options: Any) -> Trainer:
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(1))
    source = prepare(TensorDataset(x, x.prod(1, keepdim=True) + x[:, :1]))
    chosen = TrainOptions(device="cpu", **options)
    return Trainer(Builds(), source, Objective(loss_fn=loss), chosen, Placement(threads=1, weights=folder))


# --- averages after the run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "off"), [(0.05, EXACT), (0.07, CLOSE), (0.10, EXACT), (0.15, CLOSE)])
def test_an_average_of_any_length_comes_from_the_snapshots(length: float, off: float, tmp_path: Path) -> None:
    """As it would have been, had it been tracked: exactly where it was."""
    trainer(tmp_path / "kept", snapshots=8)(spec(steps=400, tokens=400 * BATCH))
    trainer(tmp_path / "tracked", ema=length)(spec(steps=400, tokens=400 * BATCH))
    made = averaged_after(tmp_path / "kept", 400, length)
    tracked, _ = weights.read(tmp_path / "tracked" / LAST)
    last, _ = weights.read(tmp_path / "kept" / LAST)
    for name, value in tracked.items():
        assert (made[name] - value).norm() <= off * (last[name] - value).norm() + FLOAT32


def test_overlaps_of_profiles_are_their_integrals() -> None:
    """T1c: of a = 2 up to 3 and b = 4 up to 5, by quadrature; and an average at itself needs itself alone."""
    x = np.linspace(0, 3, 300_001)
    integral = np.trapezoid(3 * x**2 / 3**3 * 5 * x**4 / 5**5, x)
    assert _overlap(*map(np.array, (3, 2, 5, 4))) == pytest.approx(integral, rel=1e-6)  # of the quadrature
    assert _overlap(*map(np.array, (5, 4, 3, 2))) == pytest.approx(integral, rel=1e-6)
    alone = shares([(50, 0.05), (100, 0.05), (100, 0.1)], 100, 0.1)
    np.testing.assert_allclose(alone, [0, 0, 1], atol=1e-9)  # of a system of three equations


def test_without_snapshots_there_is_nothing_to_average(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="snapshots: got none"):
        averaged_after(tmp_path, 10, 0.1)


# --- the average ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2])
def test_the_profile_has_the_promised_length(length: float) -> None:
    """Mean and deviation of the density t^gamma on [0, 1], by quadrature."""
    gamma = power_of(length)
    t = np.linspace(0, 1, 2_000_001)[1:]
    density = t**gamma / (t**gamma).sum()
    mean = (density * t).sum()
    assert math.sqrt((density * (t - mean) ** 2).sum()) == pytest.approx(length, rel=1e-4)  # of the quadrature


def test_values_of_the_paper() -> None:
    """Karras et al. 2024, section 3.1: lengths of 5% and 10% are powers of 16.97 and 6.94."""
    assert power_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert power_of(0.10) == pytest.approx(6.94, abs=0.01)


def test_the_average_is_the_weighted_sum_of_all_steps() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema, seen = PowerEMA(model, 0.1), []
    for step in range(1, 201):
        with torch.no_grad():
            model.weight.copy_(torch.randn(1, 1))
        seen.append(model.weight.item())
        ema.update(model, step)
    share = [1.0]
    for step in range(2, 201):
        beta = (1 - 1 / step) ** (power_of(0.1) + 1)
        share = [beta * s for s in share] + [1 - beta]
    expected = sum(s * w for s, w in zip(share, seen, strict=True))
    assert ema.average["weight"].item() == pytest.approx(expected, abs=FLOAT32 * 10)
    assert sum(share) == pytest.approx(1)
    assert share[100] / share[199] == pytest.approx((101 / 200) ** power_of(0.1), rel=0.05)  # t^gamma, in whole steps


def test_the_untrained_network_is_forgotten_at_the_first_step() -> None:
    model = nn.Linear(3, 3)
    ema = PowerEMA(model, 0.1)
    with torch.no_grad():
        model.weight.add_(1)
    ema.update(model, 1)
    assert torch.equal(ema.average["weight"], model.weight)


def test_weights_come_back_after_the_average_was_used() -> None:
    model = nn.Linear(3, 3)
    ema, own = PowerEMA(model, 0.1), model.weight.detach().clone()
    with torch.no_grad():
        model.weight.mul_(3)
    with ema.applied(model):
        assert torch.equal(model.weight, own)
    assert torch.equal(model.weight, 3 * own) and torch.equal(ema.average["weight"], own)


# --- in a run -------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_averaged_weights(tmp_path: Path) -> None:
    result = trainer(tmp_path, ema=0.1)(spec())
    plain = trainer()(spec())
    assert result.loss is not None and result.loss != plain.loss
    assert result.curve == plain.curve  # the average does not touch the training
    tensors, config = weights.read(tmp_path / LAST)
    model = Net(8)
    weights.fill(model, tensors, "last")
    again = trainer(tmp_path / "again").source.held_out()
    losses = [(squared(model(x), y).item(), len(x)) for x, y in again]
    assert sum(v * n for v, n in losses) / sum(n for _, n in losses) == pytest.approx(result.loss, rel=FLOAT32)
    assert config == {"held_out_loss": result.loss, "step": STEPS}


def test_looks_lie_equally_far_apart_and_change_nothing() -> None:
    looked, plain = trainer(loss=noisy, looks=4)(spec()), trainer(loss=noisy)(spec())
    assert [tokens for tokens, _ in looked.looks] == [0, 80, 160, 240, 320]
    assert looked.looks[0][1] == trainer(loss=noisy, looks=2)(spec()).looks[0][1]  # untrained, on the same draws
    assert looked.looks[-1][1] == looked.loss == plain.loss  # though a look draws noise as well
    assert looked.curve == plain.curve and plain.looks == ()


def test_the_best_weights_are_those_of_the_best_look(tmp_path: Path) -> None:
    result = trainer(tmp_path, looks=8)(spec(lr=0.3, seed=2))
    best = min(result.looks, key=lambda look: look[1])
    config = weights.read(tmp_path / BEST)[1]
    assert (config["step"] * BATCH, config["held_out_loss"]) == best
    assert weights.read(tmp_path / LAST)[1]["held_out_loss"] == result.loss


def test_a_run_without_looks_keeps_its_last_weights_as_its_best(tmp_path: Path) -> None:
    trainer(tmp_path)(spec())
    first, last = (weights.read(tmp_path / name)[0] for name in (BEST, LAST))
    assert all(torch.equal(first[name], last[name]) for name in last)


def test_a_run_that_no_longer_improves_ends() -> None:
    """Labels of nothing: whatever is learned is learned by heart."""
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(1))
    y = torch.randn(400, 1, generator=torch.Generator().manual_seed(2))
    options = TrainOptions(device="cpu", looks=20, patience=3)
    one = Trainer(Builds(), prepare(TensorDataset(x, y)), Objective(loss_fn=squared), options, Placement(threads=1))
    result = one(spec(steps=2000, tokens=2000 * BATCH, lr=0.05, size=64))
    assert result.ok and len(result.looks) < 20
    losses = [loss for _, loss in result.looks]
    assert min(losses) == min(losses[:-3]) and "in 3 looks" in result.environment["ended early"]
    assert result.tokens == result.looks[-1][0] < 2000 * BATCH


def test_ten_steps_and_thirty_more_are_forty(tmp_path: Path) -> None:
    """Bit for bit, with the average, the looks and the best weights."""

    class Stop(Exception):
        pass

    def stops(step: int, loss: float) -> None:
        if step == 10:
            raise Stop

    options: dict[str, Any] = {"loss": noisy, "ema": 0.1, "looks": 8, "snapshots": 5}
    whole = trainer(tmp_path / "whole", **options)(spec())
    broken = trainer(tmp_path / "broken", **options).on(checkpoints=tmp_path / "states", checkpoint_seconds=0.0)
    with pytest.raises(Stop):
        broken(spec(), stops)
    steps: list[int] = []
    resumed = broken(spec(), lambda step, loss: steps.append(step))
    assert steps[:2] == [9, 10]  # it did go on, and says from where
    resumed, whole = (replace(one, seconds=0.0, peak_memory_bytes=0) for one in (resumed, whole))
    assert resumed == whole
    for name in (BEST, LAST):
        first, config = weights.read(tmp_path / "whole" / name)
        second, other = weights.read(tmp_path / "broken" / name)
        assert config == other and all(torch.equal(first[key], second[key]) for key in first)
    first, second = (averaged_after(tmp_path / name, STEPS, 0.07) for name in ("whole", "broken"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_options_of_before_have_the_identity_of_before() -> None:
    """Journals must not be lost to options that nobody set."""
    assert not {"ema", "looks", "snapshots", "patience"} & TrainOptions().identity().keys()
    chosen = {"ema": 0.1, "looks": 4, "patience": 2}
    assert TrainOptions(ema=0.1, looks=4, patience=2).identity().items() >= chosen.items()


@pytest.mark.parametrize("options", [{"ema": 0.0}, {"ema": 0.5}, {"looks": -1}, {"patience": 2}, {"snapshots": -1}])
def test_what_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="allowed"):
        TrainOptions(**options)
