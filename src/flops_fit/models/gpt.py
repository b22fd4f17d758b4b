"""A small GPT with one dial, `d_model`; heads and depth are derived from it.

Decoder-only transformer (Radford et al. 2019), pre-norm, rotary positions (Su et al. 2021, arXiv 2104.09864),
causal scaled-dot-product attention, head tied to the embedding (Press & Wolf 2017).

Choices that matter at 10^4..10^6 parameters, measured in experiments/gpt-python/LOG.md: rotary instead of learned
positions, the previous token's embedding mixed into each position, projections into the residual stream that start at
zero. Chosen for speed: one fused q-k-v matrix, no biases, LayerNorm rather than RMSNorm (one CPU kernel, not five).

Two parameterizations of this network. "standard": the best learning rate falls as the width grows. "u-mup" (Blake et
al. 2024, arXiv 2407.17465, after Yang et al. 2022, arXiv 2203.03466): weights of unit variance, fixed multipliers in
the forward pass and a factor of the learning rate for each tensor, so that one rate serves all widths: train it at
`LrRule(c, n_exponent=0)`. How far that holds is measured in experiments/gpt-transfer.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parameterization = Literal["standard", "u-mup"]

GELU_RMS = 0.652  # root of E[gelu(z)^2] for z ~ N(0, 1)

# u-mup's own constants, the same at every width: measured at d_model 64, experiments/gpt-transfer/LOG.md
ATTENTION = 4.0   # attention logits are ATTENTION / K q.k
READOUT = 4.0     # logits are READOUT / D
TABLE_LR = 0.25   # factor of the learning rate for the embedding, and
VECTOR_LR = 0.25  # for gains


class Scale(torch.autograd.Function):
    """x times one number, its gradient times another (Blake et al. 2024, App. B)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float, gradient_factor: float) -> Tensor:
        ctx.gradient_factor = gradient_factor
        return x * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] * ctx.gradient_factor, None, None


def scale(x: Tensor, factor: float, gradient_factor: float) -> Tensor:
    return cast(Tensor, Scale.apply(x, factor, gradient_factor))  # type: ignore[no-untyped-call]


class UnitLinear(nn.Linear):
    """y = gain / sqrt(fan_in) W x, W of unit variance (Eq. M2). W's gradient leaves 1 / sqrt(fan_in) out (Eq. M5)."""

    def __init__(self, fan_in: int, fan_out: int, gain: float) -> None:
        super().__init__(fan_in, fan_out, bias=False)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, scale(self.weight, self.gain / math.sqrt(self.in_features), self.gain))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Eq. M1): turn each pair (x_i, x_{i+K/2}) by its position's angle. x (B, H, T, K)."""
    first, second = x.chunk(2, dim=-1)  # (B, H, T, K/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Block(nn.Module):
    """Attention and a 4x GELU network, each added to the residual stream (B, T, D).

    Args:
        gains: u-mup's multipliers of what attention and the network add (Eq. M3); None: the standard block.
    """

    def __init__(self, d_model: int, heads: int, gains: tuple[float, float] | None = None) -> None:
        super().__init__()

        def linear(fan_in: int, fan_out: int, gain: float = 1.0) -> nn.Linear:
            return nn.Linear(fan_in, fan_out, bias=False) if gains is None else UnitLinear(fan_in, fan_out, gain)

        attention_gain, mlp_gain = gains or (1.0, 1.0)
        self.heads = heads
        self.attention_scale = None if gains is None else ATTENTION * heads / d_model  # (Eq. M3); None: 1 / sqrt(K)
        self.attention_norm = nn.LayerNorm(d_model, bias=False)
        self.qkv = linear(d_model, 3 * d_model)
        self.attention_out = linear(d_model, d_model, attention_gain)
        self.mlp_norm = nn.LayerNorm(d_model, bias=False)
        self.mlp_in = linear(d_model, 4 * d_model)
        self.mlp_out = linear(4 * d_model, d_model, mlp_gain)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, K) each
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.attention_scale)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, tokens, width))  # (B, T, D)
        return x + cast(Tensor, self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)))))


