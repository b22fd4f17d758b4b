"""N and FLOPs per sample of a model, measured rather than assumed (docs/math.md, Eq. P1).

A small model is built for real, a larger one on the meta device: shapes without numbers, so a model of any size costs
milliseconds and no memory. Attention is forced to its matmul form while counting: on the CPU's fused kernel torch's
counter sees 0 FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flops_fit.data.batches import seeded
from flops_fit.records import Measurement
from flops_fit.train.loss import Objective, first_tensor, to_device

Shape = Sequence[int]

REAL_FIRST = 2_000_000   # up to here numbers are faster than shapes alone, whose operations torch looks up in Python
REAL_LIMIT = 50_000_000  # parameters above which a model is not built for real just to count its FLOPs


@dataclass(frozen=True)
class Measurer:
    """size -> Measurement, for one model class, objective and kind of batch.

    Args:
        batch: a real batch of a few samples; only its shapes matter.
        tokens_per_sample: how many units of D one sample holds.
    """

    model_cls: Callable[..., nn.Module]
    size_param: str
    model_kwargs: Mapping[str, Any]
    objective: Objective
    batch: Any
    tokens_per_sample: int

    def build(self, size: int, device: str = "cpu") -> nn.Module:
        with torch.device(device):
            return self.model_cls(**{**self.model_kwargs, self.size_param: size})

    def params(self, size: int) -> int:
        """N by the model's own count; on the meta device when the model can be built there."""
        return int(_num_params(self._build_lightest(size)))

    def __call__(self, size: int) -> Measurement:
        model = self._build_lightest(size)
        params = int(_num_params(model))
        units = first_tensor(self.batch).shape[0] * self.tokens_per_sample
        for how, count in self._ways(model, size, params):
            try:
                flops = count()
            except Exception:  # a way that this model does not allow; the next one is tried and named
                continue
            if flops > 0:
                return Measurement(size=size, params=params, flops_per_token=flops / units, how=how)
        return Measurement(size=size, params=params, flops_per_token=6.0 * params, how="6N rule")

    def _build_lightest(self, size: int) -> nn.Module:
        try:
            return self.build(size, "meta")
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return self.build(size)  # what is wrong with the size itself is raised from here

    def _ways(self, model: nn.Module, size: int, params: int) -> list[tuple[str, Callable[[], float]]]:
        on_meta = to_device(self.batch, torch.device("meta"))
        ways: list[tuple[str, Callable[[], float]]] = [
            ("measured on meta", lambda: count_flops(lambda: self.objective(model, on_meta).backward()))
        ]
        if params <= REAL_LIMIT:
            ways.insert(0 if params <= REAL_FIRST else 1, ("measured on cpu", lambda: self._on_cpu(size)))
        if self.objective.loss_fn is not None:  # a loss that needs numbers: the network alone, backward = 2 x forward
            network = Objective(loss_fn=lambda outputs, targets: outputs)
            ways.append(("forward measured on meta, x3", lambda: 3 * count_flops(lambda: network(model, on_meta))))
        return ways

    def _on_cpu(self, size: int) -> float:
        with seeded(0):  # the numbers do not matter, but the caller's generators stay as they were
            model = self.build(size)
            return count_flops(lambda: self.objective(model, self.batch).backward())


def count_flops(call: Callable[[], Any]) -> float:
    """FLOPs of everything that `call` runs, backward included; a multiply-add counts 2."""
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return float(counter.get_total_flops())


def _convolution_backward(out: Shape, x: Shape, weight: Shape, *rest: Any, **named: Any) -> int:
    """As many for the input's gradient, where one is asked for, and for the weight's as the convolution itself took.

    torch's own formula forgets that a convolution in groups has a weight of that many channels less, and counts a
    depthwise one hundreds of times too high.
    """
    transposed, mask = rest[4], rest[7]  # bias sizes, stride, padding, dilation, transposed, output padding, groups
    once = 2 * math.prod(x if transposed else out) * math.prod(weight[1:])
    return once * sum(bool(wanted) for wanted in mask[:2])


def _num_params(model: nn.Module) -> int:
    return int(model.num_params())  # type: ignore[operator]  # duck-typed, checked by the contract
