"""Attention of all tokens to all: the fused kernel where it is the fastest, products of matrices where they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(K)) v of (B, heads, T, K) each, like q.

    On CPUs the fused kernel's gradients in bfloat16 take several times as long as the products do
    (benchmarks/cats.py), so there it is written out; weights (B, heads, T, T) are then held in memory.
    """
    if q.dtype is not torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    weights = (q * q.shape[-1] ** -0.5) @ k.mT  # (B, heads, T, T)
    return torch.softmax(weights, dim=-1) @ v
