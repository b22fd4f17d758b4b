"""How velocity networks learn the time: sines of it, then a small network."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

FREQUENCIES = 128  # each as sine and cosine
FASTEST = 200.0  # radians from t = 0 to 1; the slowest turns once in 10: smooth, and yet no two times look alike
SLOWEST = 0.1 * 2 * math.pi


class TimeEmbedding(nn.Module):
    """t (B,) in [0, 1] -> (B, width): sines and cosines at frequencies for the unit interval, then two layers.

    The usual sinusoids are made for whole steps up to 1000 (Ho et al. 2020, arXiv 2006.11239): on [0, 1] three in
    four of them never move.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        frequencies = torch.logspace(math.log10(SLOWEST), math.log10(FASTEST), FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)  # (F,)
        self.layers = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        frequencies = cast(Tensor, self.frequencies)
        angle = t[:, None].to(frequencies) * frequencies  # (B, F)
        return cast(Tensor, self.layers(torch.cat((angle.sin(), angle.cos()), dim=1)))
