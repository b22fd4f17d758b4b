"""What each kind of bundle does that can be timed, and how its network is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from flops_fit.data.codecs import Embedded
from flops_fit.data.sentences import made_up_sentences
from flops_fit.evaluate.latency import Call
from flops_fit.flow.guidance import classifier_free
from flops_fit.recipes import cats, classifier, codec, sentences
from flops_fit.recipes.cats import CatFlow
from flops_fit.recipes.classifier import CatClassifier
from flops_fit.recipes.sentences import SentenceFlow

Works = Mapping[str, Callable[[int], Call]]  # what a bundle does: batch size -> the call that does it once

WHOLE = {"dynamic": False, "fullgraph": True}  # of torch.compile: nothing goes back to plain torch unseen
MIDDLE = 0.5  # time at which a velocity is asked for


class Kind(NamedTuple):
    """What a kind of bundle does, and how it is compiled."""

    item: str
    load: Callable[[Path], Any]
    works: Callable[[Any, Mapping[str, Any]], Works]  # of a loaded bundle, sampled so
    compile: Callable[[Any], object]
    sampling: Callable[[Any], Mapping[str, Any]] = lambda _: {}  # the bundle's own
    network: str | None = None  # the work that model.onnx does


def _sentence_works(flow: SentenceFlow, sampling: Mapping[str, Any]) -> Works:
    def velocity(n: int) -> Call:
        x = flow.noise(n)
        return partial(flow.velocity, x, _times(MIDDLE, x))

    return {"velocity": velocity, "sample": lambda n: partial(flow.sample, n, **sampling)}


def _cat_works(flow: CatFlow, sampling: Mapping[str, Any]) -> Works:
    """Of all breeds in turn, led to them as the bundle has it."""
    device, led = cast(Tensor, flow.mean).device, flow.led()

    def labels(n: int) -> Tensor:
        return torch.arange(n) % len(flow.config["classes"])

    def velocity(n: int) -> Call:
        x = torch.stack([flow.noise(0, i) for i in range(n)]).to(device)  # (n, C, S, S)
        network, null = flow.velocity(), flow.network.null
        guided = classifier_free(network, labels(n).to(device), null, led.scale, led.interval, led.optimised)
        return partial(guided, x, _times(sum(led.interval) / 2, x))

    how = {name: sampling[name] for name in ("method", "steps")}
    samples = {"sample": lambda n: partial(flow.sample, labels(n), **how)}
    return {"velocity": velocity, **(samples if device.type == "cpu" else {})}


def _classifier_works(model: CatClassifier, _: Mapping[str, Any]) -> Works:
    def forward(n: int) -> Call:
        size, device = model.config["image_size"], cast(Tensor, model.temperature).device
        noise = torch.Generator().manual_seed(0)
        return partial(model, torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=noise).to(device))

    return {"forward": forward}


def _codec_works(coder: Embedded, _: Mapping[str, Any]) -> Works:
    def said(n: int) -> list[str]:
        return made_up_sentences(n, codec.MOST_WORDS)

    return {
        "encode": lambda n: partial(coder.encode, said(n)),
        "decode": lambda n: partial(coder.decode, coder.encode(said(n))),
    }  # fmt: skip


def _times(t: float, x: Tensor) -> Tensor:
    """(B,) one time for all rows of x (B, ...), in memory as solvers give it, so that nothing is compiled twice."""
    return x.new_full((1,), t).expand(len(x))


def _compile_network(bundle: SentenceFlow | CatClassifier) -> None:
    bundle.network.compile(**WHOLE)


def _compile_cats(flow: CatFlow) -> None:
    """Samples ask for that part of the network alone (`Prepared`)."""
    flow.network.modulated = torch.compile(flow.network.modulated, **WHOLE)  # type: ignore[method-assign, call-overload]
    flow.network.compile(**WHOLE)


def _compile_codec(coder: Embedded) -> None:
    """The decoder's blocks see one token more at every step, and fewer rows as sentences end."""
    coder.model.encode = torch.compile(coder.model.encode, **WHOLE)  # type: ignore[method-assign, call-overload]
    for block in coder.model.decoder:
        block.compile(dynamic=True, fullgraph=True)


KINDS = {
    sentences.KIND: Kind(
        "vector", SentenceFlow.load, _sentence_works, _compile_network, lambda _: sentences.SAMPLING, "velocity"
    ),
    cats.KIND: Kind("picture", CatFlow.load, _cat_works, _compile_cats, lambda flow: flow.sampling, "velocity"),
    classifier.KIND: Kind("picture", CatClassifier.load, _classifier_works, _compile_network, network="forward"),
    codec.KIND: Kind("sentence", Embedded.load, _codec_works, _compile_codec),
}  # fmt: skip
