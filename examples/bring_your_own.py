"""Your own module, data and loss: how wide should the network be? `python examples/bring_your_own.py [--quick]`"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import flops_fit


class Network(nn.Module):
    """Any module will do that has `num_params` and an argument for its size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, 1))

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[:, 0]


quick = "--quick" in sys.argv  # tiny budgets, to see it work
x = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0))  # the same again when it is run again
folder = "outputs/bring-your-own" + "-quick" * quick  # journal, law and report; a quick try is another study
data = TensorDataset(x, (2 * x).sin().sum(dim=1) + x[:, 0] * x[:, 1])
result = flops_fit.find_optimal(
    Network, "width", dataset=data, loss_fn=nn.functional.smooth_l1_loss,
    compute_budgets=[1e6, 2e6, 4e6] if quick else [1e8, 2e8, 4e8, 8e8], bootstrap=100 if quick else 4000,
    size_multiple=2, tokens_per_param=100, lr=0.01, extend=0 if quick else 2, output_dir=folder,
)  # fmt: skip
print(result.summary())
print(f"report: {folder}/report.html")
