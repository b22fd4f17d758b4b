"""One model trained and kept: the bundle, going on after a kill, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flops_fit.data.batches import split_by_hash
from flops_fit.errors import FitError, InputError, StudyMismatch
from flops_fit.evaluate.metric import Metric
from flops_fit.models import weights
from flops_fit.runs.executors import InlineExecutor, ProcessExecutor
from flops_fit.runs.status import status
from flops_fit.runs.watch import Quiet
from flops_fit.study.training import METRICS, TRAINING, Training, train, train_several
from flops_fit.train.options import TrainOptions


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, 1)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())  # type: ignore[no-any-return]


def squared(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()  # type: ignore[no-any-return]


def judged(model: nn.Module) -> list[Metric]:
    with torch.no_grad():
        value = float(model(torch.ones(1, 4)))
    return [Metric(name="at_one", value=value, lo=value, hi=value, n=1)]


def training(**changes: Any) -> Training:
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(1))
    one = Training(
        name="a net", model_cls=Net, size_param="width", size=8, dataset=TensorDataset(x, x.sum(1, keepdim=True)),
        objective=squared, epochs=2.0, batch_size=16, lr=0.02, options=TrainOptions(device="cpu", looks=4, ema=0.1),
        config={"kind": "net", "width": 8}, evaluate=judged,
    )  # fmt: skip
    return replace(one, **changes)


def test_a_bundle_holds_the_best_weights_and_what_was_measured(tmp_path: Path) -> None:
    found = train(training(), tmp_path, watch=Quiet())
    tensors, config = weights.read(tmp_path)
    model = Net(8)
    weights.fill(model, tensors, "bundle")
    assert config == {"kind": "net", "width": 8, "params": 49}
    assert found.result.ok and found.result.looks[-1][1] == found.result.loss
    assert json.loads((tmp_path / METRICS).read_text())["metrics"]["at_one"]["value"] == judged(model)[0].value
    told = json.loads((tmp_path / TRAINING).read_text())
    inside = len(split_by_hash(400)[0])
    assert told["spec"]["steps"] == -(-2 * inside // 16)  # two passes over what is not held out
    assert told["best"]["held_out_loss"] == min(loss for _, loss in found.result.looks)


def test_a_second_call_trains_nothing(tmp_path: Path) -> None:
    first = train(training(), tmp_path, watch=Quiet())
    content = (tmp_path / weights.WEIGHTS).read_bytes()
    again = train(training(), tmp_path, watch=Quiet())
    assert again.result == first.result and again.metrics == first.metrics
    assert (tmp_path / weights.WEIGHTS).read_bytes() == content


def test_half_precision_and_files_of_the_recipe(tmp_path: Path) -> None:
    train(training(half=True, finish=lambda folder: (folder / "more.txt").write_text("more")), tmp_path, watch=Quiet())
    assert (tmp_path / "more.txt").read_text() == "more"
    whole = tmp_path / "whole"
    train(training(), whole, watch=Quiet())
    small, large = (weights.read(folder)[0]["first.weight"] for folder in (tmp_path, whole))
    assert torch.equal(small, large.half().float())


def test_another_training_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    train(training(), tmp_path, watch=Quiet())
    with pytest.raises(StudyMismatch, match=r"differs in config.kind: .*; resume=False .* trains anew"):
        train(training(config={"kind": "other"}), tmp_path, watch=Quiet())
    other = train(training(config={"kind": "other"}), tmp_path, resume=False, watch=Quiet())
    assert other.result.ok and weights.read(tmp_path)[1]["kind"] == "other"


def test_a_run_that_learned_nothing_leaves_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="a net: .*nothing was kept but its journal"):
        train(training(lr=1e6, options=TrainOptions(device="cpu")), tmp_path, watch=Quiet())
    assert not (tmp_path / weights.WEIGHTS).exists()


def test_a_run_that_failed_goes_on_where_it_was(tmp_path: Path) -> None:
    """A sheet of samples cannot be written at step 20; once it can, nothing is trained twice, and it ends as ever."""
    whole, full, seen = tmp_path / "whole", [True], list[int]()

    def show(model: nn.Module, step: int) -> None:
        seen.append(step)
        if full and step == 20:
            raise OSError(28, "No space left on device")

    some = training(show=show, show_every=1, checkpoint_every=1)
    with pytest.raises(FitError, match="No space left on device.*its last state is kept: mend that, and the same call"):
        train(some, tmp_path / "cut", watch=Quiet())
    full.clear()
    again = train(some, tmp_path / "cut", watch=Quiet())
    assert seen == [*range(1, 21), *range(20, again.result.spec.steps + 1)]
    assert train(some, whole, watch=Quiet()).result.looks == again.result.looks
    assert (whole / weights.WEIGHTS).read_bytes() == (tmp_path / "cut" / weights.WEIGHTS).read_bytes()
    assert not list((tmp_path / "cut" / "checkpoints").glob("run-*"))


def test_a_failure_before_the_first_state_is_told_so(tmp_path: Path) -> None:
    def show(model: nn.Module, step: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(FitError, match="it had kept no state yet: mend that, and the same call begins anew"):
        train(training(show=show, show_every=1), tmp_path, watch=Quiet())


def test_last_weights_that_are_worse_than_none_make_no_bundle(tmp_path: Path) -> None:
    """Looks on the way were good; what is kept is ruined at the end."""

    def show(model: nn.Module, step: int) -> None:
        if step == 40:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1e3)

    options = TrainOptions(device="cpu", looks=4)
    made = training(show=show, show_every=1, options=options, steps=40, choose=False)
    with pytest.raises(FitError, match="a net: the weights that are kept .* not learned; lower lr"):
        train(made, tmp_path, watch=Quiet())
    assert not (tmp_path / weights.WEIGHTS).exists()
    assert train(replace(made, choose=True), tmp_path, watch=Quiet()).result.ok  # the best look's are not ruined
    found = train_several({"a": made}, tmp_path / "several", InlineExecutor(), watch=Quiet())
    assert found["a"].metrics == () and not (tmp_path / "several" / "a" / weights.WEIGHTS).exists()


@pytest.mark.parametrize("name", [weights.WEIGHTS, weights.CONFIG, METRICS, TRAINING])
def test_a_bundle_that_lost_a_file_is_made_again_without_training(name: str, tmp_path: Path) -> None:
    first = train(training(), tmp_path, watch=Quiet())
    whole = (tmp_path / weights.WEIGHTS).read_bytes()
    (tmp_path / name).unlink()
    again = train(training(), tmp_path, watch=Quiet())
    assert again.metrics == first.metrics and [one.name for one in again.metrics] == [one.name for one in first.metrics]
    assert (tmp_path / weights.WEIGHTS).read_bytes() == whole
    assert (tmp_path / "journal.jsonl").read_text().count('"kind":"run"') == 1


def test_a_fresh_start_that_fails_leaves_the_bundle_of_before(tmp_path: Path) -> None:
    train(training(), tmp_path, watch=Quiet())
    whole = (tmp_path / weights.WEIGHTS).read_bytes()
    with pytest.raises(FitError, match="its journal; the bundle in the folder is of a run before it: lower lr"):
        train(training(lr=1e6, options=TrainOptions(device="cpu")), tmp_path, resume=False, watch=Quiet())
    assert (tmp_path / weights.WEIGHTS).read_bytes() == whole and (tmp_path / TRAINING).exists()


def test_a_finished_training_is_finished(tmp_path: Path) -> None:
    found = train(training(), tmp_path, watch=Quiet())
    told = status(tmp_path)
    assert told.state == "finished" and f"loss {found.result.loss:.4f}" in (told.verdict or "")


def test_several_are_each_what_they_are_alone(tmp_path: Path) -> None:
    """Two seeds of one study and another size, in worker processes; then one more, and nothing is run twice."""
    wide = training(size=16, config={"kind": "net", "width": 16})
    each = {"a": training(), "again": training(), "b": training(seed=1), "wide": wide}
    found = train_several(each, tmp_path / "all", ProcessExecutor(2), watch=Quiet())
    for name, one in each.items():
        alone = train(one, tmp_path / name, watch=Quiet())
        assert found[name].metrics == alone.metrics and found[name].result.loss == alone.result.loss
        assert weights.read(tmp_path / "all" / name)[1] == weights.read(tmp_path / name)[1]
    before = (tmp_path / "all" / "journal.jsonl").read_text()
    more = train_several({**each, "c": training(seed=2)}, tmp_path / "all", ProcessExecutor(2), watch=Quiet())
    after = (tmp_path / "all" / "journal.jsonl").read_text()
    assert after.startswith(before) and after.count('"kind":"run"') == 4
    assert {name: one.metrics for name, one in more.items() if name != "c"} == {n: o.metrics for n, o in found.items()}


def test_one_of_several_that_fails_is_told_and_has_no_bundle(tmp_path: Path) -> None:
    bad = training(lr=1e12, config={"kind": "net", "width": 8, "bad": True})
    found = train_several({"good": training(), "bad": bad}, tmp_path, ProcessExecutor(1), watch=Quiet())
    assert found["good"].result.ok and found["good"].metrics
    assert not found["bad"].result.ok and found["bad"].metrics == () and not (tmp_path / "bad" / METRICS).exists()


def test_a_fresh_start_uses_no_state_of_before(tmp_path: Path) -> None:
    train(training(), tmp_path, watch=Quiet())
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    left = tmp_path / "checkpoints" / "run-of-before.pt"
    left.write_bytes(b"")
    again = train(training(), tmp_path, watch=Quiet(), resume=False)
    assert not left.exists() and again.result.status == "ok" and (tmp_path / "journal-1.jsonl").exists()


def test_a_fresh_start_is_judged_anew(tmp_path: Path) -> None:
    """With the same settings too: the engine or the judges may have been mended since."""
    train(training(), tmp_path, watch=Quiet())
    mended = train(training(evaluate=lambda model: [replace(judged(model)[0], name="mended")]), tmp_path, watch=Quiet(),
                   resume=False)  # fmt: skip
    assert [metric.name for metric in mended.metrics] == ["mended"]
    assert json.loads((tmp_path / METRICS).read_text())["metrics"].keys() == {"mended"}


def test_a_run_whose_judge_fails_is_not_lost(tmp_path: Path) -> None:
    """The best of several averages is chosen after the run; what follows may be done again, by itself."""
    some = {"options": TrainOptions(device="cpu", looks=4, snapshots=8), "lengths": (0.05, 0.2), "choose": False}

    def fails(model: nn.Module) -> list[Metric]:
        raise MemoryError("no memory for the Gaussian")

    whole = train(training(**some), tmp_path / "whole", watch=Quiet())
    with pytest.raises(MemoryError, match="no memory"):
        train(training(**some, evaluate=fails), tmp_path / "again", watch=Quiet())
    again = train(training(**some), tmp_path / "again", watch=Quiet())
    journal = (tmp_path / "again" / "journal.jsonl").read_text()
    assert again.metrics == whole.metrics and journal.count('"kind":"run"') == 1
    told = [json.loads((tmp_path / name / TRAINING).read_text())["best"] for name in ("whole", "again")]
    assert told[0] == told[1] and told[0]["averages"].keys() == {"0.05", "0.2"}


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    train(training(), tmp_path, watch=Quiet())
    with pytest.raises(StudyMismatch):
        train(training(lr=0.01), tmp_path, watch=Quiet())


def test_a_failure_leaves_no_bundle_of_another_run(tmp_path: Path) -> None:
    """And training.json stands only beside the files of its own run, wherever it was killed."""
    train_several({"a": training()}, tmp_path, InlineExecutor(), watch=Quiet())
    (tmp_path / "a" / TRAINING).unlink()  # as if killed before it was written
    found = train_several({"a": training(lr=1e12)}, tmp_path, InlineExecutor(), watch=Quiet())["a"]
    assert not found.result.ok and {path.name for path in (tmp_path / "a").iterdir()} == set()
    found = train_several({"a": training()}, tmp_path, InlineExecutor(), watch=Quiet())["a"]
    assert found.metrics and weights.read(tmp_path / "a")[1]["kind"] == "net"


@pytest.mark.parametrize("changes", [{"epochs": float("nan")}, {"epochs": 0.0}, {"lr": -1.0}, {"lr": float("inf")}])
def test_numbers_that_cannot_be(changes: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allowed are finite numbers above 0"):
        train(training(**changes), tmp_path, watch=Quiet())
