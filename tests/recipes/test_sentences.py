"""The recipe of flows over vectors: trained, kept, loaded, sampled, in all flows; names and shapes that are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flops_fit.data.vectors import Vectors
from flops_fit.errors import InputError
from flops_fit.flow.precondition import Turned
from flops_fit.models import ARCHITECTURES, weights
from flops_fit.recipes.sentences import FLOWS, Matching, SentenceFlow, training
from flops_fit.runs.watch import Quiet
from flops_fit.study.training import prepared, train
from flops_fit.train.keep import BEST, LAST
from flops_fit.train.options import TrainOptions

DIM = 32
FAST = TrainOptions(device="cpu", looks=2, ema=0.1)


def rings(n: int, seed: int) -> Tensor:
    """Sixteen circles: their covariance is a Gaussian's, they are not."""
    angle = torch.rand(n, DIM // 2, generator=torch.Generator().manual_seed(seed)) * 6.2832
    return torch.cat((angle.cos(), 3 * angle.sin()), dim=1) + 5


def vectors(n: int = 300, seed: int = 3) -> Vectors:
    values = rings(n, seed)
    return Vectors(values, tuple(f"text {i}" for i in range(n)), {}, "rings")


def curve(n: int, seed: int) -> Vectors:
    """A closed line through 8 dimensions: all its waves are uncorrelated, and one number tells all eight."""
    angle = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed)) * 6.2832
    waves = angle * torch.arange(1, 5)
    return Vectors(torch.cat((waves.cos(), waves.sin()), dim=1), ("",) * n, {}, "a curve")


def one(**changes: Any) -> Any:
    given = {"arch": "mlp", "size": "tiny", "epochs": 2.0, "batch_size": 32, "options": FAST}
    return training(vectors(), vectors(100, 4), **given | changes)


@pytest.mark.parametrize("flow", sorted(FLOWS))
def test_every_flow_is_trained_kept_and_sampled(flow: str, tmp_path: Path) -> None:
    teacher = None
    if flow == "reflow":
        train(one(), tmp_path / "teacher", watch=Quiet())
        teacher = SentenceFlow.load(tmp_path / "teacher")
    found = train(one(flow=flow, teacher=teacher), tmp_path / flow, watch=Quiet())
    names = {metric.name for metric in found.metrics}
    assert {"loss", "loss_zero", "loss_isotropic", "loss_gaussian", "explained"} <= names
    loaded = SentenceFlow.load(tmp_path / flow)
    sample = loaded.sample(50, seed=1, steps=4)
    assert sample.x.shape == (50, DIM) and sample.nfe == 8
    assert torch.equal(sample.x, loaded.sample(50, seed=1, steps=4).x)
    again = {metric.name: metric.value for metric in loaded.losses(vectors(100, 4).values).metrics()}
    assert again == pytest.approx({metric.name: metric.value for metric in found.metrics}, rel=1e-6)


def test_what_is_said_of_the_gaussian_is_done_and_the_default_is_by_network() -> None:
    told = [one(arch="dit-chunked", preconditioned=said).config["preconditioned"] for said in (True, False, None)]
    assert told == [True, False, True]
    own = replace(vectors(), codec="codec@0123")
    for arch in ARCHITECTURES:
        made = training(own, vectors(100, 4), arch, "tiny")
        assert made.config["preconditioned"] == (arch != "dit-chunked")


@pytest.mark.parametrize("preconditioned", [True, False])
@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_network_is_trained_and_loaded(arch: str, preconditioned: bool, tmp_path: Path) -> None:
    found = train(one(arch=arch, epochs=1.0, preconditioned=preconditioned), tmp_path, watch=Quiet())
    loaded = SentenceFlow.load(tmp_path)
    assert found.result.ok and loaded.config["arch"] == arch
    again = {metric.name: metric.value for metric in loaded.losses(vectors(100, 4).values).metrics()}
    assert again == pytest.approx({metric.name: metric.value for metric in found.metrics}, rel=1e-6)


@pytest.mark.parametrize(("arch", "turned"), [("mlp", False), ("dit", False), ("unet", False), ("ssm", True),
                                              ("dit-chunked", True)])  # fmt: skip
def test_networks_of_pieces_see_vectors_in_their_own_order(arch: str, turned: bool) -> None:
    for preconditioned in (True, False):
        made = one(arch=arch, preconditioned=preconditioned)
        model = made.model_cls(made.size, **made.model_kwargs)
        assert isinstance(model.network if preconditioned else model, Turned) == turned


