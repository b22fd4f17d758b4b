"""dit-cats: flow matching over pictures of cats, by breed.

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

from flops_fit.data.cats import CLASSES
from flops_fit.data.images import Augment, Images, sides, statistics
from flops_fit.data.pictures import Pictures
from flops_fit.errors import InputError
from flops_fit.evaluate.flow import Losses, held_out_losses
from flops_fit.evaluate.metric import Metric
from flops_fit.flow.baselines import full_covariance, isotropic, zero
from flops_fit.flow.guidance import autoguidance, classifier_free
from flops_fit.flow.loss import Flow, flow_loss
from flops_fit.flow.paths import Prediction, path_named
from flops_fit.flow.solvers import Velocity, solve, times_asked
from flops_fit.flow.spectral import SpectralPreconditioned, Spectrum
from flops_fit.flow.times import times_named
from flops_fit.models import weights
from flops_fit.models.tinydit import PRESETS as NETWORKS
from flops_fit.models.tinydit import Prepared, TinyDiT
from flops_fit.study.training import Training
from flops_fit.train.options import MOST_WARMUP, Show, TrainOptions

KIND = "cats"
DROPPED = 0.1  # of the labels in training become the null label (Ho and Salimans 2022, arXiv 2207.12598)
NEEDED = ("image_size", "classes", "network", "path", "predicts", "spectral", "data", "data_hash")
SHRINKAGES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15)  # of the full-covariance Gaussian, the best of which is reported
AUGMENTATIONS: Mapping[str, Augment] = {"none": "none", "basic": "mirrored", "full": "moved"}
AT_ONCE = 32  # pictures that are sampled together
SEED_STEP = 2**20  # between the seeds of two calls: picture i of a call has noise of its own, whatever the others are


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
    hidden: int, image_size: int, classes: int, network: Mapping[str, Any], path: str,
    spectrum: Mapping[str, Tensor] | None = None,
) -> nn.Module:  # fmt: skip
    """What is trained: a TinyDiT by its width, over the Gaussian of a spectrum where one is given."""
    made = TinyDiT(hidden, image_size, classes=classes, **network)
    if spectrum is None:
        return made
    known = Spectrum(made.channels, image_size)
    known.load_state_dict(dict(spectrum), assign=True)  # they are here, wherever the network is built
    return SpectralPreconditioned(made, known, path)


@dataclass(frozen=True)
class Guidance:
    """How samples are led to their class.

    Args:
        scale: 1: not at all (F10).
        interval: times with guidance.
        optimised: CFG-Zero* (F13), which also begins at rest until `still_until`.
        weaker: autoguidance away from this flow instead (F11).
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    optimised: bool = False
    still_until: float = 0.0
    weaker: CatFlow | None = None


