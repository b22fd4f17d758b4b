"""Images as a row of square patches and back, and where each patch lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, S, S) -> (B, T, C P P), the patches row by row; S a multiple of P = `patch`, T = (S / P)^2."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    cut = images.reshape(batch, channels, rows, patch, columns, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch * patch)


def unpatchify(tokens: Tensor, patch: int) -> Tensor:
    """(B, T, C P P) -> (B, C, S, S), the inverse of `patchify` for square images."""
    batch, count, width = tokens.shape
    side, channels = math.isqrt(count), width // patch**2
    cut = tokens.reshape(batch, side, side, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)  # (B, C, s, P, s, P)
    return cut.reshape(batch, channels, side * patch, side * patch)


def grid_positions(side: int, width: int) -> Tensor:
    """(side^2, width): sines and cosines of each patch's row, then of its column, at width / 4 frequencies each.

    Frequencies fall from pi/2 to pi / (2 side), wavelengths from four patches to four times the grid: of those from 1
    to 1/10,000 that are usual (Beyer et al. 2022, arXiv 2205.01580), most would hardly turn within so small a grid.
    """
    if width % 4:
        raise ValueError(f"width={width} must be a multiple of 4: sine and cosine of row and of column")
    frequency = math.pi / 2 * side ** -torch.linspace(0, 1, width // 4)  # (D/4,)
    angle = torch.arange(side)[:, None] * frequency  # (side, D/4)
    line = torch.cat((angle.sin(), angle.cos()), dim=1)  # (side, D/2)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat((rows, columns), dim=2).reshape(side * side, width)
