"""ResNet-18 and ResNet-34 (He et al. 2016, arXiv 1512.03385), under torchvision's names: its checkpoints fit."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.errors import InputError

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # by depth: blocks of each stage, the paper's Table 1
WIDTHS = (64, 128, 256, 512)
FEATURES = 512
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels in 0..1: ImageNet's, as torchvision trains


def convolution(into: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    made = nn.Conv2d(into, out, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to what came in (Fig. 2); projected where the shape changes (option B).

    `forward(x (B, into, S, S)) -> (B, out, S / stride, S / stride)`
    """

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(into, out, 3, stride), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = convolution(out, out, 3), nn.BatchNorm2d(out)
        changes = stride != 1 or into != out
        self.downsample = nn.Sequential(convolution(into, out, 1, stride), nn.BatchNorm2d(out)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def stage(into: int, out: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(into, out, stride), *(BasicBlock(out, out, 1) for _ in range(blocks - 1)))


class ResNet(nn.Module):
    """`features(images (B, 3, S, S) normalised by MEAN and STD) -> (B, 512)`; `forward` gives logits (B, classes).

    Args:
        depth: 18 or 34.
        classes: of the last layer `fc`; None: there is none, and `forward` gives the features.

    Raises:
        InputError: another depth.
    """

    def __init__(self, depth: int, classes: int | None = 1000) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise InputError(f"depth: got {depth!r}; allowed are {' and '.join(map(str, BLOCKS))}")
        blocks = BLOCKS[depth]
        self.conv1, self.bn1 = convolution(3, WIDTHS[0], 7, stride=2), nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = stage(WIDTHS[0], WIDTHS[0], blocks[0], stride=1)
        self.layer2 = stage(WIDTHS[0], WIDTHS[1], blocks[1], stride=2)
        self.layer3 = stage(WIDTHS[1], WIDTHS[2], blocks[2], stride=2)
        self.layer4 = stage(WIDTHS[2], WIDTHS[3], blocks[3], stride=2)
        self.fc = nn.Identity() if classes is None else nn.Linear(FEATURES, classes)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 512): the mean over all places of the last stage."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)  # (B, 64, S/2, S/2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)  # (B, 64, S/4, S/4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B, 512, S/32, S/32)
        return cast(Tensor, x.mean(dim=(2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.features(images)))
