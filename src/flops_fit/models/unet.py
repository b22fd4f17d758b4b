"""A U-Net over vectors: narrower and narrower, then wider again with skips, and the time in every block (FiLM)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.models.time import TimeEmbedding

CONDITION = 256  # width of the time embedding


class FiLMBlock(nn.Module):
    """Two layers, the first scaled and shifted by time (Perez et al. 2017, arXiv 1709.07871), beside a straight way.

    `forward(x (B, in), c (B, CONDITION)) -> (B, out)`
    """

    def __init__(self, inward: int, outward: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inward)
        self.first = nn.Linear(inward, outward)
        self.film = nn.Linear(CONDITION, 2 * outward)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(outward, outward)
        self.straight = nn.Identity() if inward == outward else nn.Linear(inward, outward, bias=False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.film(c).chunk(2, dim=1)
        h = self.first(F.silu(self.norm(x))) * (1 + scale) + shift
        return cast(Tensor, self.straight(x) + self.second(self.dropout(F.silu(h))))


class UNetMLP(nn.Module):
    """`forward(x (B, D), t (B,)) -> (B, D)`. Starts as the zero predictor.

    Args:
        hidden: width of the widest level, a multiple of 4; the size parameter of a sweep. The others have 1/2 and 1/4.
        dim: D.
    """

    def __init__(self, hidden: int = 608, dim: int = 1024, dropout: float = 0.0) -> None:
        super().__init__()
        if hidden % 4:
            raise ValueError(f"hidden={hidden} must be a multiple of 4: levels have 1, 1/2 and 1/4 of it")
        wide, middle, narrow = hidden, hidden // 2, hidden // 4
        self.time = TimeEmbedding(CONDITION)
        self.embedding = nn.Linear(dim, wide)
        self.down = nn.ModuleList([
            FiLMBlock(wide, wide, dropout), FiLMBlock(wide, middle, dropout), FiLMBlock(middle, narrow, dropout),
        ])  # fmt: skip
        self.bottom = FiLMBlock(narrow, narrow, dropout)
        self.up = nn.ModuleList([
            FiLMBlock(2 * narrow, middle, dropout),
            FiLMBlock(2 * middle, wide, dropout),
            FiLMBlock(2 * wide, wide, dropout),
        ])  # fmt: skip
        self.norm = nn.LayerNorm(wide)
        self.out = nn.Linear(wide, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = F.silu(self.time(t))  # (B, CONDITION)
        h, skips = self.embedding(x), []
        for block in self.down:
            h = block(h, c)
            skips.append(h)  # (B, hidden), (B, hidden / 2), (B, hidden / 4)
        h = self.bottom(h, c)
        for block in self.up:
            h = block(torch.cat((h, skips.pop()), dim=1), c)
        return cast(Tensor, self.out(F.silu(self.norm(h))))
