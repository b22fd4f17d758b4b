"""A diffusion transformer over vectors: Peebles and Xie 2022 (arXiv 2212.09748), AdaLN-Zero."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.models.attention import attend
from flops_fit.models.time import TimeEmbedding


class AdaLNBlock(nn.Module):
    """Attention and a 4x GELU network whose norms are shifted and scaled by the condition. Starts as the identity.

    `forward(x (B, T, H), c (B, H)) -> (B, T, H)`

    Args:
        exact: GELU itself instead of its approximation by tanh, for which CPUs take longer.
    """

    def __init__(self, hidden: int, heads: int, dropout: float = 0.0, exact: bool = False) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"hidden={hidden} must be a multiple of its {heads} heads")
        self.heads = heads
        self.attention_norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.attention_out = nn.Linear(hidden, hidden)
        self.mlp_norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 4 * hidden),
            nn.GELU(approximate="none" if exact else "tanh"),
            nn.Dropout(dropout),
            nn.Linear(4 * hidden, hidden),
        )
        self.modulation = nn.Linear(hidden, 6 * hidden)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.modulated(x, self.modulation(F.silu(c)))

    def modulated(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x (B, T, H); modulation (B, 6 H), what the condition makes of the block."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation[:, None].chunk(6, dim=2)  # (B, 1, H) each
        x = x + gate_a * self._attention(self.attention_norm(x) * (1 + scale_a) + shift_a)
        return cast(Tensor, x + gate_m * self.mlp(self.mlp_norm(x) * (1 + scale_m) + shift_m))

    def _attention(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, T, K) each
        mixed = attend(q, k, v)
        return cast(Tensor, self.attention_out(mixed.transpose(1, 2).reshape(batch, tokens, width)))


class DiTVelocityNetwork(nn.Module):
    """`forward(x (B, D), t (B,)) -> (B, D)`. Starts as the zero predictor.

    Args:
        hidden: width H, a multiple of the heads; the size parameter of a sweep.
        dim: D.
        layers: blocks.
        heads: of the attention.
        tokens: the vector is cut into so many pieces. With 1, as in the earlier studies, attention mixes nothing: it is
            one more linear layer.
    """

    def __init__(
        self, hidden: int = 384, dim: int = 1024, layers: int = 3, heads: int = 6, tokens: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if dim % tokens:
            raise ValueError(f"dim={dim} must be a multiple of tokens={tokens}")
        self.tokens = tokens
        self.time = TimeEmbedding(hidden)
        self.embedding = nn.Linear(dim // tokens, hidden)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, hidden)) if tokens > 1 else None  # (T, H)
        self.blocks = nn.ModuleList(AdaLNBlock(hidden, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulation = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, dim // tokens)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        batch, dim = x.shape
        c = self.time(t)  # (B, H)
        h = self.embedding(x.view(batch, self.tokens, dim // self.tokens))  # (B, T, H)
        h = h if self.positions is None else h + self.positions
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(F.silu(c))[:, None].chunk(2, dim=2)  # (B, 1, H) each
        return cast(Tensor, self.out(self.norm(h) * (1 + scale) + shift)).reshape(batch, dim)
