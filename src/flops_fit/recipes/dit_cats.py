"""dit-cats: how flows over pictures of cats are trained, and how large they should be. D counts patches of them.

command   flops-fit train dit-cats --data DIR --preset cpu-64 --output outputs/cats-64
what was learned, at which price: experiments/cats
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as Folder
from typing import Any, cast

import torch
from torch import Tensor, nn

from flops_fit.data.cats import CLASSES, cat_pictures
from flops_fit.data.images import Augment, Images, enough, sides, spare, statistics
from flops_fit.data.pictures import Pictures, drawn_shapes, sheet, write_png
from flops_fit.errors import InputError
from flops_fit.evaluate.metric import Metric
from flops_fit.flow.baselines import zero
from flops_fit.flow.loss import Flow, flow_loss
from flops_fit.flow.paths import Prediction, path_named
from flops_fit.flow.precondition import Around
from flops_fit.flow.solvers import Velocity
from flops_fit.flow.spectral import Spectrum
from flops_fit.flow.times import times_named
from flops_fit.models.tinydit import PRESETS as NETWORKS
from flops_fit.models.tinydit import TinyDiT
from flops_fit.recipes.cats import KIND, PRECONDITIONS, CatFlow, preconditioned
from flops_fit.study import Study
from flops_fit.study.training import Training
from flops_fit.train.options import MOST_WARMUP, Show, TrainOptions

LENGTHS = (0.05, 0.07, 0.1, 0.14, 0.18)  # of averages of weights, shares of the run
SNAPSHOTS = 8  # on the way, of which those are made (T1c)
LEARNS_BY = 0.5  # of the run: by then it is better than it began, or it ends
COMPILED_FROM = 1000  # steps: fewer hardly earn back what compiling takes
TRIAL = 300  # steps: of fewer nothing is expected
DROPPED = 0.1  # of the labels in training become the null label (Ho and Salimans 2022, arXiv 2207.12598)
PRECONDITION = "residual"  # without it losses get lower and samples worse: experiments/cats/LOG.md
AUGMENTATIONS: Mapping[str, Augment] = {"none": "none", "basic": "mirrored", "full": "moved"}
SWEEP_SIZE, SWEEP_NETWORK = 32, "tinydit-32"
SWEEP_EPOCHS = 200  # a picture comes back with other noise, and mirrored
DRAWN = 4  # moved pictures of each, of which the spectrum is
SHEET_STEPS = 12  # of Heun's method: a look, no measurement


@dataclass(frozen=True)
class CatMatching:
    """(model, (pictures (B, C, S, S), labels (B,), changes (B, A) where they are told)) -> loss. In training some
    labels are dropped and times are chosen; held out, every label is told and times are uniform."""

    classes: int
    path: str = "linear"
    times: str = "uniform"
    predicts: Prediction = "velocity"

    def __post_init__(self) -> None:
        _ = self.flow  # unknown names are told before anything is trained

    @property
    def flow(self) -> Flow:
        return Flow(path_named(self.path), times_named(self.times), predicts=self.predicts)

    def __call__(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        pictures, labels, *changes = batch
        if not model.training:
            return flow_loss(model, Flow(path_named(self.path), predicts=self.predicts), pictures, labels)
        dropped = torch.rand(len(labels), device=labels.device) < DROPPED
        network = partial(model, augment=changes[0]) if changes else model
        return flow_loss(network, self.flow, pictures, labels.masked_fill(dropped, self.classes))


def cat_network(
    hidden: int, image_size: int, classes: int, network: Mapping[str, Any], path: str, precondition: str,
    spectrum: Mapping[str, Tensor] | None = None,
) -> nn.Module:  # fmt: skip
    """What is trained: a TinyDiT by its width, with a velocity around it (recipes.cats.preconditioned)."""
    made = TinyDiT(hidden, image_size, classes=classes, **network)
    known = Spectrum(made.channels, image_size) if spectrum is not None else None
    if known is not None and spectrum is not None:
        known.load_state_dict(dict(spectrum), assign=True)  # they are here, wherever the network is built
    return preconditioned(made, precondition, path, known)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A network and how it is trained; what `--preset` names."""

    network: str = "tinydit-64"  # of models.tinydit.PRESETS
    steps: int
    batch_size: int
    accumulation: int = 1  # batches to a step of the optimiser
    lr: float
    warmup_steps: int
    decay: float = 0.3  # share of the run over which the learning rate falls to zero
    optimizer: str = "muon"
    times: str = "mixture"
    ema: float | None = 0.05  # length of the average of weights; None: the best of LENGTHS, chosen after the run
    skips: bool = False
    precision: str = "fast"
    looks: int = 20
    compiled: bool | None = None  # training steps by torch.compile; None: of COMPILED_FROM steps on


PRESETS: Mapping[str, Preset] = {
    "cpu-64": Preset(steps=9000, batch_size=16, accumulation=4, lr=2e-3, warmup_steps=200, skips=True),
    "h200-25min": Preset(network="tinydit-64", steps=6000, batch_size=1024, lr=2e-3, warmup_steps=200),
    "baseline": Preset(network="tinydit-128", steps=300_000, batch_size=256, lr=1e-4, warmup_steps=10_000),
    "high-accuracy": Preset(
        network="tinydit-128", steps=400_000, batch_size=256, accumulation=2, lr=5e-5, warmup_steps=15_000
    ),
}


