"""cats-classifier: which breed a picture shows, and whether it is a cat at all.

command   flops-fit train cats-classifier --data DIR --output outputs/cats-classifier
what was learned, at which price: experiments/cats
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as Folder
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.data.augment import Augmented, patched
from flops_fit.data.cats import CLASSES, OTHER
from flops_fit.data.images import Images, by_hash, enough, sides, spare
from flops_fit.data.pictures import Pictures, decoded
from flops_fit.errors import InputError
from flops_fit.evaluate.accuracy import (
    calibration_error,
    classification,
    confusion,
    line_of_odds,
    per_class,
    temperature,
)
from flops_fit.evaluate.confusion import FILE as CONFUSION
from flops_fit.evaluate.confusion import confusion_svg
from flops_fit.evaluate.metric import Metric, share_of
from flops_fit.models import weights
from flops_fit.models.classifier import BACKBONES, Classifier, Heads, create_classifier
from flops_fit.study.training import Training
from flops_fit.train.options import TrainOptions

KIND = "classifier"
NEEDED = ("backbone", "classes", "image_size", "data", "data_hash")
SMOOTHING = 0.1  # of the labels (Szegedy et al. 2016, arXiv 1512.00567)
AVERAGE = 0.05  # of the run, whose mean weights are the bundle's
CAT_SHARE = 0.3  # of the loss: cat or not is learned sooner than the breed
CALIBRATION = 0.1  # of the training pictures: they calibrate, and end a run early, where no others are there for it
AT_ONCE = 64
SAID = 3  # classes that are told of a picture, in words


@dataclass(frozen=True)
class Telling:
    """(model, (pictures, labels (B,))) -> cross-entropy of the breed, and of being a cat; rare classes weigh more.

    Smoothed on held-out pictures too: looks ask for what training does.

    Args:
        shares: weight of each class in the loss, of mean 1 over the training pictures.
        mixes: pictures get parts of others in training, and are told as both, each by its share.
    """

    shares: tuple[float, ...]
    mixes: bool = False

    def __call__(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        pictures, labels = batch
        if not (self.mixes and model.training):
            return self._each(model(pictures), labels).mean()
        pictures, others, own = patched(pictures)
        heads: Heads = model(pictures)
        return (own * self._each(heads, labels) + (1 - own) * self._each(heads, labels[others])).mean()

    def _each(self, heads: Heads, labels: Tensor) -> Tensor:
        """(B,): the loss of each picture."""
        weight = torch.tensor(self.shares, device=labels.device)[labels]  # (B,) float32, whatever the logits are
        breed = F.cross_entropy(heads.breeds, labels, reduction="none", label_smoothing=SMOOTHING)
        cat = (labels != OTHER).float() * (1 - SMOOTHING) + SMOOTHING / 2  # (B,)
        is_cat = F.binary_cross_entropy_with_logits(heads.cat.float(), cat, reduction="none")
        return (1 - CAT_SHARE) * weight * breed + CAT_SHARE * self._balance(labels) * is_cat

    def _balance(self, labels: Tensor) -> Tensor:
        """(B,): weights with which all cats together count as much as all others, of mean 1 over the training."""
        counts = 1 / torch.tensor(self.shares)
        others = counts[OTHER] / counts.sum()
        return torch.where(labels != OTHER, 0.5 / (1 - others), 0.5 / others)


class CatClassifier(nn.Module):
    """A trained classifier with its normalisation and calibration. Its config says what it is."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.network = Classifier(config["backbone"], len(config["classes"]))
        self.register_buffer("temperature", torch.ones(()))  # of the breed logits (V12)
        self.register_buffer("line", torch.tensor((1.0, 0.0)))  # slope and offset of the cat logits (V14)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Heads:
        """Of pictures (n, 3, S, S) uint8 of any size: breed logits over the temperature (n, K); cat logits (n,), the
        mean of the head's and the breeds' along the line. Each is the mean of the picture's and its mirror image's."""
        breeds, cats = [], []
        for some in pixels.split(AT_ONCE):
            x = self.normalised(some)
            straight, mirrored = self.network(x), self.network(x.flip(3))
            breeds.append((straight.breeds + mirrored.breeds) / 2)
            cats.append((straight.cat + mirrored.cat) / 2)
        logits = torch.cat(breeds) / cast(Tensor, self.temperature)
        odds = logits[:, :OTHER].logsumexp(dim=1) - logits[:, OTHER]  # what the breeds say of being a cat
        slope, offset = cast(Tensor, self.line)
        return Heads(logits, slope * (torch.cat(cats) + odds) / 2 + offset)

    def normalised(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) uint8 of any size -> (n, 3, S', S') float, as the network takes them."""
        size = self.config["image_size"]
        x = pixels.float() / 255
        if x.shape[2:] != (size, size):
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        mean, std = (one.to(x)[:, None, None] for one in normalisation(self.config["backbone"]))
        return (x - mean) / std

    @classmethod
    def load(cls, folder: Folder) -> CatClassifier:
        """From a bundle. Raises InputError where it is damaged, of another kind, or does not fit its config."""
        tensors, config = weights.of_kind(folder, KIND, NEEDED)
        try:
            made = cls(config)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"{folder}: its config makes no network ({error}); train it again") from error
        weights.fill(made, tensors, str(folder))
        return made.eval()


def training(
    pictures: Pictures,
    backbone: str = "efficientnet-lite0",
    pretrained: bool | str = True,
    epochs: float = 20.0,
    batch_size: int = 32,
    lr: float = 3e-3,  # of the heads; the backbone's is a tenth where it knows images already
    augmentation: str = "full",
    heads_first: float = 0.1,
    patience: int = 0,
    seed: int = 0,
) -> Training:
    """One classifier of cat pictures. Its bundle is a `CatClassifier`.

    Args:
        pictures: labels 0..12 (data.cats).
        pretrained: see `create_classifier`.
        heads_first: share of the run in which the backbone stays as it is.
        patience: looks without progress after which the run ends, with the weights of the best look; 0: it never ends
            early, and its last weights are kept.

    Raises:
        InputError: an unknown name, or a class without training pictures.
    """
    train, calibration, held_out = parts_of(pictures, backbone)
    enough(train=len(train), calibration=len(calibration), held_out=len(held_out))
    counts = np.bincount(train.labels.numpy(), minlength=len(CLASSES))
    if not counts.all():
        missing = ", ".join(CLASSES[i] for i in np.flatnonzero(counts == 0))
        raise InputError(f"data: no pictures of {missing} to train on; all {len(CLASSES)} classes must be there")
    size = train.pixels.shape[2]
    config = {
        "kind": KIND, "backbone": backbone, "classes": list(CLASSES), "image_size": size, "augmentation": augmentation,
        "pretrained": origin(pretrained),
        "data": f"{pictures.name}: {len(train):,} pictures of {size} x {size}",
        "data_hash": train.fingerprint, "held_out_hash": held_out.fingerprint,
    }  # fmt: skip

    def parts(model: nn.Module) -> Mapping[str, Tensor]:
        return whole(config, model, calibration).state_dict()

    table: list[str] = []

    def finish(folder: Folder) -> None:
        (folder / CONFUSION).write_text(table[-1], encoding="utf-8")

    def judged(model: nn.Module) -> list[Metric]:
        heads = whole(config, model, calibration)(held_out.pixels)
        table.append(confusion_svg(confusion(heads.breeds, held_out.labels), CLASSES))
        return [*scores(heads, held_out.labels), *per_class(heads.breeds, held_out.labels, CLASSES)]

    return Training(
        name=f"{backbone} of {len(CLASSES)} classes",
        model_cls=create_classifier, size_param="classes", size=len(CLASSES),
        model_kwargs={"backbone": backbone, "pretrained": pretrained},
        dataset=Augmented(train, augmentation), held_out=calibration,
        objective=Telling(tuple((counts.mean() / counts).tolist()), mixes=augmentation == "full"),
        epochs=epochs, batch_size=batch_size, lr=lr, seed=seed,
        options=TrainOptions(
            warmup=0.05, decay=0.7, weight_decay=0.02, looks=10, learns_by=0.5, patience=patience,
            heads_first=heads_first, precision="fast",
            ema=None if pretrained is False else AVERAGE,  # norms that learn have statistics of the last weights alone
        ),
        config=config, parts=parts, evaluate=judged, finish=finish, half=True,
        choose=patience > 0,  # weights that few pictures chose look surer on these than they are on others
    )  # fmt: skip


def check(backbone: str, pretrained: bool | str) -> None:
    """Build one, before any picture is read. Raises as `create_classifier`."""
    create_classifier(backbone, len(CLASSES), pretrained)


def origin(pretrained: bool | str) -> bool | str:
    """What the weights were before: nothing, those of the package, or a file's SHA-256."""
    if isinstance(pretrained, bool):
        return pretrained
    with Folder(pretrained).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parts_of(pictures: Pictures, backbone: str) -> tuple[Images, Images, Images]:
    """(to train on, to calibrate by, held out), normalised as the backbone wants them.

    Where the data name two held-out parts, val beside test, the first calibrates; else CALIBRATION of the training
    pictures do, by the hash of their pixels, so that equal ones are on one side.
    """
    if backbone not in BACKBONES:
        raise InputError.unknown("backbone", backbone, BACKBONES)
    (known, held, _), outside = sides(pictures), spare(pictures)
    inside = known
    if not len(outside):
        low = by_hash(pictures.pixels[known], CALIBRATION)
        inside, outside = known[~low], known[low]
    labels, scale = torch.from_numpy(pictures.labels), normalisation(backbone)
    train, calibration, held_out = (
        Images(pictures.pixels[rows], labels[rows], *scale) for rows in (inside, outside, held)
    )
    return train, calibration, held_out


