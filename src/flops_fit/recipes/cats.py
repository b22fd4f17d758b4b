"""A trained flow over pictures by class: sampled with guidance, judged beside predictors that need no training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor, nn

from flops_fit.data.cats import class_number
from flops_fit.errors import InputError
from flops_fit.evaluate.flow import Losses, held_out_losses
from flops_fit.flow.baselines import isotropic, shrunk, zero
from flops_fit.flow.guidance import autoguidance, classifier_free
from flops_fit.flow.loss import Flow
from flops_fit.flow.paths import Path, path_named
from flops_fit.flow.precondition import Around, UnitPreconditioned
from flops_fit.flow.solvers import Velocity, solve, times_asked
from flops_fit.flow.spectral import SpectralPreconditioned, SpectralResidual, Spectrum
from flops_fit.models import weights
from flops_fit.models.tinydit import Prepared, TinyDiT
from flops_fit.records import seed_of

KIND = "cats"
NEEDED = ("image_size", "classes", "network", "path", "predicts", "precondition", "augmentation", "data",
          "data_hash")  # fmt: skip
PRECONDITIONS = ("residual", "unit", "spectral", "none")  # what is around the network: see `preconditioned`
SHRINKAGES = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.25, 0.5)  # of the full covariance; the best is reported
CHOOSERS = 400  # pictures: of thousands all nine shrinkages would take longer than the network itself
SAMPLING = {"method": "heun", "steps": 12, "guidance": 4.0}  # where a bundle does not say how it is best sampled
AT_ONCE = 8  # pictures that are sampled together: 16 with guidance, whose parts stay in the caches


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
        self.spectrum = Spectrum(self.network.channels, config["image_size"])

    def velocity(self, labels: Tensor | None = None, network: TinyDiT | Prepared | None = None) -> Velocity:
        """(x (B, C, S, S) normalised, t (B,), labels=(B,)) -> like x; with `labels` given here, (x, t) alone."""
        made = preconditioned(self.network, self.config["precondition"], self.path, self.spectrum)
        inner: Any = network or self.network
        over = partial(made.around, inner) if isinstance(made, Around) else inner
        known = Flow(self.path, predicts=self.config["predicts"]).velocity(over)
        return known if labels is None else lambda x, t: known(x, t, labels=labels)

    def sample(
        self, labels: Tensor, seed: int = 0, method: str | None = None, steps: int | None = None,
        guidance: Guidance | float | None = None,
    ) -> Tensor:  # fmt: skip
        """(n, C, S, S) uint8 pictures of these classes (n,): all that `drawn` gives, at once."""
        return torch.cat(list(self.drawn(labels, seed, method, steps, guidance)))

    @torch.no_grad()
    def drawn(
        self, labels: Tensor, seed: int = 0, method: str | None = None, steps: int | None = None,
        guidance: Guidance | float | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """(up to AT_ONCE, C, S, S) uint8 pictures of the first of these classes (n,), then of the next ones; K, the
        null label, is of any.

        Picture i depends on the seed, i and its label alone, not on how many there are (but for dopri5, which finds
        its steps for all of them together). What is not given is as the bundle has it (`sampling`); a number as
        guidance is its scale.

        Raises:
            InputError: an unknown method or label.
        """
        guided = guidance if isinstance(guidance, Guidance) else self.led(guidance)
        method, steps = method or str(self.sampling["method"]), steps or int(self.sampling["steps"])
        null = torch.tensor([self.network.null])
        prepared = Prepared(self.network, times_asked(method, steps), torch.cat((labels, null)))
        for start in range(0, len(labels), AT_ONCE):
            some = labels[start : start + AT_ONCE]
            noise = torch.stack([self.noise(seed, start + i) for i in range(len(some))])
            yield self.pixels(solve(self._guided(some, prepared, guided), noise, method, steps).x)

    def pixels(self, x: Tensor) -> Tensor:
        """(n, C, S, S) as the network gives them -> uint8, the inverse of `normalised` but for rounding."""
        seen = x * self.deviation[:, None, None] + self.mean[:, None, None]  # type: ignore[index]
        return (255 * seen).round().clamp(0, 255).byte()

    @property
    def sampling(self) -> dict[str, Any]:
        """How it is best sampled, as its config has it: method and steps of the solver, scale of the guidance."""
        return {name: self.config.get("sampling", {}).get(name, value) for name, value in SAMPLING.items()}

    def led(self, scale: float | None = None) -> Guidance:
        """How its samples are best led to their class, as its config has it, but for the scale where one is given."""
        told = {**self.led_so}
        if "interval" in told:
            told["interval"] = tuple(told["interval"])
        return Guidance(float(self.sampling["guidance"] if scale is None else scale), **told)

    @property
    def led_so(self) -> dict[str, Any]:
        """What its config says of guidance beside its scale; empty where it says nothing."""
        told = self.config.get("sampling", {})
        return {name: told[name] for name in ("interval", "optimised", "still_until") if name in told}

    def label(self, name: str | None) -> int:
        """Of a class by its name, however it is spelled; None: of none.

        Raises:
            InputError: an unknown class, the nearest named, or one of which there was no picture to train on.
        """
        if name is None:
            return self.network.null
        number, seen = class_number(name, "--class", self.config["classes"]), self.config.get("seen")
        if seen is not None and self.config["classes"][number] not in seen:
            told = f"--class: got {name!r}, of which there was no picture in training"
            raise InputError(f"{told}; allowed are {', '.join(seen)}")
        return number

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
        generator = torch.Generator().manual_seed(seed_of(seed, number))
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
        plain: dict[str, Velocity] = {"zero": zero, "spectral": self.spectrum.velocity(self.path)}
        if known is not None:
            plain |= gaussians(self.normalised(known), data, self)
        conditional: dict[str, Any] = {name: _unconditional(velocity) for name, velocity in plain.items()}
        return held_out_losses(conditional | {"model": self.velocity()}, self.path, data, conditions={"labels": labels})

    @classmethod
    def load(cls, folder: Folder) -> CatFlow:
        """From a bundle. Raises InputError where it is damaged, of another kind, or does not fit its config."""
        tensors, config = weights.of_kind(folder, KIND, NEEDED)
        try:
            made = cls(config)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"{folder}: its config makes no network ({error}); train it again") from error
        weights.fill(made, tensors, str(folder))
        return made.eval()


def preconditioned(network: nn.Module, kind: str, path: Path | str, spectrum: Spectrum | None) -> nn.Module:
    """What is trained: the network with a velocity around it, or by itself.

    Args:
        kind: residual: the Gaussian along frequencies, the network adds to it in pixels; spectral: the same Gaussian,
            the network sees and says what it leaves open, whitened; unit: N(0, I); none.
        spectrum: fitted; of the first two alone.

    Raises:
        InputError: an unknown kind.
    """
    if kind not in PRECONDITIONS:
        raise InputError.unknown("precondition", kind, PRECONDITIONS)
    if kind in ("residual", "spectral"):
        assert spectrum is not None
        return (SpectralResidual if kind == "residual" else SpectralPreconditioned)(network, spectrum, path)
    return UnitPreconditioned(network, path) if kind == "unit" else network


def gaussians(known: Tensor, data: Tensor, flow: CatFlow) -> dict[str, Velocity]:
    """The isotropic Gaussian of training pictures (m, C, S, S) and their mirror images, and that with the full
    covariance whose shrinkage is the best one on `data`, of which at most CHOOSERS tell."""
    both = torch.cat((known, known.flip(3)))
    wide = [one.velocity(flow.path) for one in shrunk(both, SHRINKAGES)]
    some = data[:: math.ceil(len(data) / CHOOSERS)]
    few = held_out_losses({str(i): one for i, one in enumerate(wide)}, flow.path, some).by_name
    best = min(range(len(wide)), key=lambda i: float(few[str(i)].mean()))
    return {"isotropic": isotropic(both).velocity(flow.path), "gaussian": wide[best]}


def _unconditional(velocity: Velocity) -> Any:
    return lambda x, t, labels: velocity(x, t)
