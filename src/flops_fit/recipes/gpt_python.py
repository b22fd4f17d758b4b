"""gpt-python: a byte-level GPT on the source text of Python's own standard library. Runs anywhere, offline.

    command   flops-fit find gpt-python --verify 4
    machine, time, result: the table in README.md; how the choices were measured: experiments/gpt-python/LOG.md
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from flops_fit.data.stdlib import describe, python_source
from flops_fit.models.gpt import GPT
from flops_fit.scaling.rules import BatchRule, LrRule
from flops_fit.study import Study

CONTEXT = 64  # bytes; at 10^11..10^12 FLOPs a longer context costs more than it teaches


def next_byte_loss(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy in nats a byte. outputs: (logits (B, T, V), _); targets (B, T)."""
    logits = outputs[0]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # (B*T, V), (B*T,)


def study() -> Study:
    training, held_out = python_source(CONTEXT)
    return Study(
        model_cls=GPT,
        model_size_param="d_model",
        model_kwargs={"vocab_size": 256, "context": CONTEXT},
        dataset=training,
        held_out=held_out,
        loss_fn=next_byte_loss,
        compute_budgets=(3e11, 5.5e11, 9e11, 1.5e12, 2.4e12),
        size_multiple=8,
        sizes_per_budget=5,
        tokens_per_param=28.0,
        span=2.3,
        schedule="wsd",  # branches would cost half, and predicted worse (experiments/gpt-python/LOG.md)
        lr=LrRule(0.38),
        batch_size=BatchRule(0.35),
        describe_data=describe(),
    )
