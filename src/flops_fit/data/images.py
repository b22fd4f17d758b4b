"""Labelled images held in memory, to train a classifier on.

    path -> Pictures (decoded, labels, which side) -> ImageSets (training and held-out Images, classes, description)
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from flops_fit.data.pictures import TESTING, TRAINING, Pictures, drawn_shapes, read
from flops_fit.errors import InputError

Augment = Literal["none", "mirrored", "moved"]
"""What is done to a training image, anew at each fetch: half of them are mirrored; moved by up to SHIFT pixels too."""

SHIFT = 4       # pixels that a training image is moved by at most, each way
HELD_OUT = 0.1  # share of the images held out when the data come without a split


class Images(torch.utils.data.Dataset[tuple[Tensor, ...]]):
    """Sample i is (image (C, H, W) float, normalised; label () int64).

    Args:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64.
        mean, std: (C,) float, of pixels in 0..1; subtracted, divided by.
        augment: "mirrored": half of the images; "moved": each by up to 4 pixels too, the rim mirrored. Anew at each
            fetch from torch's global generator (He et al. 2016, arXiv 1512.03385, section 4.2: there the rim is zero).
        told: a batch has a third member, (B, 2) float: how far each image was moved, down and right, in units of SHIFT.
    """

    def __init__(
        self, pixels: Tensor, labels: Tensor, mean: Tensor, std: Tensor, augment: Augment = "none", told: bool = False
    ) -> None:
        if augment not in get_args(Augment):
            raise InputError(f"augment: got {augment!r}; allowed are {', '.join(map(repr, get_args(Augment)))}")
        self.pixels, self.labels, self.mean, self.std = pixels, labels, mean, std
        self.augment, self.told = augment, told
        digest = hashlib.sha256(f"{tuple(pixels.shape)} {augment}{' told' if told else ''}".encode())
        for tensor in (pixels, labels, mean, std):
            digest.update(tensor.contiguous().numpy().data)
        self.fingerprint = digest.hexdigest()[:16]
        self._scale = (1 / (255 * std))[:, None, None]  # (C, 1, 1)
        self._offset = -(mean / std)[:, None, None]     # (C, 1, 1)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(part[0] for part in self.batch([index]))

    def batch(self, indices: list[int]) -> tuple[Tensor, ...]:
        """The samples at `indices`, collated: images (B, C, H, W) float and labels (B,) int64."""
        chosen = torch.tensor(indices)
        pixels, moves = self.pixels[chosen], torch.zeros(len(chosen), 2)
        if self.augment != "none":
            pixels, moves = self._changed(chosen)
        found = torch.addcmul(self._offset, pixels, self._scale), self.labels[chosen]
        return (*found, moves) if self.told else found

    def plain(self, indices: list[int]) -> Tensor:
        """(B, C, H, W) float, normalised; as they are."""
        return torch.addcmul(self._offset, self.pixels[indices], self._scale)

    def _changed(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Each image moved by its own offset and mirrored or not, in one gather: ((B, C, H, W) uint8, moves (B, 2))."""
        count, (channels, height, width) = len(chosen), self.pixels.shape[1:]
        shift = SHIFT if self.augment == "moved" else 0
        moves = [torch.randint(-shift, shift + 1, (count, 1)) for _ in range(2)]
        rows, columns = (
            mirrored(torch.arange(side) - move, side) for side, move in zip((height, width), moves, strict=True)
        )  # (B, H), (B, W)
        turned = torch.rand(count, 1) < 0.5
        columns = torch.where(turned, columns.flip(1), columns)
        moves[1] = torch.where(turned, -moves[1], moves[1])
        taken = (rows[:, :, None] * width + columns[:, None]).view(count, 1, -1)  # (B, 1, H W): where from
        flat = self.pixels[chosen].view(count, channels, -1)
        changed = flat.gather(2, taken.expand(-1, channels, -1)).view(count, channels, height, width)
        return changed, torch.cat(moves, dim=1) / SHIFT

    def __reduce__(self) -> tuple[Any, ...]:
        return Images, (self.pixels, self.labels, self.mean, self.std, self.augment, self.told)


def mirrored(positions: Tensor, length: int) -> Tensor:
    """Positions outside 0..length-1 reflected at the rim: -1 is 1, length is length - 2."""
    return (length - 1) - (positions.abs() - (length - 1)).abs()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSets:
    """What a study needs: images to train on and held out, the number of classes, one sentence."""

    training: Images
    held_out: Images
    classes: int
    description: str


