"""Muon: orthogonal steps, those of torch's own, on the matrices of blocks alone; and a run that goes on bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from flops_fit.errors import InputError
from flops_fit.train.muon import Muon, hidden_matrices, orthogonal
from flops_fit.train.optim import optimiser, set_lr
from flops_fit.train.options import TrainOptions

LOWEST, HIGHEST = 0.65, 1.25  # of singular values after five rounds (Jordan et al.: S' is about uniform on 0.5 to 1.5)
HALF = 0.02  # torch's own iterates in bfloat16, of 8 bits: its matrices are so far off, relative to their norm


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8)) for _ in range(2))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)  # type: ignore[no-any-return]


INSIDE = {f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in (0, 2)}


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, lr: float = 0.01, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        set_lr(optimizer, lr)
        x = torch.randn(32, 6, generator=generator)
        nn.functional.mse_loss(model(x), x[:, :3].sin()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8)])
def test_all_directions_come_out_alike(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    turned = u.mT @ orthogonal(matrices) @ vh.mT  # (K, r, r): along the directions that went in
    along = turned.diagonal(dim1=1, dim2=2)
    assert along.min() > LOWEST and along.max() < HIGHEST
    torch.testing.assert_close(turned, torch.diag_embed(along), rtol=0, atol=1e-4)  # float32, fifteen products


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-20, 1e-12])
def test_next_to_nothing_is_not_blown_up(size: float) -> None:
    """Their squares leave float32: scaled by a norm of 0 they would be infinite."""
    assert orthogonal(torch.full((2, 30, 40), size)).norm() < 1


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon of its own to compare with")
def test_steps_are_those_of_torch() -> None:
    start = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    own = Muon([{"params": [ours], "muon": True}], lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        gradient = torch.randn(24, 8, generator=torch.Generator().manual_seed(1 + step))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        own.step()
        other.step()
        assert (ours - theirs).norm() < HALF * (theirs - start).norm()


def test_it_is_for_the_matrices_of_blocks_and_adamw_for_the_rest() -> None:
    model, plain = Blocks(), Blocks()
    assert hidden_matrices(model) == INSIDE
    trained(model, optimiser(model, TrainOptions(optimizer="muon")), 1)
    trained(plain, optimiser(plain, TrainOptions()), 1)
    theirs = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, theirs[name]) == (name not in INSIDE)


def test_a_model_may_name_its_matrices() -> None:
    model = Blocks()
    model.hidden_matrices = lambda: ["blocks.0.0.weight"]  # type: ignore[assignment,operator]
    groups = optimiser(model, TrainOptions(optimizer="muon")).param_groups
    assert hidden_matrices(nn.Sequential(nn.Linear(2, 2), model)) == {"1.blocks.0.0.weight"}  # inside of another
    named = [parameter for group in groups if group["muon"] for parameter in group["params"]]
    assert [id(parameter) for parameter in named] == [id(model.blocks[0][0].weight)]  # type: ignore[index]


def test_it_goes_on_from_its_state_bit_for_bit() -> None:
    model = Blocks()
    optimizer = optimiser(model, TrainOptions(optimizer="muon"))
    trained(model, optimizer, 3)
    other = copy.deepcopy(model)
    restored = optimiser(other, TrainOptions(optimizer="muon"))
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    trained(model, optimizer, 3, seed=1)
    trained(other, restored, 3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_an_unknown_optimizer_is_told() -> None:
    with pytest.raises(InputError, match="did you mean muon"):
        TrainOptions(optimizer="moun")
    assert "optimizer" not in TrainOptions().identity()  # journals of before it stay valid
    assert TrainOptions(optimizer="muon").identity()["optimizer"] == "muon"
