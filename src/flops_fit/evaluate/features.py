"""Features of pictures, which distances between sets of them are measured in. The home of torch-fidelity, transformers.

    efficientnet-lite0   1,280 numbers; ImageNet weights out of a package, works offline
    inception            2,048 numbers of torch-fidelity's network, those of published FID and KID
    inception:FILE       the same, its weights from a file
    dinov2:FOLDER        of a model that transformers saved

Distances by different extractors do not compare, so each is named by the hash of its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.errors import InputError, MissingExtra
from flops_fit.models import efficientnet

AT_ONCE = 64  # pictures
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels in 0..1
SIDE = 224  # pixels that lite0 and DINOv2 see


@dataclass(frozen=True)
class Extractor:
    """(n, 3, S, S) uint8 pictures of any size -> (n, width) float.

    Args:
        sha256: of the weights, by name and value.
    """

    name: str
    sha256: str
    width: int
    of: Callable[[Tensor], Tensor]  # a batch

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[1] != 3:
            told = f"pictures: got {pixels.dtype} of shape {tuple(pixels.shape)}"
            raise InputError(f"{told}; allowed is uint8 of shape (n, 3, S, S)")
        return torch.cat([self.of(some).float() for some in pixels.split(AT_ONCE)])


def extractor_named(name: str) -> Extractor:
    """One by its name, as in the head of this file.

    Raises:
        InputError: an unknown name, or weights that cannot be read.
        MissingExtra: the package that brings it is not installed.
    """
    kind, _, where = name.partition(":")
    if kind not in EXTRACTORS:
        raise InputError.unknown("--extractor", kind, EXTRACTORS)
    return EXTRACTORS[kind](where)


def _lite0(where: str) -> Extractor:
    if where:
        raise InputError(f"--extractor: got efficientnet-lite0:{where}; its weights come with a package: leave {where}")
    network = efficientnet.EfficientNetLite0().eval()
    network.load_state_dict(network.state_dict() | efficientnet.pretrained_lite0())  # which brings no counters
    seen = _Seen(network.features, efficientnet.MEAN, efficientnet.STD)
    return Extractor("efficientnet-lite0", efficientnet.SHA256, efficientnet.FEATURES, seen)


@dataclass(frozen=True)
class _Seen:
    """A network that wants SIDE x SIDE pixels of a certain mean and deviation."""

    network: Callable[[Tensor], Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pixels: Tensor) -> Tensor:
        x = F.interpolate(pixels.float() / 255, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        mean, std = (x.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return self.network((x - mean) / std)


def _inception(where: str) -> Extractor:
    """torch-fidelity's, whose resizing and weights are those of the published scores."""
    if where and not Path(where).is_file():
        raise InputError(f"--extractor: got inception:{where}; no such file")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # torchvision of another build than torch raises the latter
        raise MissingExtra.of("torch-fidelity", "inception", "for features of Inception") from error
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], where or None).eval()
    except Exception as error:  # urllib, pickle and torch have errors of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--extractor: Inception's weights cannot be had ({reason}); fetch torch-fidelity's file and give "
            "inception:FILE"
        ) from error
    return Extractor("inception", _hash(network.state_dict()), 2048, lambda pixels: network(pixels)[0])


def _dinov2(where: str) -> Extractor:
    if not Path(where or "?").is_dir():
        raise InputError(f"--extractor: got dinov2:{where}; give dinov2:FOLDER, a model that transformers saved")
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra.of("transformers", "dinov2", "for features of DINOv2") from error
    try:
        network = transformers.AutoModel.from_pretrained(where, local_files_only=True).eval()
    except Exception as error:  # json, safetensors and transformers have errors of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--extractor: {where} cannot be read ({reason}); give a folder of DINOv2") from error
    seen = _Seen(lambda x: network(pixel_values=x).pooler_output, IMAGENET_MEAN, IMAGENET_STD)
    return Extractor("dinov2", _hash(cast(nn.Module, network).state_dict()), int(network.config.hidden_size), seen)


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


EXTRACTORS: dict[str, Callable[[str], Extractor]] = {
    "efficientnet-lite0": _lite0, "inception": _inception, "dinov2": _dinov2,
}  # fmt: skip