def normalisation(backbone: str) -> tuple[Tensor, Tensor]:
    """Mean and deviation (C,) each of pixels in 0..1 that a backbone wants."""
    kind = BACKBONES[backbone]
    return torch.tensor(kind.mean), torch.tensor(kind.std)


def whole(config: Mapping[str, Any], model: nn.Module, calibration: Images) -> CatClassifier:
    """The bundle of a trained model, calibrated by pictures that it was not trained on."""
    made = CatClassifier(config)
    made.network.load_state_dict(model.state_dict())
    made.eval()
    cast(Tensor, made.temperature).fill_(temperature(made(calibration.pixels).breeds, calibration.labels))
    line = line_of_odds(made(calibration.pixels).cat, (calibration.labels != OTHER).long())
    cast(Tensor, made.line).copy_(torch.tensor(line))
    return made


@dataclass(frozen=True)
class Told:
    """What a classifier says of one file.

    Args:
        breeds: probability of each class, the likeliest first.
        cat: probability that it shows a cat.
        reason: why the file cannot be used; then there is nothing else.
    """

    file: str
    breeds: Mapping[str, float] = field(default_factory=dict)
    cat: float | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        if self.reason:
            return {"file": self.file, "reason": self.reason}
        return {"file": self.file, "class": next(iter(self.breeds)), "cat": self.cat, "breeds": dict(self.breeds)}

    def __str__(self) -> str:
        if self.reason or self.cat is None:
            return f"{self.file}: {self.reason}"
        first = ", ".join(f"{name} {share:.3f}" for name, share in list(self.breeds.items())[:SAID])
        return f"{self.file}: {first}; a cat: {self.cat:.3f}"


