"""A diffusion transformer over images with classes: Peebles and Xie 2022 (arXiv 2212.09748), AdaLN-Zero, 2-D positions.

Presets by name are in `PRESETS`; the long skips of U-ViT (Bao et al. 2022, arXiv 2209.12152) are an option.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.errors import InputError
from flops_fit.models.dit import AdaLNBlock
from flops_fit.models.patches import grid_positions, patchify, unpatchify
from flops_fit.models.time import TimeEmbedding

PRESETS: Mapping[str, Mapping[str, int]] = {
    "tinydit-128": {"image_size": 128, "patch": 16, "hidden": 384, "layers": 12, "heads": 6},
    "tinydit-64": {"image_size": 64, "patch": 4, "hidden": 160, "layers": 6, "heads": 4},
    "tinydit-32": {"image_size": 32, "patch": 4, "hidden": 192, "layers": 6, "heads": 3},
}


class TinyDiT(nn.Module):
    """`forward(x (B, C, S, S), t (B,), labels (B,) int64) -> (B, C, S, S)`. Starts as the zero predictor.

    Args:
        hidden: width H, a multiple of 4 and of the heads; the size parameter of a sweep.
        image_size: S, a multiple of the patch.
        patch: P; T = (S / P)^2 patches are the tokens.
        layers: blocks.
        heads: of the attention.
        classes: K; labels are 0..K-1, and K for no class at all, what dropped labels become in training.
        channels: C.
        skips: each block of the second half sees the output of its mirror image in the first half too.
        augments: A numbers that say how a training picture was changed, so that samples come out unchanged (Karras et
            al. 2022, arXiv 2206.00364, appendix F.2): `forward(..., augment=(B, A))`; none given is 0, no change.
    """

    def __init__(
        self, hidden: int = 384, image_size: int = 128, patch: int = 16, layers: int = 12, heads: int = 6,
        classes: int = 13, channels: int = 3, skips: bool = False, augments: int = 0, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if image_size % patch:
            raise InputError(
                f"image_size: got {image_size}, no multiple of patch={patch}; "
                f"allowed are {image_size // patch * patch or patch}, {(image_size // patch + 1) * patch}, ..."
            )
        if hidden % 4 or hidden % heads:
            raise InputError(f"hidden: got {hidden}; allowed are multiples of 4 and of the {heads} heads")
        self.image_size, self.patch, self.channels, self.classes = image_size, patch, channels, classes
        self.time = TimeEmbedding(hidden)
        self.label = nn.Embedding(classes + 1, hidden)
        nn.init.normal_(self.label.weight, std=0.02)
        self.augment = nn.Linear(augments, hidden, bias=False) if augments else None
        self.embedding = nn.Linear(channels * patch**2, hidden)
        self.register_buffer("positions", grid_positions(image_size // patch, hidden), persistent=False)  # (T, H)
        self.blocks = nn.ModuleList(AdaLNBlock(hidden, heads, dropout, exact=True) for _ in range(layers))
        self.joins = nn.ModuleList(nn.Linear(2 * hidden, hidden) for _ in range(layers // 2 if skips else 0))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulation = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, channels * patch**2)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def num_params(self) -> int:
        """N: every trainable number; positions are fixed and do not count."""
        return sum(p.numel() for p in self.parameters())

    def hidden_matrices(self) -> list[str]:
        """What Muon turns (train.muon): the matrices of blocks that see tokens. What time and label go through sees a
        row a picture: to turn it would cost as much again as half of the others."""
        layers = [(name, module) for name, module in self.named_modules() if isinstance(module, nn.Linear)]
        seen = [name for name, _ in layers if name.startswith(("blocks.", "joins."))]
        return [f"{name}.weight" for name in seen if not name.endswith(".modulation")]

    @property
    def null(self) -> int:
        """The label of no class."""
        return self.classes

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, augment: Tensor | None = None) -> Tensor:
        return self.modulated(x, self.modulations(t, labels, augment))

    def modulations(self, t: Tensor, labels: Tensor, augment: Tensor | None = None) -> tuple[Tensor, ...]:
        """What time (B,) and label (B,) make of each block, (B, 6 H), and of the end, (B, 2 H): they know no pixels.

        Raises:
            InputError: a label that is none of 0..K.
        """
        self._check_labels(labels)
        c = self.time(t) + self.label(labels)  # (B, H)
        if augment is not None:
            if self.augment is None:
                raise InputError("augment: got changes that this network was not built for; give augments=A")
            c = c + self.augment(augment)
        c = F.silu(c)
        return (*(cast(AdaLNBlock, block).modulation(c) for block in self.blocks), self.modulation(c))

    def modulated(self, x: Tensor, modulations: tuple[Tensor, ...]) -> Tensor:
        """`forward`, with what `modulations` gave for each row."""
        if x.shape[1:] != (self.channels, self.image_size, self.image_size):
            allowed = f"(B, {self.channels}, {self.image_size}, {self.image_size})"
            raise InputError(f"x: got shape {tuple(x.shape)}; allowed is {allowed}")
        h = self.embedding(patchify(x, self.patch)) + self.positions  # (B, T, H)
        passed: list[Tensor] = []
        for number, (block, modulation) in enumerate(zip(self.blocks, modulations[:-1], strict=True)):
            if number >= len(self.blocks) - len(self.joins):
                h = self.joins[len(self.joins) - len(passed)](torch.cat((h, passed.pop()), dim=2))
            h = cast(AdaLNBlock, block).modulated(h, modulation)
            if number < len(self.joins):
                passed.append(h)
        shift, scale = modulations[-1][:, None].chunk(2, dim=2)  # (B, 1, H) each
        return unpatchify(self.out(self.norm(h) * (1 + scale) + shift), self.patch)

    def _check_labels(self, labels: Tensor) -> None:
        if torch.compiler.is_compiling() or labels.is_meta or not labels.numel():  # values cannot be looked at there
            return
        lowest, highest = (int(end) for end in labels.aminmax())
        if lowest < 0 or highest > self.classes:
            wrong = lowest if lowest < 0 else highest
            raise InputError(f"labels: got {wrong}; allowed are 0 to {self.classes - 1}, and {self.classes} for none")


class Prepared:
    """A network for sampling: what it makes of times and labels is worked out once, before the first step.

    `(x (B, C, S, S), t (B,) all equal, labels (B,)) -> (B, C, S, S)`. A time that was not announced costs what it
    costs in the network itself.

    Args:
        times: that a solver will ask for.
        labels: that it will ask for.
    """

    def __init__(self, network: TinyDiT, times: Tensor, labels: Tensor) -> None:
        self.network = network
        self.kinds = labels.unique()  # (K,) ascending
        pairs = times.repeat_interleave(len(self.kinds)), self.kinds.repeat(len(times))
        made = [part.split(len(self.kinds)) for part in network.modulations(*pairs)]
        self.at = dict(zip(map(_key, times), zip(*made, strict=True), strict=True))  # time: parts of (K, width)

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        known = self.at.get(_key(t[0]))
        if known is None:
            return cast(Tensor, self.network(x, t, labels))
        rows = torch.searchsorted(self.kinds, labels)
        return self.network.modulated(x, tuple(part[rows] for part in known))


def _key(time: Tensor) -> float:
    """Solvers reach the same time by other sums, which differ in the last digit."""
    return round(float(time), 6)