def image_sets(
    path: str | os.PathLike[str] | None = None, size: int = 32, augment: Augment = "none"
) -> ImageSets:
    """Training and held-out images of `size` x `size` pixels in three channels; `path` None: shapes drawn by code.

    Training images are changed as `augment` says, anew each time; held-out ones never are.
    Images of another size are cropped to their central square and resized. Those that cannot be decoded are left out
    and counted. Without a split in the data, a tenth is held out by hash of the pixels, so equal images stay together.

    Raises:
        InputError: `path` is nothing of the kind that can be read, more than 1% of its images cannot be decoded, or
            `augment` is unknown.
        MissingExtra: Pillow or pyarrow is needed for it and not installed.
    """
    pictures = drawn_shapes(size) if path is None else read(Path(path), size)
    names, codes = np.unique(pictures.labels, return_inverse=True)
    labels = torch.from_numpy(codes.astype(np.int64))  # (N,) 0..K-1 in the order of the names
    train, held, how = sides(pictures)
    if not len(train) or not len(held) or len(names) < 2:
        raise InputError(
            f"path: {path} gives {len(train)} images to train on and {len(held)} held out, in {len(names)} classes; "
            "both sides need some, and two classes at least"
        )
    mean, std = statistics(pictures.pixels[train])
    left_out = f"; {pictures.corrupt} that cannot be decoded are left out" if pictures.corrupt else ""
    moved = f", moved by up to {SHIFT} pixels and mirrored"
    changed = {"none": "", "mirrored": ", half of them mirrored", "moved": moved}[augment]
    return ImageSets(
        training=Images(pictures.pixels[train], labels[train], mean, std, augment),
        held_out=Images(pictures.pixels[held], labels[held], mean, std),
        classes=len(names),
        description=f"{pictures.name}: {len(train):,} images of {size}x{size} in {len(names)} classes to train on"
        f"{changed}; {len(held):,} held out {how}{left_out}",
    )


def sides(pictures: Pictures) -> tuple[Tensor, Tensor, str]:
    """(indices to train on, indices held out, how they were parted). Data that are all for testing are all held out."""
    training = np.isin(pictures.splits, TRAINING)
    testing = np.isin(pictures.splits, TESTING)
    held_name = next((name for name in TESTING if name in pictures.splits), None)
    if held_name is not None and training.any():
        held, how = pictures.splits == held_name, f"{pictures.parted} ({held_name})"
    elif testing.size and testing.all():
        held, how = testing, pictures.parted
    else:
        training = training if training.any() else np.ones(len(pictures.splits), dtype=bool)
        low = by_hash(pictures.pixels, HELD_OUT).numpy()
        training, held, how = training & ~low, training & low, "by hash of the pixels"
    return torch.from_numpy(np.flatnonzero(training)), torch.from_numpy(np.flatnonzero(held)), how


def spare(pictures: Pictures) -> Tensor:
    """Indices that `sides` puts on neither: those of val, where the data name val beside test, to choose by."""
    left = np.isin(pictures.splits, TESTING)
    known, held, _ = sides(pictures)
    left[torch.cat((known, held)).numpy()] = False
    return torch.from_numpy(np.flatnonzero(left))


def by_hash(pixels: Tensor, share: float) -> Tensor:
    """(N,) bool: true for about that share of images (N, C, H, W) uint8, by hash of each: equal ones are told alike."""
    heads = [hashlib.sha256(image.numpy()).digest()[:4] for image in pixels]
    return torch.tensor([int.from_bytes(head, "big") < share * 2**32 for head in heads], dtype=torch.bool)


def enough(**parts: int) -> None:
    """Raises InputError for a part of fewer than two pictures: nothing could be said of it after the training."""
    for name, count in parts.items():
        if count < 2:
            raise InputError(f"data: {count} pictures are there for the part {name}; give at least 2, or another split")


def statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of each channel in 0..1, exactly: by how often each of the 256 values occurs."""
    values = torch.arange(256, dtype=torch.float64) / 255
    share = torch.stack([channel.reshape(-1).bincount(minlength=256) for channel in pixels.unbind(1)]).double()
    share /= share.sum(1, keepdim=True)  # (C, 256)
    mean = share @ values
    variance = share @ values.square() - mean.square()
    return mean.float(), variance.clamp(min=1 / 255**2).sqrt().float()  # a channel of one value is not blown up
