"""The engine against a loop written by hand, and what it promises about every run."""

from __future__ import annotations

import gc
import itertools
import math
import random
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

from flops_fit.data.batches import prepare
from flops_fit.errors import ContractError, InputError
from flops_fit.records import RunSpec
from flops_fit.runs.executors import InlineExecutor
from flops_fit.train.engine import Trainer, TrainingRun
from flops_fit.train.loss import Objective
from flops_fit.train.optim import optimiser
from flops_fit.train.options import Placement, TrainOptions

STEPS, BATCH, LR, SEED = 30, 16, 0.02, 5


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())  # type: ignore[no-any-return]


@dataclass
class Builds:
    """A builder that remembers its models without keeping them."""

    make: Callable[[int], nn.Module] = Net

    def __post_init__(self) -> None:
        self.made: list[weakref.ref[nn.Module]] = []

    def __reduce__(self) -> Any:
        return Builds, (self.make,)  # the memory of models stays here

    def build(self, size: int) -> nn.Module:
        model = self.make(size)
        self.made.append(weakref.ref(model))
        return model


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def data(count: int = 400) -> TensorDataset:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.prod(1, keepdim=True) + x[:, :1])


def spec(**changes: Any) -> RunSpec:
    given = {"study": "test", "size": 8, "params": 49, "flops_per_token": 300.0, "steps": STEPS, "batch_size": BATCH,
             "tokens": STEPS * BATCH, "lr": LR, "seed": SEED, "budget": 1e5}  # fmt: skip
    return RunSpec(**given | changes)


def trainer(builder: Any = None, dataset: Any = None, objective: Objective | None = None, **options: Any) -> Trainer:
    source = prepare(data() if dataset is None else dataset)
    chosen = TrainOptions(device="cpu", **options)
    return Trainer(builder or Builds(), source, objective or Objective(loss_fn=squared), chosen, Placement(threads=1))


