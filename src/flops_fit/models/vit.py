"""A small vision transformer with one dial, `d_model`; heads and depth are derived from it.

Dosovitskiy et al. 2021 (arXiv 2010.11929), pre-norm, with the simplifications of Beyer et al. 2022 (arXiv 2205.01580):
fixed 2-D sine-cosine positions and the mean of all patches instead of a class token.
"""

from __future__ import annotations

import math
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.models.patches import grid_positions, patchify


class Block(nn.Module):
    """Attention over all patches and a 4x GELU network, each added to the residual stream (B, T, D)."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(d_model, bias=False)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.attention_out = nn.Linear(d_model, d_model, bias=False)
        self.mlp_norm = nn.LayerNorm(d_model, bias=False)
        self.mlp_in = nn.Linear(d_model, 4 * d_model, bias=False)
        self.mlp_out = nn.Linear(4 * d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, K) each
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, tokens, width))  # (B, T, D)
        return x + cast(Tensor, self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)))))


class VisionTransformer(nn.Module):
    """Image classifier. `forward(images (B, C, S, S) float) -> logits (B, classes)`.

    Args:
        d_model: width D, a multiple of 4 and of the heads; the size parameter of a sweep.
        image_size: S, a multiple of `patch`.
        patch: side of the square patches; T = (S / patch)^2 of them are the tokens.
        channels: C.
        classes: number of logits.
        depth: blocks; None derives it from d_model.
        heads: None derives 4 up to a width of 256, then one for each 64.
    """

    def __init__(
        self,
        d_model: int,
        image_size: int = 32,
        patch: int = 4,
        channels: int = 3,
        classes: int = 10,
        depth: int | None = None,
        heads: int | None = None,
    ) -> None:
        super().__init__()
        depth = max(1, d_model // 64) if depth is None else depth
        heads = max(4, d_model // 64) if heads is None else heads
        if d_model % heads:
            raise ValueError(f"d_model={d_model} must be a multiple of its {heads} heads")
        if image_size % patch:
            raise ValueError(f"image_size={image_size} must be a multiple of patch={patch}")
        self.image_size, self.patch, self.channels = image_size, patch, channels
        self.embedding = nn.Linear(channels * patch * patch, d_model)
        self.register_buffer("positions", grid_positions(image_size // patch, d_model), persistent=False)  # (T, D)
        self.blocks = nn.ModuleList(Block(d_model, heads) for _ in range(depth))
        self.final_norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, classes)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(self.embedding.in_features))
        nn.init.zeros_(self.embedding.bias)
        for block in self.blocks:
            block = cast(Block, block)
            for into in (block.qkv, block.mlp_in):
                nn.init.normal_(into.weight, std=1 / math.sqrt(into.in_features))
            for out in (block.attention_out, block.mlp_out):  # each block starts as the identity
                nn.init.zeros_(out.weight)
        nn.init.zeros_(self.head.weight)  # all classes start equally likely
        nn.init.zeros_(self.head.bias)

    def num_params(self) -> int:
        """N: every trainable number; positions are fixed and do not count."""
        return sum(p.numel() for p in self.parameters())

    def patches(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, T, C P P): the square patches, row by row."""
        if images.shape[1:] != (self.channels, self.image_size, self.image_size):
            raise ValueError(
                f"images: got {tuple(images.shape[1:])}, the model takes {(self.channels, *2 * (self.image_size,))}"
            )
        return patchify(images, self.patch)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embedding(self.patches(images)) + self.positions  # (B, T, D)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.head(self.final_norm(x).mean(dim=1)))  # (B, classes)