def training(
    pictures: Pictures, preset: Preset, *, seed: int = 0, precondition: str | None = None,
    predicts: Prediction = "velocity",
    network: Mapping[str, Any] | None = None, augmentation: str = "basic", half: bool = True,
    checkpoint_every: int | None = None, sheets: Sheets | None = None,
) -> Training:  # fmt: skip
    """One flow over cat pictures. Its bundle is a `CatFlow`.

    Args:
        pictures: of the size of the preset's network; labels 0..12 (data.cats).
        precondition: what is around the network, of recipes.cats.PRECONDITIONS; None: PRECONDITION for a velocity,
            and "none" for other predictions.
        network: arguments of TinyDiT instead of those of the preset's.
        augmentation: none; basic: mirrored; full: moved by some pixels too, which the network is told.
        sheets: of samples, to be drawn on the way.

    Raises:
        InputError: an unknown name, pictures of another size, or settings that cannot be used.
    """
    known = {**tiny_presets(preset.network), **({"skips": True} if preset.skips else {}), **(network or {})}
    size, hidden = known.pop("image_size"), known.pop("hidden")
    if pictures.pixels.shape[2] != size:
        raise InputError(f"data: got pictures of {pictures.pixels.shape[2]} pixels; {preset.network} takes {size}")
    if augmentation not in AUGMENTATIONS:
        raise InputError.unknown("augmentation", augmentation, AUGMENTATIONS)
    train, held_out = image_pair(pictures, AUGMENTATIONS[augmentation], told=augmentation == "full")
    others = spare(pictures)  # looks, and the length of an average that they choose, are not to know what judges
    if len(others):
        enough(val=len(others))
    looked = Images(pictures.pixels[others], torch.from_numpy(pictures.labels)[others], train.mean, train.std)
    known |= {"augments": 2} if train.told else {}
    if precondition is None:
        precondition = PRECONDITION if predicts == "velocity" else "none"
    if precondition not in PRECONDITIONS:
        raise InputError.unknown("precondition", precondition, PRECONDITIONS)
    if predicts != "velocity" and precondition != "none":
        told = f"predicts: got {predicts!r}; with precondition={precondition!r} allowed is 'velocity'"
        raise InputError(f"{told}; give precondition='none' for another")
    spectrum = Spectrum(train.pixels.shape[1], size).fit(as_seen(train))
    config = {
        "kind": KIND, "image_size": size, "classes": list(CLASSES), "network": {"hidden": hidden, **known},
        "path": "linear", "predicts": predicts, "precondition": precondition, "times": preset.times,
        "augmentation": train.augment,
        "data": f"{pictures.name}: {len(train):,} pictures of {size} x {size}",
        "data_hash": train.fingerprint, "held_out_hash": held_out.fingerprint,
    }  # fmt: skip
    seen = [CLASSES[number] for number in train.labels.unique().tolist()]
    config |= {"seen": seen} if len(seen) < len(CLASSES) else {}

    plain: dict[str, Velocity] = {"zero": zero, "Gaussian": spectrum.velocity(path_named("linear"))}

    def parts(model: nn.Module) -> Mapping[str, Tensor]:
        return whole(config, train, model, spectrum).state_dict()

    def judged(model: nn.Module) -> list[Metric]:
        flow = whole(config, train, model, spectrum).eval()
        return flow.losses(held_out.pixels, held_out.labels, train.pixels).metrics()

    return Training(
        name=f"{preset.network} of {size} x {size} pictures",
        model_cls=cat_network, size_param="hidden", size=hidden,
        model_kwargs={
            "image_size": size, "classes": len(CLASSES), "network": known, "path": "linear",
            "precondition": precondition, "spectrum": known_spectrum(precondition, spectrum),
        },
        dataset=train, held_out=looked if len(looked) else held_out,
        objective=CatMatching(len(CLASSES), times=preset.times, predicts=predicts),
        steps=preset.steps, batch_size=preset.batch_size * preset.accumulation, lr=preset.lr, seed=seed,
        micro_batch=preset.batch_size if preset.accumulation > 1 else None,
        options=options(preset), config=config, parts=parts, evaluate=judged, half=half, choose=False,
        lengths=LENGTHS if preset.ema is None else (),
        baselines={name: Known(velocity) for name, velocity in plain.items()} if predicts == "velocity" else {},
        compiled=preset.steps >= COMPILED_FROM if preset.compiled is None else preset.compiled,
        checkpoint_every=checkpoint_every,
        show=sheets.of(config, train, spectrum) if sheets else None, show_every=sheets.every if sheets else None,
    )  # fmt: skip


def known_spectrum(precondition: str, spectrum: Spectrum) -> dict[str, Tensor] | None:
    """For `cat_network`, where what is around the network is of frequencies."""
    return spectrum.state_dict() if precondition in ("residual", "spectral") else None