def by_hand(one: Trainer, run: RunSpec) -> tuple[list[float], float]:
    """(training losses, held-out loss): the loop that everybody writes, with the schedule spelt out."""
    torch.manual_seed(run.seed)
    model = one.builder.build(run.size)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), fused=True)
    batches, losses = one.source.batches(run.batch_size, run.seed), []
    for step in range(run.steps):
        rising, falling = (step + 1) / (0.1 * run.steps), (run.steps - step) / (0.5 * run.steps)
        for group in optimizer.param_groups:
            group["lr"] = run.lr * min(1.0, rising, falling)
        x, y = next(batches)
        loss = squared(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        parts = [(squared(model(x), y).item(), len(x)) for x, y in one.source.held_out()]
    return losses, sum(loss * n for loss, n in parts) / sum(n for _, n in parts)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_equals_a_loop_written_by_hand_bit_for_bit() -> None:
    result = trainer()(spec())
    losses, held_out = by_hand(trainer(), spec())
    assert [loss for _, loss in result.curve] == losses  # 30 steps, fewer than the curve keeps: every one
    assert [tokens for tokens, _ in result.curve] == [BATCH * (step + 1) for step in range(STEPS)]
    assert result.loss == held_out
    assert losses[-1] < losses[0]


def test_two_runs_are_equal_and_another_seed_is_not() -> None:
    first, second, other = (trainer()(spec(seed=seed)) for seed in (SEED, SEED, SEED + 1))
    assert replace(first, seconds=0.0, peak_memory_bytes=0) == replace(second, seconds=0.0, peak_memory_bytes=0)
    assert first.loss != other.loss


def test_what_is_recorded_was_really_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer()
    served: list[int] = []
    pieces = type(one.source).pieces

    def counted(self: Any, *asked: Any, **named: Any) -> Iterator[Any]:
        for parts in pieces(self, *asked, **named):
            served.append(sum(len(part[0]) for part in parts))
            yield parts

    monkeypatch.setattr(type(one.source), "pieces", counted)
    result = one(spec())
    assert result.tokens == sum(served) == STEPS * BATCH
    assert result.flops == result.spent == 300.0 * sum(served)


class _Doom:
    """A loss that is NaN from its k-th training step on."""

    def __init__(self, k: int) -> None:
        self.k, self.calls = k, 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += torch.is_grad_enabled()  # evaluating the untrained model is no training step
        trained = self.calls >= self.k and not torch.is_grad_enabled()
        return squared(outputs, targets) * (math.nan if self.calls > self.k or trained else 1.0)


@pytest.mark.parametrize("k", [0, 1, 7, STEPS - 1])
def test_a_loss_that_becomes_nan_ends_the_run_with_its_step(k: int) -> None:
    result = trainer(objective=Objective(loss_fn=_Doom(k)))(spec())
    assert (result.status, result.loss) == ("diverged", None)
    assert f"became nan at step {k} of {STEPS}" in result.reason
    assert result.tokens == (k + 1) * BATCH  # the step that failed was paid for
    assert result.flops == 300.0 * result.tokens
    assert all(math.isfinite(loss) for _, loss in result.curve)


def test_a_nan_that_shows_only_in_the_held_out_loss_is_no_result() -> None:
    result = trainer(objective=Objective(loss_fn=_Doom(STEPS)))(spec())
    assert (result.status, result.loss, result.tokens) == ("diverged", None, STEPS * BATCH)
    assert "held-out loss is nan" in result.reason


def test_a_learning_rate_that_is_far_too_high_is_recorded_as_diverged() -> None:
    result = trainer()(spec(lr=1e4))
    assert result.status == "diverged"
    assert "not learned" in result.reason or "became" in result.reason


@pytest.mark.parametrize(("worse", "status"), [(1.0, "ok"), (100.0, "diverged")])
def test_a_held_out_loss_above_that_of_the_untrained_model_is_no_measurement(worse: float, status: str) -> None:
    steps = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal steps
        steps += torch.is_grad_enabled()
        after = steps == STEPS and not torch.is_grad_enabled()
        return squared(outputs, targets) * (worse if after else 1.0)

    result = trainer(objective=Objective(loss_fn=loss_fn))(spec())
    assert (result.status, result.loss is None) == (status, status == "diverged")
    assert ("that of the untrained model: not learned" in result.reason) == (status == "diverged")
    assert result.tokens == STEPS * BATCH


def test_an_error_of_the_user_is_a_failed_run_with_its_place() -> None:
    def raises(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("shapes differ")

    [result] = InlineExecutor().run([spec()], trainer(objective=Objective(loss_fn=raises)), lambda event: None)
    assert result.status == "failed"
    assert result.reason.startswith("RuntimeError: shapes differ (test_engine.py:")


def test_an_error_of_the_user_goes_through_the_engine_itself() -> None:
    def raises(outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        trainer(objective=Objective(loss_fn=raises))(spec())


@pytest.mark.parametrize("k", [3, STEPS + 10])
def test_the_model_is_gone_after_the_run(k: int) -> None:
    builder = Builds()
    gc.disable()  # what goes must go by the engine's own doing
    try:
        trainer(builder, objective=Objective(loss_fn=_Doom(k)))(spec())
    finally:
        gc.enable()
    assert [model() for model in builder.made] == [None]


def test_the_callers_random_numbers_and_threads_are_untouched() -> None:
    torch.manual_seed(11), random.seed(12), np.random.seed(13)

    def states() -> tuple[Any, ...]:
        numbers = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
        return *numbers, torch.get_num_threads()

    before = states()
    trainer()(spec())
    assert states() == before


def noisy(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return (model(x + 0.1 * torch.randn_like(x)) - y).square().mean()


def test_an_objective_that_draws_noise_is_evaluated_on_the_same_noise() -> None:
    one = trainer(objective=Objective(objective=noisy))
    run = TrainingRun(one, spec())
    first = run.evaluate()
    torch.rand(17)
    assert run.evaluate() == first
    assert one(spec()).loss == one(spec()).loss
    seen: list[Tensor] = []

    def listens(model: nn.Module, batch: Any) -> Tensor:
        noise = torch.randn_like(batch[0])
        if not torch.is_grad_enabled():
            seen.append(noise)
        return noisy(model, batch)

    for seed in (0, 1):
        trainer(objective=Objective(objective=listens))(spec(seed=seed))
    half = len(seen) // 2
    assert half > 0
    assert all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))  # whatever the run's seed
    assert first != TrainingRun(trainer(objective=Objective(objective=noisy)), spec(seed=SEED + 1)).evaluate()


class Pieces(nn.Module):
    """Takes its inputs by name and returns a tuple, as many models do; its loss knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = Net(width)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, None]:
        return self.net(torch.cat((a, b), dim=1)), None


class Named(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return len(data())

    def __getitem__(self, index: int) -> Any:
        x, y = data()[index]
        return {"a": x[:2], "b": x[2:]}, y


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from data()


def test_named_inputs_and_tuple_outputs_give_the_same_run() -> None:
    plain = trainer()(spec(steps=5, tokens=5 * BATCH))
    pieces = trainer(Builds(Pieces), Named(), Objective(loss_fn=lambda out, y: squared(out[0], y)))
    assert pieces(spec(steps=5, tokens=5 * BATCH)).loss == plain.loss


def test_an_iterable_data_set_trains_in_its_own_order() -> None:
    run = trainer(dataset=Stream())
    result = run(spec())
    losses, held_out = by_hand(run, spec())
    assert [loss for _, loss in result.curve] == losses
    assert result.loss == held_out


def test_progress_hears_every_step_with_its_loss() -> None:
    heard: list[tuple[int, float]] = []
    result = trainer()(spec(), lambda step, loss: heard.append((step, loss)))
    assert [step for step, _ in heard[:STEPS]] == list(range(1, STEPS + 1))
    assert [loss for _, loss in heard[:STEPS]] == [loss for _, loss in result.curve]


def test_an_evaluation_gives_signs_of_life_with_the_last_loss() -> None:
    """It can take longer than many steps; whoever waits for progress must not take it for a hang."""
    heard: list[tuple[int, float]] = []
    trainer()(spec(), lambda step, loss: heard.append((step, loss)))
    assert len(heard) > STEPS and set(heard[STEPS:]) == {heard[STEPS - 1]}


def test_a_long_curve_is_thinned_and_keeps_the_mean() -> None:
    long = spec(steps=300, tokens=300 * BATCH)
    heard: list[float] = []
    result = trainer()(long, lambda step, loss: heard.append(loss))
    assert len(result.curve) <= 80
    assert result.curve[-1][0] == long.tokens
    steps = np.diff([0, *(tokens // BATCH for tokens, _ in result.curve)])
    mean = float(np.sum(steps * [loss for _, loss in result.curve]) / 300)
    assert mean == pytest.approx(sum(heard[:300]) / 300, rel=1e-9)  # float64 sums of the same 300 numbers


def test_adamw_decays_matrices_only_and_leaves_frozen_parameters_out() -> None:
    model = Net(8)
    model.first.weight.requires_grad_(False)
    groups = optimiser(model, TrainOptions()).param_groups
    assert [(group["weight_decay"], [id(p) for p in group["params"]]) for group in groups] == [
        (0.1, [id(model.second.weight)]), (0.0, [id(model.first.bias), id(model.second.bias)])]  # fmt: skip
    assert all(group["fused"] for group in groups)


@pytest.mark.parametrize(("wrong", "told"), [
    ({"warmup": 0.11}, "warmup: got 0.11"), ({"warmup": -0.1}, "warmup: got -0.1"),
    ({"decay": 0.95}, "decay: got 0.95; allowed is 0 to 0.9"), ({"decay": -1.0}, "decay: got -1"),
])  # fmt: skip
def test_schedules_that_bend_the_law_are_refused(wrong: dict[str, float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        TrainOptions(**wrong)  # type: ignore[arg-type]


def test_an_unknown_device_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(InputError, match="device: got 'gpu'; allowed are 'auto', 'cpu', 'cuda'"):
        TrainOptions(device="gpu").torch_device()


# --- what is seen on the way ----------------------------------------------------------------------------------------


def test_a_run_that_learns_nothing_ends_with_the_reason() -> None:
    """Targets that have nothing to do with the inputs."""
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(1))
    noise = TensorDataset(x, x.new_zeros(400, 1))
    result = trainer(dataset=noise, objective=Objective(objective=unreachable), looks=10, learns_by=0.5)(spec())
    assert result.status == "diverged" and result.loss is None
    told = "after 15 of 30 steps the held-out loss is 3, that of the untrained model 3: it does not learn"
    assert result.reason == told
    assert trainer(looks=10, learns_by=0.5)(spec()).ok  # the same, of data that can be learned


def unreachable(model: nn.Module, batch: Any) -> Tensor:
    return 3 + 0 * model(batch[0]).sum()


def test_the_model_is_shown_on_the_way_and_does_not_notice() -> None:
    seen: list[tuple[int, bool, int]] = []

    def show(model: nn.Module, step: int) -> None:
        assert not torch.is_grad_enabled()
        torch.manual_seed(step)  # whatever it draws is its own affair
        seen.append((step, model.training, len(list(model.parameters()))))

    plain, shown = trainer(ema=0.1)(spec()), trainer(ema=0.1).on(show=show, show_every=12)(spec())
    assert seen == [(12, False, 4), (24, False, 4)]
    assert replace(shown, seconds=0.0, peak_memory_bytes=0) == replace(plain, seconds=0.0, peak_memory_bytes=0)


def test_states_are_kept_at_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    saved = []
    run = trainer().on(checkpoints=tmp_path, checkpoint_every=7)
    run(spec(), lambda step, _: saved.append((step, len(list(tmp_path.glob("run-*"))))))
    first = next(step for step, files in saved if files)
    assert first == 8  # the step after the seventh is the first to see its state
    state = torch.load(next(tmp_path.glob("run-*")), weights_only=False)
    assert state["step"] == 28  # the last multiple before the end


# --- heads first ----------------------------------------------------------------------------------------------------


class Headed(Net):
    """`second` is its head."""

    def freeze(self, frozen: bool) -> None:
        for parameter in self.first.parameters():
            parameter.requires_grad_(not frozen)
            parameter.grad = None


def test_heads_learn_first_and_then_everything(tmp_path: Path) -> None:
    """Also from a state that was kept while frozen."""
    seen: list[tuple[int, Tensor, Tensor]] = []

    def show(model: nn.Module, step: int) -> None:
        seen.append((step, model.first.weight.clone(), model.second.weight.clone()))  # type: ignore[union-attr,operator]

    run = trainer(Builds(Headed), heads_first=0.5).on(show=show, show_every=5, checkpoints=tmp_path, checkpoint_every=5)
    whole = run(spec())
    firsts, seconds = ([weights[place] for weights in seen] for place in (1, 2))
    same = [torch.equal(a, b) for a, b in itertools.pairwise(firsts)]
    assert [step for step, *_ in seen] == [5, 10, 15, 20, 25, 30]
    assert same == [True, True, False, False, False]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(seconds))

    class Stop(Exception):
        pass

    def stops(step: int, loss: float) -> None:
        if step == 11:
            raise Stop

    broken = run.on(checkpoints=tmp_path / "broken", show=None)
    with pytest.raises(Stop):
        broken(spec(), stops)
    assert replace(broken(spec()), seconds=0.0, peak_memory_bytes=0) == replace(whole, seconds=0.0, peak_memory_bytes=0)


def test_a_model_without_heads_is_told() -> None:
    with pytest.raises(ContractError, match=r"Net has no freeze\(bool\), which heads_first needs"):
        trainer(heads_first=0.5)(spec())
    with pytest.raises(InputError, match="heads_first: got 1; allowed"):
        TrainOptions(heads_first=1)
    assert "heads_first" not in TrainOptions().identity()