@pytest.mark.parametrize("flow", ["icfm", "gvp"])
def test_remembered_data_are_trained_kept_and_sampled(flow: str, tmp_path: Path) -> None:
    made = training(curve(300, 3), curve(100, 4), "kernel", flow=flow, epochs=4.0, batch_size=32, options=FAST)
    told = {metric.name: metric.value for metric in train(made, tmp_path, watch=Quiet()).metrics}
    assert told["loss"] < 0.9 * told["loss_gaussian"]
    loaded = SentenceFlow.load(tmp_path)
    again = {metric.name: metric.value for metric in loaded.losses(curve(100, 4).values).metrics()}
    assert again == pytest.approx(told, rel=1e-6)
    assert loaded.sample(20, steps=3).x.shape == (20, 8)


@pytest.mark.parametrize("flow", ["icfm", "gvp"])
def test_without_a_network_the_gaussian_is_what_is_sampled(flow: str) -> None:
    """An untrained network over the Gaussian: samples have the data's mean and spread, and are in closed form."""
    made = one(flow=flow)
    whole = SentenceFlow(made.config)
    model = made.model_cls(**{made.size_param: made.size, **made.model_kwargs})
    weights.fill(whole, made.parts(model), "untrained")
    x = whole.sample(4000, steps=20).x
    for until in (0.2, 0.7, 1.0):  # read on the way too, with noise on them
        finely = whole.sample(50, method="rk4", steps=100, until=until).x
        expected = whole.gaussian_sample(50, until=until)
        torch.testing.assert_close(finely, expected, rtol=1e-3, atol=1e-3)  # of steps of 1/100 in float32
    torch.testing.assert_close(x.mean(dim=0), vectors().values.mean(dim=0), rtol=0, atol=0.15)  # 300 vectors, std 2.1
    torch.testing.assert_close(x.std(dim=0), vectors().values.std(dim=0), rtol=0.15, atol=0)


@pytest.mark.parametrize("until", [0.0, -0.1, 1.1, float("nan")])
def test_samples_are_read_on_the_way_or_at_its_end(until: float, tmp_path: Path) -> None:
    train(one(), tmp_path, watch=Quiet())
    with pytest.raises(InputError, match="until: got .*; allowed is a time above 0, noise, up to 1, data"):
        SentenceFlow.load(tmp_path).sample(2, until=until)


def test_a_trained_network_knows_more_than_the_gaussian(tmp_path: Path) -> None:
    made = training(curve(2000, 5), curve(300, 6), size="small", epochs=40.0, lr=3e-3, options=FAST)
    told = {metric.name: metric for metric in train(made, tmp_path, watch=Quiet()).metrics}
    assert told["loss"].value < told["loss_gaussian"].value < told["loss_zero"].value
    assert told["explained"].lo > told["explained_gaussian"].value