class Known(nn.Module):
    """A velocity that needs no training, asked as a network is."""

    def __init__(self, velocity: Velocity) -> None:
        super().__init__()
        self.velocity = velocity

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.velocity(x, t)


@dataclass(frozen=True)
class Sheets:
    """A picture of samples, one of each class, every so many steps: FOLDER/samples/STEP.png."""

    folder: Folder
    every: int

    def of(self, config: Mapping[str, Any], images: Images, spectrum: Spectrum) -> Show:
        def show(model: nn.Module, step: int) -> None:
            flow = whole(config, images, model, spectrum).eval()
            pixels = flow.sample(images.labels.unique(), method="heun", steps=SHEET_STEPS)
            (self.folder / "samples").mkdir(parents=True, exist_ok=True)
            write_png(self.folder / "samples" / f"{step}.png", sheet(pixels, columns=5))

        return show


def options(preset: Preset) -> TrainOptions:
    """How the engine trains a preset. Raises InputError for a warmup that is no small part of the run."""
    warmup = preset.warmup_steps / preset.steps
    if warmup > MOST_WARMUP:
        told = f"warmup_steps: got {preset.warmup_steps:,} of {preset.steps:,} steps"
        raise InputError(f"{told}; allowed are {MOST_WARMUP:.0%} of them at most: less warmup, or more steps")
    return TrainOptions(
        warmup=warmup, decay=preset.decay, optimizer=preset.optimizer, weight_decay=0.01,
        ema=LENGTHS[0] if preset.ema is None else preset.ema, snapshots=SNAPSHOTS if preset.ema is None else 0,
        looks=preset.looks, learns_by=LEARNS_BY if preset.steps >= TRIAL else None, precision=preset.precision,
    )  # fmt: skip


def tiny_presets(name: str) -> dict[str, Any]:
    """Arguments of TinyDiT by name. Raises InputError, the nearest named."""
    if name not in NETWORKS:
        raise InputError.unknown("network", name, NETWORKS)
    return dict(NETWORKS[name])


def image_pair(pictures: Pictures, augment: Augment, told: bool = False) -> tuple[Images, Images]:
    """(to train on, held out), normalised by the pixels of the first."""
    train, held, _ = sides(pictures)
    enough(train=len(train), held_out=len(held))
    labels = torch.from_numpy(pictures.labels)
    mean, std = statistics(pictures.pixels[train])
    return (
        Images(pictures.pixels[train], labels[train], mean, std, augment, told),
        Images(pictures.pixels[held], labels[held], mean, std),
    )


def as_seen(images: Images) -> Tensor:
    """(n, C, S, S) float, normalised; with their mirror images, (2 n, C, S, S), where training mirrors; where it moves
    them too, DRAWN of each: a spectrum of unmoved ones would have no variance where moved ones lie."""
    parts = [part.tolist() for part in torch.arange(len(images)).split(512)]
    if images.augment == "moved":
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return torch.cat([images.batch(part)[0] for part in parts * DRAWN])
    x = torch.cat([images.plain(part) for part in parts])
    return x if images.augment == "none" else torch.cat((x, x.flip(3)))


def study(data: str | None = None) -> Study:
    """How large a network should be for pictures of SWEEP_SIZE pixels, of cats at `data` (see `data.cats`); None: for
    shapes drawn by code."""
    pictures = drawn_shapes(SWEEP_SIZE) if data is None else cat_pictures(data, SWEEP_SIZE)
    train, held_out = image_pair(pictures, "mirrored")
    known = tiny_presets(SWEEP_NETWORK)
    size, _ = known.pop("image_size"), known.pop("hidden")
    spectrum = Spectrum(train.pixels.shape[1], size).fit(as_seen(train))
    return Study(
        model_cls=cat_network,
        model_size_param="hidden",
        model_kwargs={
            "image_size": size, "classes": len(CLASSES), "network": known, "path": "linear",
            "precondition": PRECONDITION, "spectrum": known_spectrum(PRECONDITION, spectrum),
        },
        dataset=train,
        held_out=held_out,
        objective=CatMatching(len(CLASSES)),
        compute_budgets=(1e12, 2e12, 4e12, 8e12),
        size_multiple=4 * known["heads"],
        sizes_per_budget=5,
        tokens_per_sample=(size // known["patch"]) ** 2,
        tokens_per_param=4.0,
        span=2.3,
        max_epochs=SWEEP_EPOCHS,
        batch_size=64,
        describe_data=f"{pictures.name}: {len(train):,} pictures of {size} x {size}{pictures.but}",
    )


def whole(config: Mapping[str, Any], images: Images, model: nn.Module, spectrum: Spectrum) -> CatFlow:
    """The bundle of a trained model."""
    made = CatFlow(config)
    network = model.network if isinstance(model, Around) else model
    made.spectrum.load_state_dict(spectrum.state_dict())
    made.network.load_state_dict(network.state_dict())
    cast(Tensor, made.mean).copy_(images.mean)
    cast(Tensor, made.deviation).copy_(images.std)
    return made
