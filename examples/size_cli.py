"""A command line of your own around `find_optimal`: replace the module, the data and the loss.

    python examples/size_cli.py --budgets 1e8,3e8,1e9 --output outputs/mine --json > answer.json
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import flops_fit


class Classifier(nn.Sequential):
    """Points in space to one of 8 classes."""

    def __init__(self, hidden: int) -> None:
        super().__init__(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, 8))

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())


def data(count: int = 200_000) -> TensorDataset:
    """Which octant a point is in, seen through noise."""
    torch.manual_seed(0)  # the same again when it is run again
    points: Tensor = torch.randn(count, 3)
    return TensorDataset(points + 0.3 * torch.randn(count, 3), (points > 0).long() @ torch.tensor([1, 2, 4]))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--budgets", default="1e8,3e8,1e9", help="FLOPs of one run each, comma-separated")
parser.add_argument("--output", default="outputs/size-cli", help="folder of the journal, the result and the report")
parser.add_argument("--json", action="store_true", help="the whole result as one JSON document")
parser.add_argument("--quick", action="store_true", help="tiny budgets; the answer is of no use")
asked = parser.parse_args()
budgets = [1e6, 2e6, 4e6] if asked.quick else [float(budget) for budget in asked.budgets.split(",")]
folder = asked.output + "-quick" * asked.quick  # another study

try:
    result = flops_fit.find_optimal(
        Classifier, "hidden", dataset=data(), loss_fn=nn.functional.cross_entropy, compute_budgets=budgets,
        size_multiple=2, tokens_per_param=60, lr=0.01, output_dir=folder, bootstrap=100 if asked.quick else 4000,
        extend=0 if asked.quick else 2,
    )  # fmt: skip
except flops_fit.FlopsFitError as error:  # one line that says what to do
    sys.exit(f"error: {error}")
print(json.dumps(result.to_dict()) if asked.json else f"{result.summary()}\nreport: {folder}/report.html")