def test_times_and_augmentation_are_for_training_alone() -> None:
    """And the coupling is not: the best velocity of other pairs is another, and best weights are chosen by its loss."""
    model = torch.nn.Linear(DIM, DIM)

    class Net(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return model(x)  # type: ignore[no-any-return]

    losses = []
    for objective in (
        Matching("linear"), Matching("linear", "independent", "logit-normal", "noise:0.5"),
        Matching("linear", "optimal"),
    ):  # fmt: skip
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(float(objective(Net().eval(), [vectors().values])))
    assert losses[0] == losses[1] != losses[2]


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours may catch it."""


@pytest.mark.parametrize("changes", [
    {}, {"flow": "otcfm", "times": "mixture"}, {"flow": "gvp", "augmentation": "mixup:0.2,noise:0.1,dropout:0.1"},
    {"arch": "kernel"},
], ids=lambda changes: "-".join(changes.values()) or "icfm")  # fmt: skip
def test_ten_steps_and_ten_more_are_twenty_bit_by_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    """Averaged weights and those as they are: noise, pairs, times and augmentation go on where they were."""
    made = one(**changes, epochs=2.1)
    trainer, spec, _ = prepared(made, tmp_path / "whole")
    assert spec.steps == 20
    trainer(spec)
    broken, _, _ = prepared(made, tmp_path / "broken")
    broken = broken.on(checkpoint_seconds=0.0)

    def progress(done: int, loss: float) -> None:
        if done == 11:  # the state after ten steps was on the disk before
            raise Killed

    with pytest.raises(Killed):
        broken(spec, progress)
    told: list[int] = []
    broken(spec, lambda done, loss: told.append(done))
    assert told[:2] == [10, 11]  # it tells where it goes on from
    for kind in (BEST, LAST):
        whole, again = (weights.read(tmp_path / name / "kept" / spec.key / kind)[0] for name in ("whole", "broken"))
        assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_reflow_says_which_statistics_its_teacher_has(tmp_path: Path) -> None:
    train(one(statistics="robust"), tmp_path / "teacher", watch=Quiet())
    teacher = SentenceFlow.load(tmp_path / "teacher")
    student = one(flow="reflow", teacher=teacher).config
    assert (student["statistics"], student["gaussian"]) == ("robust", teacher.config["gaussian"])
    assert student["predicts"] == "velocity"
    noise = one(flow="reflow", teacher=teacher).dataset.tensors[0]
    for seed in range(5):  # what it learns from is no noise that it will be judged by
        assert not torch.equal(noise[0], teacher.noise(1, seed)[0])


@pytest.mark.parametrize(("changes", "said"), [
    ({"flow": "icfn"}, "flow: got 'icfn'; .*did you mean icfm"),
    ({"arch": "mpl"}, "arch: got 'mpl'; .*did you mean mlp"),
    ({"arch": "kernel", "flow": "otcfm"}, "use icfm or gvp"),
    ({"arch": "kernel", "size": "huge"}, "size: got 'huge'; allowed are tiny, small, base"),
    ({"size": "huge"}, "size: got 'huge'; allowed are tiny, small, base"),
    ({"flow": "reflow"}, "give --teacher BUNDLE"),
    ({"arguments": {"dim": 8}}, "arguments: got dim, which is that of the vectors"),
    ({"statistics": "mean"}, "statistics: got 'mean'; allowed are standard, robust, common"),
])  # fmt: skip
def test_what_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        one(**changes)


def test_a_bundle_of_something_else_is_refused(tmp_path: Path) -> None:
    weights.save(tmp_path, {}, {"kind": "cats"})
    with pytest.raises(InputError, match="a bundle of kind 'cats'"):
        SentenceFlow.load(tmp_path)
    train(one(), tmp_path / "flow", watch=Quiet())
    config = dict(weights.read(tmp_path / "flow")[1], arch="unet")
    tensors = weights.read(tmp_path / "flow")[0]
    for broken in ({"dim": "16"}, {"arguments": None}, {"arch": "mpl"}, {"size": []}):
        weights.save(tmp_path / "broken", tensors, {**config, "arch": "mlp", **broken})
        with pytest.raises(InputError, match="its config makes no network|got 'mpl'|dim of mlp: got '16'"):
            SentenceFlow.load(tmp_path / "broken")
    weights.save(tmp_path / "broken", tensors, {k: v for k, v in config.items() if k != "preconditioned"})
    with pytest.raises(InputError, match="its config lacks preconditioned"):
        SentenceFlow.load(tmp_path / "broken")
    weights.save(tmp_path / "wrong", tensors, config)
    with pytest.raises(InputError, match="weights of another architecture"):
        SentenceFlow.load(tmp_path / "wrong")


@pytest.mark.parametrize("preconditioned", [True, False])
def test_times_and_widths_that_no_flow_has_are_refused(preconditioned: bool, tmp_path: Path) -> None:
    """Also by a network that stands alone, which would answer something."""
    train(one(preconditioned=preconditioned, epochs=0.1), tmp_path, watch=Quiet())
    velocity = SentenceFlow.load(tmp_path).velocity
    for time in (2.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="t: got"):
            velocity(torch.zeros(1, DIM), torch.tensor([time]))
    with pytest.raises(InputError, match=r"x: got shape \(1, 31\); the flow takes \(B, 32\)"):
        velocity(torch.zeros(1, DIM - 1), torch.tensor([0.5]))


def test_a_config_that_says_nothing_usable_is_refused(tmp_path: Path) -> None:
    train(one(epochs=0.1), tmp_path / "flow", watch=Quiet())
    tensors, config = weights.read(tmp_path / "flow")
    for name, value, said in (("codec", 5, "codec in its config is 5"), ("predicts", "foo", "predicts: got 'foo'")):
        weights.save(tmp_path / name, tensors, {**config, name: value})
        with pytest.raises(InputError, match=said):
            SentenceFlow.load(tmp_path / name)
