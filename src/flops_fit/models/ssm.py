"""A state-space velocity network: the vector is cut into tokens, which a selective scan mixes in both directions.

Gu and Dao 2023 (arXiv 2312.00752), with the scan in plain torch: a vector makes few tokens, so its steps are few.
mamba-ssm's kernels take their place where that package is installed and asked for.
"""

from __future__ import annotations

import math
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.errors import MissingExtra
from flops_fit.models.time import TimeEmbedding

STATE = 16  # numbers that a channel remembers
STEP_MIN, STEP_MAX = 1e-3, 1e-1  # of the first step lengths, as in the paper's code
Mixer = Literal["plain", "mamba"]


def selective_scan(u: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """y_k = c_k h_k, h_k = exp(step_k a) h_{k-1} + step_k b_k u_k (the paper's Eq. 2, with its B discretised by Euler).

    u, step (B, T, E); a (E, S) below 0; b, c (B, T, S). Returns (B, T, E).
    """
    h, out = torch.zeros_like(u[:, 0, :, None] * a), []  # (B, E, S)
    # unbound at once: the gradient of a slice is a tensor of all steps, and there are T slices
    for step_k, u_k, b_k, c_k in zip(step.unbind(1), u.unbind(1), b.unbind(1), c.unbind(1), strict=True):
        h = torch.addcmul((step_k * u_k)[..., None] * b_k[:, None], torch.exp(step_k[..., None] * a), h)
        out.append((h @ c_k[..., None])[..., 0])  # (B, E)
    return torch.stack(out, dim=1)


class PlainMamba(nn.Module):
    """One direction: gate, selective scan, way out. `forward(x (B, T, H)) -> (B, T, H)`"""

    def __init__(self, hidden: int, state: int = STATE, expand: int = 2) -> None:
        super().__init__()
        inner, rank = expand * hidden, math.ceil(hidden / 16)
        self.into = nn.Linear(hidden, 2 * inner, bias=False)
        self.selects = nn.Linear(inner, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, inner)
        self.log_a = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(inner, 1))  # (E, S)
        self.skip = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, hidden, bias=False)
        self.sizes = (rank, state, state)
        first = torch.exp(torch.rand(inner) * math.log(STEP_MAX / STEP_MIN) + math.log(STEP_MIN))
        with torch.no_grad():
            self.step.bias.copy_(first + torch.log(-torch.expm1(-first)))  # softplus of it is `first`

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.into(x).chunk(2, dim=2)  # (B, T, E) each
        u = F.silu(u)
        rank, b, c = self.selects(u).split(self.sizes, dim=2)
        y = selective_scan(u, F.softplus(self.step(rank)), -self.log_a.exp(), b, c)
        return cast(Tensor, self.out((y + self.skip * u) * F.silu(gate)))


def mixer(kind: Mixer, hidden: int) -> nn.Module:
    """One direction of a block.

    Raises:
        MissingExtra: "mamba" without mamba-ssm, which needs CUDA.
        ValueError: another mixer.
    """
    if kind not in get_args(Mixer):
        raise ValueError(f"mixer={kind!r} must be one of {', '.join(get_args(Mixer))}")
    if kind == "plain":
        return PlainMamba(hidden)
    try:
        from mamba_ssm import Mamba
    except ImportError as error:
        raise MissingExtra.of("mamba-ssm", "mamba", 'for mixer="mamba" ("plain" needs nothing more)') from error
    return cast(nn.Module, Mamba(d_model=hidden, d_state=STATE, expand=2))


class Block(nn.Module):
    """Both directions, added to the stream with a norm that the time shifts and scales. Starts as the identity.

    `forward(x (B, T, H), c (B, H)) -> (B, T, H)`
    """

    def __init__(self, hidden: int, kind: Mixer) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.ahead, self.back = mixer(kind, hidden), mixer(kind, hidden)
        self.modulation = nn.Linear(hidden, 3 * hidden)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(c))[:, None].chunk(3, dim=2)  # (B, 1, H) each
        h = self.norm(x) * (1 + scale) + shift
        return cast(Tensor, x + gate * (self.ahead(h) + self.back(h.flip(1)).flip(1)))


class StateSpaceNetwork(nn.Module):
    """`forward(x (B, D), t (B,)) -> (B, D)`. Starts as the zero predictor.

    Args:
        hidden: width H of a token; the size parameter of a sweep.
        dim: D.
        layers: blocks of two directions each.
        tokens: pieces T that the vector is cut into.
        mixer: "plain" torch, or "mamba" for mamba-ssm's kernels; their weights are not the same.
    """

    def __init__(
        self, hidden: int = 256, dim: int = 1024, layers: int = 4, tokens: int = 16, mixer: Mixer = "plain"
    ) -> None:
        super().__init__()
        if dim % tokens:
            raise ValueError(f"dim={dim} must be a multiple of tokens={tokens}")
        self.tokens = tokens
        self.time = TimeEmbedding(hidden)
        self.embedding = nn.Linear(dim // tokens, hidden)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, hidden))  # (T, H)
        self.blocks = nn.ModuleList(Block(hidden, mixer) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, dim // tokens)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        batch, dim = x.shape
        c = self.time(t)  # (B, H)
        h = self.embedding(x.view(batch, self.tokens, dim // self.tokens)) + self.positions  # (B, T, H)
        for block in self.blocks:
            h = block(h, c)
        return cast(Tensor, self.out(self.norm(h))).reshape(batch, dim)
