"""What `flops-fit evaluate BUNDLE` measures, by the kind of bundle.

What could not be measured is absent, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flops_fit.data.codecs import Codec, Embedded, codec_named
from flops_fit.data.sentence_vectors import sentence_vectors
from flops_fit.data.sentences import read_sentences
from flops_fit.data.vectors import Vectors
from flops_fit.errors import FlopsFitError, InputError
from flops_fit.evaluate.metric import Metric, mean_of, table
from flops_fit.evaluate.sets import compared, memorised
from flops_fit.evaluate.text import WordModel, distinct, known_words, self_bleu, words
from flops_fit.models import weights
from flops_fit.recipes import codec as codec_recipe
from flops_fit.recipes.sentences import KIND, SentenceFlow

FEWEST = 20  # rows of a set whose distance to another says anything
MOST = 2000  # rows of a set: a distance matrix each


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a bundle on data, and what is absent."""

    bundle: str
    data: str
    data_sha256: str
    metrics: tuple[Metric, ...]
    absent: Mapping[str, str] = field(default_factory=dict)
    by_time: Mapping[str, list[float]] = field(default_factory=dict)  # mean losses in bands of t

    def to_dict(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle, "data": self.data, "data_sha256": self.data_sha256, "metrics": table(self.metrics),
            "absent": dict(self.absent), "by_time": dict(self.by_time),
        }  # fmt: skip

    def __str__(self) -> str:
        width = max((len(metric.name) for metric in self.metrics), default=0)
        lines = [f"{self.bundle} on {self.data}"]
        lines += [
            f"{m.name:<{width}}  {m.value:>10.4g}   95% {m.lo:.4g} to {m.hi:.4g}   n = {m.n:,}" for m in self.metrics
        ]
        lines += [f"{name:<{width}}  absent: {reason}" for name, reason in self.absent.items()]
        return "\n".join(lines)


def evaluate(
    bundle: str, data: str | None, samples: int = 0, *, seed: int = 0, method: str = "heun", steps: int = 20,
    codec: str | None = None,
) -> Evaluation:  # fmt: skip
    """Measure a bundle on held-out data.

    Args:
        bundle: a folder, or the name of a bundle that comes with flops-fit.
        data: see `sentence_vectors`; of a codec: a text file.
        samples: vectors to generate for everything that is said of samples; 0: nothing is.
        method, steps: of the solver.
        codec: that made the vectors, where the bundle does not know.

    Raises:
        InputError: a bundle of an unknown kind, or data that do not go with it.
    """
    folder = weights.located(bundle)
    _, config = weights.read(folder)
    if config.get("kind") == KIND:
        return _flow(bundle, SentenceFlow.load(folder), data, samples, seed, method, steps, codec)
    if config.get("kind") == codec_recipe.KIND:
        return _codec(bundle, Embedded.load(folder), data)
    raise InputError.unknown(f"kind of {bundle}", config.get("kind"), (KIND, codec_recipe.KIND))


def _codec(bundle: str, codec: Embedded, data: str | None) -> Evaluation:
    if data is None:
        raise InputError("--data: a codec is judged by sentences; give a text file with one a line")
    sentences = list(dict.fromkeys(read_sentences(data, codec_recipe.MOST_WORDS)))[: codec_recipe.JUDGED]
    held = Vectors(codec.encode(sentences), tuple(sentences), {}, f"{Path(data).name}: {len(sentences):,} sentences")
    return Evaluation(bundle, held.described, held.fingerprint, tuple(codec_recipe.scores(codec, sentences)))


def _flow(
    bundle: str, flow: SentenceFlow, data: str | None, samples: int, seed: int, method: str, steps: int,
    codec: str | None,
) -> Evaluation:  # fmt: skip
    made_by = codec or flow.config["codec"]
    train, held_out = sentence_vectors(data, made_by or None, flow.config["vectors"])
    losses = flow.losses(held_out.values)
    found, absent = losses.metrics(), dict[str, str]()
    if samples:
        x = flow.sample(samples, seed, method, steps).x
        measured, absent = of_samples(x, train.values, held_out.values)
        found += measured
        try:
            coder = codec_named(made_by) if made_by else None
        except FlopsFitError as error:
            coder, absent["text"] = None, str(error)
        if coder is not None:
            found += of_text(coder, x, train.texts, held_out.texts)
        elif "text" not in absent:
            absent["text"] = "nobody said which codec made the vectors; give --codec"
    else:
        absent["samples"] = "none asked for; give --samples"
    return Evaluation(
        bundle, held_out.described, held_out.fingerprint, tuple(found), absent, by_time=losses.by_time()
    )  # fmt: skip


def of_samples(x: Tensor, train: Tensor, held_out: Tensor) -> tuple[list[Metric], dict[str, str]]:
    """(metrics, what is absent): distances of samples (n, D) to held-out rows, beside those of one half of the training
    rows to the other half, which no model can be expected to beat; and whether samples repeat training rows."""
    generator = torch.Generator().manual_seed(0)
    shuffled = train[torch.randperm(len(train), generator=generator)][: 2 * MOST]
    half = len(shuffled) // 2
    found, absent = list[Metric](), dict[str, str]()
    pairs = {"held_out": (x[:MOST], held_out[:MOST]), "floor": (shuffled[:half], shuffled[half : 2 * half])}
    for name, (first, second) in pairs.items():
        fewest = min(len(first), len(second))
        if fewest < FEWEST:
            absent[f"distances_{name}"] = f"{fewest} rows in one of the sets; at least {FEWEST} say anything"
        else:
            found += compared(name, first, second)
    return [*found, *memorised(x, train, held_out)], absent


def of_text(codec: Codec, x: Tensor, train: tuple[str, ...], held_out: tuple[str, ...]) -> list[Metric]:
    """What samples (n, D) say, beside what held-out texts say: words, variety, likeness to real text, and the way back.

    The vocabulary and the model of words are those of the training texts.
    """
    said = codec.decode(x)
    vocabulary = {word for text in train for word in words(text)}
    model = WordModel(train)
    n = min(len(said), len(held_out))  # variety falls with the number of texts: as many of both
    found: list[Metric] = []
    for texts, suffix in ((said, ""), (list(held_out), "_held_out")):
        measured = [
            known_words(texts, vocabulary), model.perplexity(texts), distinct(texts[:n], 1), distinct(texts[:n], 2),
            self_bleu(texts[:n]),
        ]  # fmt: skip
        found += [dataclasses.replace(metric, name=metric.name + suffix) for metric in measured]
    return found + way_back(codec, x, said)


def way_back(codec: Codec, x: Tensor, said: list[str]) -> list[Metric]:
    """Cosine of samples (n, D) with the vectors of what was decoded from them, and the share nearest to its own."""
    again = F.normalize(codec.encode(said), dim=1)
    likeness = F.normalize(x.float(), dim=1) @ again.T  # (n, n)
    own = likeness.argmax(dim=1) == torch.arange(len(x))
    return [
        mean_of("round_trip_cosine", likeness.diagonal().double().numpy()),
        mean_of("round_trip_contrastive", own.double().numpy()),
    ]
