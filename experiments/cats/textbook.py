"""A diffusion transformer as the paper and its followers write it, to compare with: nothing here is flops-fit's.

Network and conditioning: Peebles and Xie 2022 (arXiv 2212.09748), AdaLN-Zero. Training: velocity at uniform times on
straight paths (Ma et al. 2024, arXiv 2401.08740, SiT), AdamW, a constant rate, an average of weights with decay .9999.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMA = 0.9999
LR = 1e-4  # of the paper, for batches of 256
NULL_SHARE = 0.1
STEPS_A_UNIT = 1000  # of time, as sinusoids expect them
LONGEST = 10_000


def timesteps(t: Tensor, width: int = 256) -> Tensor:
    half = torch.exp(-math.log(LONGEST) * torch.arange(width // 2) / (width // 2))
    angle = STEPS_A_UNIT * t[:, None] * half
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def positions(width: int, side: int) -> Tensor:
    """(side^2, width): the usual two-dimensional sinusoids."""
    omega = 1 / LONGEST ** (torch.arange(width // 4) / (width // 4))
    line = torch.arange(side)[:, None] * omega
    line = torch.cat((line.sin(), line.cos()), dim=1)
    return torch.cat((line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)), dim=2).flatten(0, 1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.ada = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.ada(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(self.norm1(x) * (1 + scale1[:, None]) + shift1[:, None])
        return x + gate2[:, None] * self.mlp(self.norm2(x) * (1 + scale2[:, None]) + shift2[:, None])


class DiT(nn.Module):
    """`forward(x (B, 3, S, S), t (B,), labels (B,)) -> (B, 3, S, S)`; the label is `classes` for none."""

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.size, self.patch, self.side, self.classes = size, patch, size // patch, classes
        self.half_in_training = False
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.register_buffer("pos", positions(width, self.side))
        self.t_embed = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embed = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.ada = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, 3 * patch * patch)
        self.apply(self._usual)
        for layer in (*(block.ada[1] for block in self.blocks), self.ada[1], self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @staticmethod
    def _usual(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half_in_training and self.training):
            return self._velocity(x, t, labels).float()

    def _velocity(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).transpose(1, 2) + self.pos
        c = self.t_embed(timesteps(t)) + self.y_embed(y)
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.ada(c).chunk(2, dim=1)
        h = self.out(self.norm(h) * (1 + scale[:, None]) + shift[:, None])
        h = h.reshape(len(x), self.side, self.side, self.patch, self.patch, 3)
        return torch.einsum("nhwpqc->nchpwq", h).reshape(x.shape)


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    t, noise = torch.rand(len(x)), torch.randn_like(x)
    at = t[:, None, None, None]
    return (model((1 - at) * noise + at * x, t, y) - (x - noise)).square().mean()


def step(model: DiT, average: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """One step of the optimiser, and of the average of weights."""
    y = torch.where(torch.rand(len(y)) < NULL_SHARE, model.classes, y)
    loss(model, x, y).backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for kept, now in zip(average.parameters(), model.parameters(), strict=True):
            kept.lerp_(now, 1 - EMA)


def train(model: DiT, batch: Callable[[], tuple[Tensor, Tensor]], steps: int, lr: float = LR) -> nn.Module:
    """The model, trained in place; returns its average."""
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        step(model, average, optimizer, *batch())
    return average