class CatFlow(nn.Module):
    """A trained flow with all that it needs: statistics of pixels, spectrum, network. Its config says what it is."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.path = path_named(config["path"])
        self.network = TinyDiT(image_size=config["image_size"], classes=len(config["classes"]), **config["network"])
        self.register_buffer("mean", torch.zeros(self.network.channels))  # (C,) of pixels in 0..1
        self.register_buffer("deviation", torch.ones(self.network.channels))
        self.spectrum = Spectrum(self.network.channels, config["image_size"]) if config["spectral"] else None

    def velocity(self, labels: Tensor | None = None, network: TinyDiT | Prepared | None = None) -> Velocity:
        """(x (B, C, S, S) normalised, t (B,), labels=(B,)) -> like x; with `labels` given here, (x, t) alone."""
        inner = network or self.network
        if self.spectrum is not None:
            around = SpectralPreconditioned(self.network, self.spectrum, self.path).around

            def over(x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
                return around(inner, x, t, **conditions)

        else:
            over = cast(Any, inner)
        known = Flow(self.path, predicts=self.config["predicts"]).velocity(over)
        return known if labels is None else lambda x, t: known(x, t, labels=labels)

    @torch.no_grad()
    def sample(
        self, labels: Tensor, seed: int = 0, method: str = "heun", steps: int = 25, guidance: Guidance | None = None
    ) -> Tensor:
        """(n, C, S, S) uint8 pictures of these classes (n,); K, the null label, is of any.

        Picture i depends on the seed, i and its label alone, not on how many there are.

        Raises:
            InputError: an unknown method or label.
        """
        guided = guidance or Guidance()
        null = torch.tensor([self.network.null])
        prepared = Prepared(self.network, times_asked(method, steps), torch.cat((labels, null)))
        found = []
        for start in range(0, len(labels), AT_ONCE):
            some = labels[start : start + AT_ONCE]
            noise = torch.stack([self.noise(seed, start + i) for i in range(len(some))])
            found.append(solve(self._guided(some, prepared, guided), noise, method, steps).x)
        x = torch.cat(found) * self.deviation[:, None, None] + self.mean[:, None, None]  # type: ignore[index]
        return (255 * x).round().clamp(0, 255).byte()

    def _guided(self, labels: Tensor, prepared: Prepared, guidance: Guidance) -> Velocity:
        if guidance.weaker is not None:
            return autoguidance(self.velocity(labels, prepared), guidance.weaker.velocity(labels), guidance.scale)
        return classifier_free(
            self.velocity(network=prepared), labels, self.network.null, guidance.scale, guidance.interval,
            guidance.optimised, guidance.still_until,
        )  # fmt: skip

    def noise(self, seed: int, number: int) -> Tensor:
        """(C, S, S) that picture `number` begins with."""
        size = self.config["image_size"]
        generator = torch.Generator().manual_seed(seed * SEED_STEP + number)
        return torch.randn(self.network.channels, size, size, generator=generator)

    def normalised(self, pixels: Tensor) -> Tensor:
        """(n, C, S, S) uint8 -> float, as the network takes them.

        Raises:
            InputError: pictures of another size.
        """
        size = self.config["image_size"]
        if pixels.shape[2:] != (size, size):
            raise InputError(f"data: got pictures of {tuple(pixels.shape[2:])} pixels; the model takes {(size, size)}")
        return (pixels / 255 - self.mean[:, None, None]) / self.deviation[:, None, None]  # type: ignore[index]

    def losses(self, pixels: Tensor, labels: Tensor, known: Tensor | None = None) -> Losses:
        """On held-out pictures (n, C, S, S) uint8 of classes (n,), beside predictors that need no training.

        Args:
            known: (m, C, S, S) uint8 training pictures; with them the full-covariance Gaussian is among the predictors,
                its shrinkage the best one on the held-out pictures themselves.
        """
        data = self.normalised(pixels)
        plain: dict[str, Velocity] = {"zero": zero}
        if self.spectrum is not None:
            plain["spectral"] = self.spectrum.velocity(self.path)
        if known is not None:
            plain |= gaussians(self.normalised(known), data, self)
        conditional: dict[str, Any] = {name: _unconditional(velocity) for name, velocity in plain.items()}
        return held_out_losses(conditional | {"model": self.velocity()}, self.path, data, conditions={"labels": labels})

    @classmethod
    def load(cls, folder: Folder) -> CatFlow:
        """From a bundle. Raises InputError where it is damaged, of another kind, or does not fit its config."""
        tensors, config = weights.read(folder)
        if config.get("kind") != KIND:
            raise InputError(f"{folder}: a bundle of kind {config.get('kind')!r}; allowed is {KIND!r}")
        if missing := [name for name in NEEDED if name not in config]:
            raise InputError(f"{folder}: its config lacks {', '.join(missing)}; train it again")
        try:
            made = cls(config)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"{folder}: its config makes no network ({error}); train it again") from error
        weights.fill(made, tensors, str(folder))
        return made.eval()


def gaussians(known: Tensor, data: Tensor, flow: CatFlow) -> dict[str, Velocity]:
    """The isotropic Gaussian of training pictures (m, C, S, S) and their mirror images, and that with the full
    covariance whose shrinkage is the best one on `data`."""
    both = torch.cat((known, known.flip(3)))
    wide = [full_covariance(both, share).velocity(flow.path) for share in SHRINKAGES]
    few = held_out_losses({str(i): one for i, one in enumerate(wide)}, flow.path, data).by_name
    best = min(range(len(wide)), key=lambda i: float(few[str(i)].mean()))
    return {"isotropic": isotropic(both).velocity(flow.path), "gaussian": wide[best]}


def _unconditional(velocity: Velocity) -> Any:
    return lambda x, t, labels: velocity(x, t)


def whole(config: Mapping[str, Any], images: Images, model: nn.Module) -> CatFlow:
    """The bundle of a trained model."""
    made = CatFlow(config)
    network = model
    if isinstance(model, SpectralPreconditioned):
        assert made.spectrum is not None  # the config and the model are of one training
        made.spectrum.load_state_dict(model.spectrum.state_dict())
        network = model.network
    made.network.load_state_dict(network.state_dict())
    cast(Tensor, made.mean).copy_(images.mean)
    cast(Tensor, made.deviation).copy_(images.std)
    return made


# --- training ---------------------------------------------------------------------------------------------------------


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
    ema: float = 0.05
    skips: bool = False
    looks: int = 20


PRESETS: Mapping[str, Preset] = {
    "cpu-64": Preset(steps=6000, batch_size=64, lr=2e-3, warmup_steps=100),
    "h200-25min": Preset(network="tinydit-64", steps=6000, batch_size=1024, lr=2e-3, warmup_steps=200),
    "baseline": Preset(network="tinydit-128", steps=300_000, batch_size=256, lr=1e-4, warmup_steps=10_000),
    "high-accuracy": Preset(
        network="tinydit-128", steps=400_000, batch_size=256, accumulation=2, lr=5e-5, warmup_steps=15_000
    ),
}


def training(
    pictures: Pictures, preset: Preset, *, seed: int = 0, spectral: bool = True, predicts: Prediction = "velocity",
    network: Mapping[str, Any] | None = None, augmentation: str = "basic", half: bool = True,
    checkpoint_every: int | None = None, show: Show | None = None, show_every: int | None = None,
) -> Training:  # fmt: skip
    """One flow over cat pictures. Its bundle is a `CatFlow`.

    Args:
        pictures: of the size of the preset's network; labels 0..12 (data.cats).
        spectral: over the Gaussian along frequencies, or by itself.
        network: arguments of TinyDiT instead of those of the preset's.
        augmentation: none; basic: mirrored; full: moved by some pixels too, which the network is told.
        show: sees the model on the way, every `show_every` steps.

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
    known |= {"augments": 2} if train.told else {}
    spectrum = Spectrum(train.pixels.shape[1], size).fit(both_ways(train)) if spectral else None
    config = {
        "kind": KIND, "image_size": size, "classes": list(CLASSES), "network": {"hidden": hidden, **known},
        "path": "linear", "predicts": predicts, "spectral": spectral, "times": preset.times,
        "augmentation": train.augment, "data": f"{pictures.name}: {len(train):,} pictures of {size} x {size}",
        "data_hash": train.fingerprint, "held_out_hash": held_out.fingerprint,
    }  # fmt: skip

    def parts(model: nn.Module) -> Mapping[str, Tensor]:
        return whole(config, train, model).state_dict()

    def judged(model: nn.Module) -> list[Metric]:
        flow = whole(config, train, model).eval()
        return flow.losses(held_out.pixels, held_out.labels, train.pixels).metrics()

    return Training(
        name=f"{preset.network} {'over frequencies' if spectral else 'by itself'}",
        model_cls=cat_network, size_param="hidden", size=hidden,
        model_kwargs={
            "image_size": size, "classes": len(CLASSES), "network": known, "path": "linear",
            "spectrum": None if spectrum is None else spectrum.state_dict(),
        },
        dataset=train, held_out=held_out, objective=CatMatching(len(CLASSES), times=preset.times, predicts=predicts),
        steps=preset.steps, batch_size=preset.batch_size * preset.accumulation, lr=preset.lr, seed=seed,
        micro_batch=preset.batch_size if preset.accumulation > 1 else None,
        options=options(preset), config=config, parts=parts, evaluate=judged, half=half,
        checkpoint_every=checkpoint_every, show=show, show_every=show_every,
    )  # fmt: skip


