"""gpt-tinystories: a GPT on short stories, or on any text of yours, in tokens of a vocabulary learned from it.

    command   flops-fit find gpt-tinystories                                          made-up stories, offline
              flops-fit find gpt-tinystories --data hub:roneneldan/TinyStories        Eldan & Li 2023, arXiv 2305.07759
              flops-fit find gpt-tinystories --data my_texts/                         a text file, or a folder of them
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from flops_fit.data import text
from flops_fit.models.gpt import GPT
from flops_fit.scaling.rules import BatchRule, LrRule
from flops_fit.study import Study

CONTEXT = 128         # tokens, about one made-up story
VOCABULARY = 512      # small: at these budgets a larger embedding would be most of the model
TOKENS = 10_000_000   # to train on at most: no run of the sweep reads so many


def next_token_loss(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy in nats a token. outputs: (logits (B, T, V), _); targets (B, T)."""
    logits = outputs[0]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # (B*T, V), (B*T,)


def study(data: str | None = None) -> Study:
    """The study on `data` (see `flops_fit.data.text.windows`), None: on made-up stories. Loss in nats a token."""
    found = text.windows(data, CONTEXT, vocabulary=VOCABULARY, tokens=TOKENS)
    return Study(
        model_cls=GPT,
        model_size_param="d_model",
        model_kwargs={"vocab_size": found.vocab_size, "context": CONTEXT},
        dataset=found.training,
        held_out=found.held_out,
        loss_fn=next_token_loss,
        compute_budgets=(3e11, 5e11, 8e11, 1.2e12, 1.9e12),
        size_multiple=8,
        sizes_per_budget=5,
        tokens_per_param=12.0,
        span=2.3,
        lr=LrRule(0.5),
        batch_size=BatchRule(0.35),
        describe_data=found.description,
    )
