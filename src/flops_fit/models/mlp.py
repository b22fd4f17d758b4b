"""The plain velocity network: a stack of layers over the vector and its time."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from flops_fit.models.time import TimeEmbedding


class SimpleMLP(nn.Module):
    """`forward(x (B, D), t (B,)) -> (B, D)`. Starts as the zero predictor.

    Args:
        hidden: width; the size parameter of a sweep.
        dim: D.
        layers: matrices from x to the output, at least 2.
        dropout: share of hidden numbers that are dropped in training.
    """

    def __init__(self, hidden: int = 256, dim: int = 1024, layers: int = 5, dropout: float = 0.0) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(f"layers={layers} must be at least 2: one in, one out")
        self.time = TimeEmbedding(hidden)
        widths = [dim + hidden, *[hidden] * (layers - 1)]
        self.inner = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = torch.cat((x, self.time(t)), dim=1)  # (B, D + hidden)
        for layer in self.inner:
            h = self.dropout(nn.functional.silu(layer(h)))
        velocity: Tensor = self.out(h)
        return velocity