class GPT(nn.Module):
    """Next-token model. `forward(ids (B, T) int64) -> (logits (B, T, V), None)`.

    The second member is there because GPTs commonly return (logits, loss); the loss function decides what it reads.

    Args:
        d_model: width D, a multiple of 2 x heads; the size parameter of a sweep.
        vocab_size: V; 256 for bytes.
        context: longest T.
        depth: blocks; None derives max(1, d_model // 128).
        heads: H of width K = D / H; None derives 4 a block of the derived depth, so that K is 32 in large models.
        parameterization: "standard" or "u-mup"; the same parameters, another start and other learning rates.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int = 256,
        context: int = 128,
        depth: int | None = None,
        heads: int | None = None,
        parameterization: Parameterization = "standard",
    ) -> None:
        super().__init__()
        derived = max(1, d_model // 128)
        depth, heads = derived if depth is None else depth, 4 * derived if heads is None else heads
        if d_model % (2 * heads):
            raise ValueError(f"d_model={d_model} must be a multiple of {2 * heads}, twice the {heads} heads")
        if parameterization not in ("standard", "u-mup"):
            raise ValueError(f'parameterization={parameterization!r}; allowed are "standard" and "u-mup"')
        self.context, self.unit = context, parameterization == "u-mup"
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.previous = nn.Parameter(torch.full((d_model,), 0.5))  # how much of the previous token each channel sees
        gains = unit_gains(d_model // heads, context, depth) if self.unit else None
        self.blocks = nn.ModuleList(Block(d_model, heads, gains) for _ in range(depth))
        self.final_norm = nn.LayerNorm(d_model, bias=False)
        head_dim = d_model // heads
        frequency = 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)  # (K/2,)
        angle = torch.arange(context)[:, None] * frequency  # (T, K/2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.embedding.weight, std=1.0 if self.unit else 0.1)
        for block in self.blocks:
            block = cast(Block, block)
            for into in (block.qkv, block.mlp_in):
                nn.init.normal_(into.weight, std=1.0 if self.unit else 1 / math.sqrt(into.in_features))
            for out in (block.attention_out, block.mlp_out):  # each block starts as the identity
                nn.init.zeros_(out.weight)

    def num_params(self) -> int:
        """N: every trainable number, the tied embedding once."""
        return sum(p.numel() for p in self.parameters())

    def lr_factors(self) -> dict[str, float]:
        """Parameter name -> factor of the run's learning rate (Eq. M4); {} in the standard parameterization."""
        if not self.unit:
            return {}
        factors = {name: VECTOR_LR for name, p in self.named_parameters() if p.ndim == 1}
        factors |= {
            f"{name}.weight": 1 / math.sqrt(module.in_features * len(self.blocks))
            for name, module in self.named_modules()
            if isinstance(module, UnitLinear)
        }
        return factors | {"embedding.weight": TABLE_LR}

    def forward(self, ids: Tensor) -> tuple[Tensor, None]:
        tokens = ids.shape[1]
        if tokens > self.context:
            raise ValueError(f"ids hold {tokens} tokens, the model's context is {self.context}")
        table = self.embedding.weight  # (V, D)
        if self.unit:
            table = scale(table, 1.0, math.sqrt(table.shape[0]))
        x = F.embedding(ids, table)  # (B, T, D)
        x = x + self.previous * F.pad(x, (0, 0, 1, 0))[:, :-1]  # the row before each position, zeros before the first
        cos, sin = cast(Tensor, self.cos)[:tokens], cast(Tensor, self.sin)[:tokens]
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = F.linear(self.final_norm(x), table)  # (B, T, V)
        if self.unit:
            logits = scale(logits, READOUT / table.shape[1], 1 / math.sqrt(self.num_params()))
        return logits, None


def unit_gains(head_dim: int, context: int, depth: int) -> tuple[float, float]:
    """Multipliers of (attention, network) so that the branches of all blocks together add variance 2 (Eq. M3).

    Attention averages over up to T values, which shrinks them to sigma; `log sigma` lies between the values of a
    softmax that picks one and of one that averages all (Blake et al. 2024, Table 8).
    """
    peaked = 1 / (1 + 4 * head_dim / ATTENTION**2)
    sigma = math.sqrt(math.log(context) / context) ** (1 - peaked)
    return 1 / (sigma * math.sqrt(depth)), 1 / (GELU_RMS * math.sqrt(depth))
