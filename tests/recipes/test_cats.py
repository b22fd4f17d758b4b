"""The recipe of flows over pictures: trained, kept, loaded, sampled; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flops_fit.data.cats import CLASSES
from flops_fit.data.pictures import Pictures
from flops_fit.errors import FitError, InputError
from flops_fit.models import weights
from flops_fit.recipes.cats import AT_ONCE, CatFlow, Guidance
from flops_fit.recipes.dit_cats import (
    COMPILED_FROM,
    LENGTHS,
    PRESETS,
    TRIAL,
    CatMatching,
    Preset,
    Sheets,
    training,
)
from flops_fit.recipes.judged_cats import (
    OF_HELD_OUT,
    OF_MEMORY,
    Eyes,
    Findings,
    Labelled,
    Sets,
    Shown,
    of_samples,
)
from flops_fit.runs.watch import Quiet
from flops_fit.study.training import train
from train.test_compiled import COMPILER_WARNS, COMPILES

SIZE = 8
TINY = {"image_size": SIZE, "patch": 2, "hidden": 32, "layers": 2, "heads": 2}
FAST = Preset(network="tinydit-32", steps=200, batch_size=16, lr=5e-3, warmup_steps=20, looks=4)


def squares(n: int = 500, held_out: int = 60) -> Pictures:
    """A light square of 3 x 3 on dark, anywhere; its class says how high. No Gaussian knows edges."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randint(0, SIZE - 2, (n, 1), generator=generator) for _ in range(2))
    line = torch.arange(SIZE)
    inside = ((line >= rows) & (line < rows + 3))[:, :, None] & ((line >= columns) & (line < columns + 3))[:, None]
    pixels = (40 + 180 * inside.byte())[:, None].expand(-1, 3, -1, -1).contiguous()  # (n, 3, S, S)
    splits = np.array(["val"] * held_out + ["train"] * (n - held_out))
    return Pictures(name="squares", pixels=pixels, labels=(rows[:, 0] // 2).numpy(), splits=splits)


SQUARES = squares()
OTHER_NOISE = 0.05  # relative, of a loss of 60 pictures with other noise and times
NEARLY = 0.01  # relative, of the loss of an average that eight snapshots make
ROUNDING = 1e-3  # relative, of a loss after 20 steps whose sums are taken in another order
FLOAT32 = 1e-4  # of pixels in 0..255, before rounding


def one(preset: Preset = FAST, **changes: Any) -> Any:
    return training(SQUARES, preset, **{"network": TINY} | changes)


class Heard(Quiet):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cats")
    train(one(), made / "flow", watch=Quiet())
    return made / "flow"


def test_it_is_trained_kept_and_sampled(folder: Path) -> None:
    flow = CatFlow.load(folder)
    labels = torch.arange(5)
    found = flow.sample(labels, seed=1, steps=4)
    assert found.shape == (5, 3, SIZE, SIZE) and found.dtype == torch.uint8
    assert torch.equal(flow.sample(labels, seed=1, steps=4), found)
    assert torch.equal(flow.sample(labels[:2], seed=1, steps=4), found[:2])  # picture i does not ask how many there are
    assert not torch.equal(flow.sample(labels, seed=2, steps=4), found)
    for one, other in (((0, 0), (2**20, 0)), ((0, 2), (2, 0)), ((0, 0), (4096, 0))):  # no seed is another one's
        assert not torch.equal(flow.noise(*one), flow.noise(*other))
    others = flow.sample(labels + 1, seed=1, steps=4)
    assert (others.int() - found.int()).abs().max() > 0
    parts = list(flow.drawn(labels.repeat(2)[:9], seed=1, steps=1))
    assert [len(part) for part in parts] == [AT_ONCE, 1] and AT_ONCE == 8
    assert torch.equal(torch.cat(parts), flow.sample(labels.repeat(2)[:9], seed=1, steps=1))


def test_it_learned_more_than_the_gaussians(folder: Path) -> None:
    """After 200 steps of 16 pictures its loss is below that of every predictor that needs no training."""
    flow = CatFlow.load(folder)
    train_set, held_out = one().dataset, one().held_out
    found = {m.name: m for m in flow.losses(held_out.pixels, held_out.labels, train_set.pixels).metrics()}
    order = [found[f"loss{of}"].value for of in ("", "_gaussian", "_isotropic", "_zero")]
    assert order == sorted(order)


@pytest.mark.parametrize("changes", [
    {"precondition": "spectral"}, {"precondition": "residual"}, {"precondition": "none"}, {"predicts": "data"},
    {"augmentation": "full"},
])
def test_other_ways_come_back_as_they_were(changes: dict[str, Any], tmp_path: Path) -> None:
    preset = replace(FAST, times="uniform", looks=1, lr=2e-3)
    made = train(one(preset, **changes), tmp_path, watch=Quiet())
    held_out, flow = one().held_out, CatFlow.load(tmp_path)
    again = {m.name: m.value for m in flow.losses(held_out.pixels, held_out.labels).metrics()}
    assert again["loss"] == pytest.approx({m.name: m.value for m in made.metrics}["loss"], rel=FLOAT32)


def test_every_look_is_told_beside_what_needs_no_training(tmp_path: Path) -> None:
    heard = Heard()
    made = train(one(), tmp_path, watch=heard)
    told, metrics = json.loads((tmp_path / "training.json").read_text()), {m.name: m.value for m in made.metrics}
    looks = [line for line in heard.said if "held-out loss" in line]
    assert len(looks) == FAST.looks and looks[0].startswith("step 50: ")
    assert "zero" in looks[0] and "Gaussian" in looks[0]
    for name, metric in (("zero", "loss_zero"), ("Gaussian", "loss_spectral")):
        assert told["baselines"][name] == pytest.approx(metrics[metric], rel=OTHER_NOISE)


def test_the_length_of_the_average_is_chosen_after_the_run(tmp_path: Path) -> None:
    preset = replace(FAST, ema=None)
    train(one(preset), tmp_path, watch=Quiet())
    told = json.loads((tmp_path / "training.json").read_text())
    best, last = told["best"], told["looks"][-1][1]
    assert list(best["averages"]) == [f"{length:g}" for length in LENGTHS]
    assert best["held_out_loss"] == min([*best["averages"].values(), *(loss for _, loss in told["looks"])])
    assert best["averages"][f"{LENGTHS[0]:g}"] == pytest.approx(last, rel=NEARLY)  # the one that the run followed


def test_guidance_changes_what_it_should(folder: Path) -> None:
    flow, labels = CatFlow.load(folder), torch.tensor([0, 3])
    plain = flow.sample(labels, steps=4, guidance=1.0)
    assert torch.equal(flow.sample(labels, steps=4, guidance=Guidance(scale=2, interval=(0.9999, 1.0)), method="euler"),
                       flow.sample(labels, steps=4, guidance=1.0, method="euler"))  # fmt: skip
    for other in (Guidance(scale=3), Guidance(scale=3, optimised=True), Guidance(scale=2, weaker=flow)):
        same = torch.equal(flow.sample(labels, steps=4, guidance=other), plain)
        assert same == (other.weaker is flow)  # away from itself is nowhere


def test_without_labels_it_is_the_null_class(folder: Path) -> None:
    """Dropped labels become K, the label that guidance takes for none."""
    model = CatFlow.load(folder).network
    seen = []

    class Listens(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            seen.append(labels)
            return torch.zeros_like(x, requires_grad=True)

    matching, listens = CatMatching(13), Listens()
    batch = torch.randn(4000, 1, 1, 1), torch.zeros(4000, dtype=torch.int64)
    matching(listens.train(), batch)
    matching(listens.eval(), batch)
    dropped = (seen[0] == model.null).float().mean()
    assert 0.08 < dropped < 0.12 and set(seen[0].tolist()) == {0, 13}  # a tenth, within four deviations
    assert seen[1].unique().tolist() == [0]


def test_a_class_that_was_never_seen_cannot_be_asked_for(folder: Path) -> None:
    flow = CatFlow.load(folder)
    assert flow.label("bengal") == 1 and flow.label(None) == flow.network.null
    with pytest.raises(InputError, match="--class: got 'Sphynx', .* allowed are Abyssinian, Bengal, Birman$"):
        flow.label("Sphynx")


def test_how_it_is_led_is_in_its_config(folder: Path, tmp_path: Path) -> None:
    assert CatFlow.load(folder).led_so == {} and CatFlow.load(folder).led(3.0) == Guidance(3.0)
    tensors, config = weights.read(folder)
    so = {"interval": [0.1, 0.9], "optimised": True}
    weights.save(tmp_path, tensors, {**config, "sampling": {"guidance": 2.0, **so}})
    flow = CatFlow.load(tmp_path)
    assert flow.led_so == so and flow.led() == Guidance(2.0, (0.1, 0.9), True) and flow.led(5.0).scale == 5.0


def test_where_val_is_beside_test_it_alone_chooses(tmp_path: Path) -> None:
    """Looks, and with them the length of an average, are of val; what is measured at the end is of test."""
    splits = SQUARES.splits.copy()
    splits[:30] = "test"
    made = training(replace(SQUARES, splits=splits), replace(FAST, steps=20, warmup_steps=2), network=TINY)
    assert torch.equal(made.held_out.pixels, SQUARES.pixels[30:60])
    assert len(made.dataset) == 440 and made.config["held_out_hash"] != made.held_out.fingerprint
    found = train(made, tmp_path, watch=Quiet())
    assert {metric.n for metric in found.metrics} == {30}
    again = CatFlow.load(tmp_path).losses(SQUARES.pixels[:30], torch.from_numpy(SQUARES.labels[:30])).metrics()
    told = {metric.name: metric.value for metric in found.metrics}
    assert {m.name: m.value for m in again}["loss"] == pytest.approx(told["loss"], rel=FLOAT32)


def test_what_one_training_picture_cannot_tell_is_absent(folder: Path) -> None:
    flow, labels, pixels = CatFlow.load(folder), torch.from_numpy(SQUARES.labels), SQUARES.pixels
    some, one = Labelled(pixels[1:61], labels[1:61]), Labelled(pixels[:1], labels[:1])
    sets = Sets(Labelled(pixels, labels), some, one, (), "", "")
    eyes = Eyes(lambda some: some.flatten(1).double(), None, {}, {})  # type: ignore[arg-type]
    made, found = Labelled(flow.sample(labels[:24], steps=1), labels[:24]), Findings()
    of_samples(found, flow, sets, eyes, made, 0, Shown(CLASSES, {}))
    assert {*OF_MEMORY, *OF_HELD_OUT} <= found.absent.keys() and "one picture" in found.absent["memorised"]
    assert "frechet_samples" in {metric.name for metric in found.metrics}


def test_presets_say_what_they_are_called_for() -> None:
    base, high = PRESETS["baseline"], PRESETS["high-accuracy"]
    assert (base.steps, base.batch_size, base.lr, base.warmup_steps) == (300_000, 256, 1e-4, 10_000)
    assert (high.steps, high.accumulation, high.lr, high.warmup_steps) == (400_000, 2, 5e-5, 15_000)


def test_long_runs_are_compiled_and_others_if_asked() -> None:
    lengths = [replace(FAST, steps=steps, looks=1) for steps in (COMPILED_FROM - 1, COMPILED_FROM)]
    assert [one(preset).compiled for preset in lengths] == [False, True]
    for asked in (True, False):
        assert [one(replace(preset, compiled=asked)).compiled for preset in lengths] == [asked, asked]


@COMPILES
@COMPILER_WARNS
def test_a_compiled_run_is_the_same_but_for_rounding(tmp_path: Path) -> None:
    short = replace(FAST, steps=20, warmup_steps=2, looks=1, precision="fp32")
    found = {}
    for asked in (True, False):
        train(one(replace(short, compiled=asked)), tmp_path / str(asked), watch=Quiet())
        told = json.loads((tmp_path / str(asked) / "training.json").read_text())
        assert ("compiled" in told["environment"]) == asked
        found[asked] = told["loss"]
    assert found[True] == pytest.approx(found[False], rel=ROUNDING)


def test_sheets_of_samples_are_drawn_on_the_way(folder: Path, tmp_path: Path) -> None:
    """And change nothing of the run."""
    train(one(sheets=Sheets(tmp_path, 80)), tmp_path / "flow", watch=Quiet())
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == ["160.png", "80.png"]
    plain, watched = (weights.read(made)[0] for made in (folder, tmp_path / "flow"))
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    made = one(replace(FAST, batch_size=8, accumulation=2))
    assert made.batch_size == 16 and made.micro_batch == 8


@pytest.mark.parametrize(("made", "said"), [
    (lambda: one(replace(FAST, warmup_steps=21)), "warmup_steps: got 21 of 200 steps; allowed are 10%"),
    (lambda: training(SQUARES, FAST), "data: got pictures of 8 pixels; tinydit-32 takes 32"),
    (lambda: one(replace(FAST, network="tinydit-46")), "did you mean tinydit-64"),
    (lambda: one(network={**TINY, "patch": 5}), "image_size: got 8, no multiple of patch=5; allowed are 5, 10"),
    (lambda: one(replace(FAST, times="unifrom")), "did you mean uniform"),
])  # fmt: skip
def test_what_cannot_be_trained(made: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        train(made(), tmp_path, watch=Quiet())


def test_weights_of_another_preset_are_refused(folder: Path, tmp_path: Path) -> None:
    tensors, config = weights.read(folder)
    weights.save(tmp_path, tensors, {**config, "network": {**config["network"], "layers": 3}})
    with pytest.raises(InputError, match="another architecture"):
        CatFlow.load(tmp_path)
    weights.save(tmp_path, tensors, {**config, "kind": "sentences"})
    with pytest.raises(InputError, match="a bundle of kind 'sentences'; allowed is 'cats'"):
        CatFlow.load(tmp_path)


def test_a_rate_at_which_nothing_is_learned_is_told(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="after 150 of 300 steps .* it does not learn"):
        train(one(replace(FAST, lr=1e-9, steps=TRIAL)), tmp_path, watch=Quiet())


def test_of_a_trial_nothing_is_expected(tmp_path: Path) -> None:
    """A few steps show that all is in place; what they learned stands beside what needs no training."""
    found = train(one(replace(FAST, lr=1e-9, steps=20, warmup_steps=2)), tmp_path, watch=Quiet())
    told = {metric.name: metric.value for metric in found.metrics}
    assert told["loss"] == pytest.approx(told["loss_spectral"], rel=OTHER_NOISE) and CatFlow.load(tmp_path)
