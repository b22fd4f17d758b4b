"""FLOPs and parameters as measured, against counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.train.loss import Objective, first_tensor, unit_of
from flops_fit.train.measure import REAL_FIRST, Measurer, count_flops


class Net(nn.Module):
    def __init__(self, width: int, inputs: int = 4) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, 1)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).relu()).relu())  # type: ignore[no-any-return]


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def measurer(model_cls: Any = Net, loss: Any = squared, batch: Any = None, **kwargs: Any) -> Measurer:
    batch = [torch.randn(3, 4), torch.randn(3, 1)] if batch is None else batch
    return Measurer(model_cls, "width", kwargs, Objective(loss_fn=loss), batch, 1)


@pytest.mark.parametrize("width", [1, 16, 4096])
def test_an_mlp_by_hand(width: int) -> None:
    """2 FLOPs a weight forward, 4 backward; the first layer owes no gradient to its inputs, so 2 less each."""
    found = measurer()(width)
    weights = 4 * width + width * width + width
    assert found.flops_per_token == 6 * weights - 2 * 4 * width
    assert found.params == weights + 2 * width + 1
    assert (found.size, found.how) == (width, "measured on meta" if found.params > REAL_FIRST else "measured on cpu")


class Attends(nn.Module):
    """softmax(q k') v without parameters of its own: what the fused kernel of the CPU hides from the counter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into = nn.Linear(4, width, bias=False)

    def num_params(self) -> int:
        return self.into.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return F.scaled_dot_product_attention(x, x, x, is_causal=True).sum(-1)


@pytest.mark.parametrize("how", ["measured on meta", "measured on cpu"])
def test_attention_is_counted(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flops_fit.train.measure.REAL_FIRST", 0 if how == "measured on meta" else 10**9)
    tokens, width, batch = 10, 16, 3
    x = [torch.randn(batch, 1, tokens, 4), torch.randn(batch, 1, tokens)]
    found = measurer(Attends, squared, x)(width)
    projection = 4 * 4 * width * tokens  # forward, and the gradient of the weights: 2 each
    attention = 6 * 2 * tokens * tokens * width  # q k' and p v, forward and twice backward
    assert found.how == how
    assert found.flops_per_token == projection + attention


def test_a_loss_that_needs_numbers_is_measured_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flops_fit.train.measure.REAL_FIRST", 0)

    def looks(outputs: Tensor, targets: Tensor) -> Tensor:
        return squared(outputs, targets) * (1.0 if outputs.sum().item() > 0 else 2.0)

    found = measurer(loss=looks)(16)
    assert found.how == "measured on cpu"
    assert found.flops_per_token == measurer()(16).flops_per_token


def test_too_large_for_that_the_network_alone_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flops_fit.train.measure.REAL_LIMIT", 10)

    def looks(outputs: Tensor, targets: Tensor) -> Tensor:
        return squared(outputs, targets) * outputs.sum().item()

    found = measurer(loss=looks)(16)
    assert found.how == "forward measured on meta, x3"
    assert found.flops_per_token == 3 * 2 * (4 * 16 + 16 * 16 + 16)


class Opaque(nn.Module):
    """Nothing in it is a matrix product, so nothing is counted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def num_params(self) -> int:
        return self.gain.numel()

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True) * self.gain.mean()


def test_where_nothing_can_be_counted_six_n_is_used_and_named() -> None:
    found = measurer(Opaque)(12)
    assert (found.how, found.flops_per_token) == ("6N rule", 72.0)


def test_a_huge_model_costs_no_memory() -> None:
    assert measurer()(10**6).params == 10**12 + 7 * 10**6 + 1


def test_a_batch_is_divided_by_its_units() -> None:
    ids = torch.randint(0, 9, (5, 7))
    assert unit_of([ids, ids]) == ("tokens", 7)
    assert unit_of([torch.randn(5, 7), ids]) == ("samples", 1)
    assert unit_of([torch.zeros(4, 3, 8, 8, dtype=torch.uint8)]) == ("samples", 1)
    assert first_tensor({"name": "a", "x": [torch.tensor(1.0), ids]}) is ids
    assert unit_of({"mask": ids.bool(), "x": ids}) == ("samples", 1)
    for samples in (1, 4):
        batch = [torch.randn(samples, 4), torch.randn(samples, 1)]
        assert measurer(batch=batch)(8).flops_per_token == measurer()(8).flops_per_token


def test_count_flops_counts_a_product_twice_over() -> None:
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_a_size_that_cannot_be_built_raises_what_is_wrong_with_it() -> None:
    def odd(width: int) -> nn.Module:
        if width % 2 == 0:
            raise ValueError("width must be odd")
        return Net(width)

    with pytest.raises(ValueError, match="must be odd"):
        measurer(odd)(2)


@pytest.mark.parametrize(("groups", "transposed"), [(1, False), (4, False), (8, False), (1, True), (4, True)])
def test_convolutions_in_groups_are_counted_by_hand(groups: int, transposed: bool) -> None:
    """Forward once, backward twice: for the weight and for the input; for the weight alone where data come in."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(8, 16, 3, stride=2, groups=groups, bias=False)
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    out = layer(x)
    meets = x if transposed else out  # each of whose numbers meets the kernel once
    once = 2 * meets.numel() * layer.weight[0].numel()
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * once
    assert count_flops(lambda: layer(x.detach()).sum().backward()) == 2 * once