def options(preset: Preset) -> TrainOptions:
    """How the engine trains a preset. Raises InputError for a warmup that is no small part of the run."""
    warmup = preset.warmup_steps / preset.steps
    if warmup > MOST_WARMUP:
        told = f"warmup_steps: got {preset.warmup_steps:,} of {preset.steps:,} steps"
        raise InputError(f"{told}; allowed are {MOST_WARMUP:.0%} of them at most: less warmup, or more steps")
    return TrainOptions(
        warmup=warmup, decay=preset.decay, optimizer=preset.optimizer, weight_decay=0.01, ema=preset.ema,
        looks=preset.looks, snapshots=preset.looks, learns_by=0.25,
    )  # fmt: skip


def tiny_presets(name: str) -> dict[str, Any]:
    """Arguments of TinyDiT by name. Raises InputError, the nearest named."""
    if name not in NETWORKS:
        raise InputError.unknown("network", name, NETWORKS)
    return dict(NETWORKS[name])


def image_pair(pictures: Pictures, augment: Augment, told: bool = False) -> tuple[Images, Images]:
    """(to train on, held out), normalised by the pixels of the first."""
    train, held, _ = sides(pictures)
    labels = torch.from_numpy(pictures.labels)
    mean, std = statistics(pictures.pixels[train])
    return (
        Images(pictures.pixels[train], labels[train], mean, std, augment, told),
        Images(pictures.pixels[held], labels[held], mean, std),
    )


def both_ways(images: Images) -> Tensor:
    """(n, C, S, S) float, normalised; with their mirror images, (2 n, C, S, S), where training mirrors."""
    x = torch.cat([images.plain(part.tolist()) for part in torch.arange(len(images)).split(512)])
    return x if images.augment == "none" else torch.cat((x, x.flip(3)))
