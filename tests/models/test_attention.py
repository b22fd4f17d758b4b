"""Attention is the same whichever way it is multiplied out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flops_fit.models.attention import attend

EIGHT_BITS = 0.02  # of numbers about 1: bfloat16 keeps 8 bits, and four roundings follow each other


def parts(kind: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, 3, 10, 8, generator=generator).bfloat16() for _ in range(4)]
    return [one.to(kind).requires_grad_() for one in drawn]


def test_products_say_what_the_fused_kernel_says() -> None:
    """Values and gradients, of the same numbers; the kernel's in float32, torch's own implementation."""
    found = []
    for kind, function in ((torch.float32, F.scaled_dot_product_attention), (torch.bfloat16, attend)):
        q, k, v, onto = parts(kind)
        mixed = function(q, k, v)
        (mixed * onto.detach()).sum().backward()
        found.append([mixed.detach().float(), *(one.grad.float() for one in (q, k, v) if one.grad is not None)])
    for expected, one in zip(*found, strict=True):
        torch.testing.assert_close(one, expected, rtol=EIGHT_BITS, atol=EIGHT_BITS)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_in_other_precisions_it_is_the_kernel(kind: torch.dtype) -> None:
    q, k, v, _ = parts(kind)
    assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
