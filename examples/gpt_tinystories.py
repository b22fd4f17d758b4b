"""How big should a GPT on short stories be? Copy this file and change what is yours.

    python examples/gpt_tinystories.py                                      made-up stories, offline
    python examples/gpt_tinystories.py --data hub:roneneldan/TinyStories    or a text file, or a folder of them
    python examples/gpt_tinystories.py --plan                               what it would run and cost
    python examples/gpt_tinystories.py --quick                              tiny budgets, to see it work
"""

from __future__ import annotations

import argparse
import sys

import torch.nn.functional as F
from torch import Tensor

import flops_fit
from flops_fit.data import text
from flops_fit.models.gpt import GPT
from flops_fit.scaling.rules import LrRule

CONTEXT = 128  # tokens


def loss(outputs: tuple[Tensor, None], targets: Tensor) -> Tensor:
    """Nats a token; this GPT returns (logits (B, T, V), None)."""
    return F.cross_entropy(outputs[0].flatten(0, 1), targets.flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a text file, a folder of them, or hub:OWNER/NAME; default: made-up stories")
    parser.add_argument("--plan", action="store_true", help="show what would run, train nothing")
    parser.add_argument("--quick", action="store_true", help="tiny budgets; the answer is of no use")
    parser.add_argument("--output", default="outputs/gpt-tinystories", help="folder of what is written")
    asked = parser.parse_args()
    folder = asked.output + "-quick" * asked.quick  # another study

    stories = text.windows(asked.data, CONTEXT, vocabulary=512, tokens=300_000 if asked.quick else 10_000_000)
    result = flops_fit.find_optimal(
        GPT, "d_model", {"vocab_size": stories.vocab_size, "context": CONTEXT},
        dataset=stories.training, held_out=stories.held_out, loss_fn=loss,
        compute_budgets=[2e9, 4e9, 8e9] if asked.quick else [3e11, 5e11, 8e11, 1.3e12, 2e12],
        size_multiple=8, tokens_per_param=4 if asked.quick else 12, span=2.3, bootstrap=100 if asked.quick else 4000,
        lr=LrRule(0.5), extend=0 if asked.quick else 2, train=not asked.plan, output_dir=folder,
    )  # fmt: skip
    if isinstance(result, flops_fit.SweepPlan):
        print(result)
    else:
        print(result.summary())
        print(f"report: {folder}/report.html")


if __name__ == "__main__":
    try:
        main()
    except flops_fit.FlopsFitError as error:
        sys.exit(f"error: {error}")