def told(bundle: str, files: Sequence[Folder]) -> list[Told]:
    """What a classifier says of pictures in files, each cropped to its central square.

    Raises:
        InputError: an unknown bundle, or none of the files is a picture that can be read.
        MissingExtra: Pillow is not installed.
    """
    classifier = CatClassifier.load(weights.located(bundle, "--bundle"))
    pixels, broken = decoded(files, classifier.config["image_size"], photographs=True)
    if len(broken) == len(files):
        raise InputError(f"PICTURE: {files[0]}: {broken[0]}; give files of pictures")
    heads = classifier(pixels)
    shares, cats = heads.breeds.softmax(dim=1).tolist(), heads.cat.sigmoid().tolist()
    readable, found = iter(zip(shares, cats, strict=True)), []
    for number, file in enumerate(files):
        if number in broken:
            found.append(Told(str(file), reason=broken[number]))
            continue
        share, cat = next(readable)
        ranked = sorted(zip(classifier.config["classes"], share, strict=True), key=lambda pair: -pair[1])
        found.append(Told(str(file), dict(ranked), cat))
    return found


def scores(heads: Heads, labels: Tensor) -> list[Metric]:
    """Of what was told of n pictures with classes (n,): breeds, and cat or not, each with its calibration."""
    two = torch.stack((torch.zeros_like(heads.cat), heads.cat), dim=1)  # (n, 2) logits of a softmax
    sure = calibration_error(two, (labels != OTHER).long())
    right = share_of("accuracy_cat", cat_right(heads, labels).numpy())
    return [*classification(heads.breeds, labels), right, replace(sure, name="calibration_error_cat")]


def cat_right(heads: Heads, labels: Tensor) -> Tensor:
    """(n,) bool: whether cat or not is told rightly."""
    return (heads.cat > 0) == (labels != OTHER)
