"""A step of fine-tuning EfficientNet-Lite0 beside the same network layer by layer, in turns in one process.

    python benchmarks/classifier.py      32 pictures of 224 px, 2 threads, forward and backward; with nothing beside it

The peer is the network as torch has it by itself: a convolution, a batch norm whose statistics are fixed, a ReLU6, all
of it in bfloat16 by autocast, and in float32; channels last in memory, as ours.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from record import record
from torch import Tensor, nn

from flops_fit.models.classifier import Classifier, create_classifier
from flops_fit.models.efficientnet import Layer
from flops_fit.train.machine import cpu_threads
from flow import in_turns, ratio

ROUNDS, BATCH, SIDE, CLASSES = 7, 32, 224, 13


def by_itself(layer: Layer, x: Tensor) -> Tensor:
    conv = layer.conv
    if conv.stride[0] > 1:
        (top, bottom), (left, right) = (conv._zeros(side) for side in x.shape[2:])
        x = F.pad(x, (left, right, top, bottom))
    x = layer.norm(nn.Conv2d.forward(conv, x))
    return F.relu6(x) if layer.active else x


def step(model: Classifier, images: Tensor, labels: Tensor, half: bool) -> Callable[[], None]:
    def once() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            heads = model(images)
        (F.cross_entropy(heads.breeds.float(), labels) + heads.cat.float().mean()).backward()
        model.zero_grad()

    return once


def main() -> None:
    torch.manual_seed(0)
    ours = create_classifier("efficientnet-lite0", CLASSES).train()
    peer = copy.deepcopy(ours)
    for layer in peer.modules():
        if isinstance(layer, Layer):
            layer.forward = partial(by_itself, layer)  # type: ignore[method-assign]
    images, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(CLASSES, (BATCH,))
    work = {
        f"{name}_{kind}": step(model, images, labels, kind == "bf16")
        for name, model in (("ours", ours), ("layer_by_layer", peer)) for kind in ("bf16", "fp32")
    }  # fmt: skip
    with cpu_threads(2):
        times: dict[str, Any] = in_turns(work, ROUNDS)
    faster = {kind: ratio(times[f"layer_by_layer_{kind}"], times[f"ours_{kind}"]) for kind in ("bf16", "fp32")}
    seconds = {name: round(statistics.median(values), 3) for name, values in times.items()}
    record("classifier", {"seconds": seconds, "times_faster": faster})


if __name__ == "__main__":
    main()
