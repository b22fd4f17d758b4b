"""Changes of training images for a classifier, on whole batches (B, C, H, W) of floats, each image by its own dice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flops_fit.data.images import Images
from flops_fit.errors import InputError

LEVELS = ("none", "basic", "full")  # nothing; mirrored; cropped, mirrored, coloured, and, in the loss, patched
SMALLEST = 0.35   # of the area, left by a crop at least (Szegedy et al. 2015, arXiv 1409.4842: .08, of larger images)
STRETCH = 4 / 3   # of a crop's sides
PATCHED = 0.5     # of the images, that get a part of another one
COLOUR = 0.4      # most that brightness, contrast and saturation are changed by


@dataclass(frozen=True)
class Augmented(torch.utils.data.Dataset[tuple[Tensor, ...]]):
    """The same images, changed anew at each fetch from torch's global generator.

    Args:
        images: not augmented themselves.
        level: of LEVELS.
    """

    images: Images
    level: str

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise InputError.unknown("augmentation", self.level, LEVELS)

    @property
    def fingerprint(self) -> str:
        return f"{self.images.fingerprint} {self.level}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(part[0] for part in self.batch([index]))

    def batch(self, indices: list[int]) -> tuple[Tensor, ...]:
        """The samples at `indices`, collated: images (B, C, H, W) and labels (B,)."""
        images, labels = self.images.batch(indices)
        if self.level == "full":
            images = coloured(cropped(images))
        return (images if self.level == "none" else flipped(images)), labels


def flipped(images: Tensor) -> Tensor:
    """Half of them mirrored."""
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)


def cropped(images: Tensor) -> Tensor:
    """A part of each, of SMALLEST to all of its area, with sides stretched by up to STRETCH, as large as the whole."""
    count = len(images)
    area = SMALLEST + (1 - SMALLEST) * torch.rand(count)
    stretch = torch.exp((2 * torch.rand(count) - 1) * math.log(STRETCH)).sqrt()
    height, width = (area.sqrt() * stretch).clamp(max=1), (area.sqrt() / stretch).clamp(max=1)  # of a side, (B,) each
    down, right = ((1 - side) * (2 * torch.rand(count) - 1) for side in (height, width))  # centre, -1 to 1
    zero = torch.zeros(count)
    affine = torch.stack((width, zero, right, zero, height, down), dim=1).view(count, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def coloured(images: Tensor) -> Tensor:
    """Contrast and saturation by a factor of 1 - COLOUR to 1 + COLOUR each, brightness by as much added; of normalised
    pixels."""
    brightness, contrast, saturation = (
        1 + COLOUR * (2 * torch.rand(len(images), 1, 1, 1) - 1) for _ in range(3)
    )
    grey = images.mean(dim=1, keepdim=True)
    images = grey + saturation * (images - grey)
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    return middle + contrast * (images - middle) + (brightness - 1)


def patched(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CutMix (Yun et al. 2019, arXiv 1905.04899): a rectangle of any size in PATCHED of the images is that of another
    one of the batch.

    Returns (images, numbers (B,) of the others, share (B,) of its area that is each image's own).
    """
    count, _, height, width = images.shape
    others = torch.randperm(count)
    side = (1 - torch.rand(count)).sqrt() * (torch.rand(count) < PATCHED)  # of the rectangle, as a share of the image's
    inside = [
        (torch.arange(length) + 0.5 - length * centre[:, None]).abs() < length * side[:, None] / 2  # (B, length)
        for length, centre in ((height, torch.rand(count)), (width, torch.rand(count)))
    ]
    patch = (inside[0][:, :, None] & inside[1][:, None]).to(images.device)  # (B, H, W)
    own = 1 - patch.float().mean(dim=(1, 2))
    return torch.where(patch[:, None], images[others], images), others.to(images.device), own
