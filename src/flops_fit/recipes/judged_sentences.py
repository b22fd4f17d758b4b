"""What is measured of flows over sentence vectors and of codecs. What could not be is absent, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flops_fit.data.codecs import Codec, Embedded, reader
from flops_fit.data.sentence_vectors import MADE_UP_ORIGIN, held_out_vectors, holds_vectors, sentence_vectors
from flops_fit.data.sentences import read_sentences
from flops_fit.data.text import is_held_out
from flops_fit.data.vectors import Vectors
from flops_fit.errors import FlopsFitError, InputError, MissingExtra
from flops_fit.evaluate.flow import straightness
from flops_fit.evaluate.metric import Metric, mean_of, share_of
from flops_fit.evaluate.sets import compared, memorised
from flops_fit.evaluate.text import WordModel, distinct, known_words, self_bleu, words
from flops_fit.flow.solvers import Solution
from flops_fit.recipes import codec as codec_recipe
from flops_fit.recipes.evaluation import FEWEST, Evaluation, Sampling
from flops_fit.recipes.sentences import SAMPLING, SentenceFlow

BENT = 200  # paths that are followed to see how straight they are
MOST = 2000  # rows of a set: a distance matrix each


def codec_judged(bundle: str, codec: Embedded, data: str | None, config: Mapping[str, Any]) -> Evaluation:
    """Of the file that it was trained on, the held-out sentences; of another file all."""
    if data is None:
        raise InputError("--data: a codec is judged by sentences; give a text file with one a line")
    sentences = list(dict.fromkeys(read_sentences(data, codec_recipe.MOST_WORDS)))
    known = codec_recipe.fingerprint(sentences) == config.get("data_hash")
    if known:
        sentences = [sentence for sentence in sentences if is_held_out(sentence)]
    judged = sentences[: codec_recipe.JUDGED]
    if len(judged) < 2:
        raise InputError(f"--data: {len(judged)} sentences of {Path(data).name} are held out; give at least 2")
    which = "held-out sentences" if known else "sentences, held out only if it was not trained on them"
    held = Vectors(codec.encode(judged), tuple(judged), {}, f"{Path(data).name}, {which}")
    return Evaluation(bundle, held.described, held.fingerprint, tuple(codec_recipe.scores(codec, judged)))


def sentences_judged(
    bundle: str, flow: SentenceFlow, data: str | None, sampling: Sampling | None, codec: str | None
) -> Evaluation:
    recorded = flow.config["codec"]
    if data is None and not flow.config["data"].startswith(MADE_UP_ORIGIN):
        raise InputError(f"--data: {bundle} was trained on {flow.config['data']}; give such a file")
    if not recorded and not codec and not holds_vectors(data):
        raise InputError(f"--codec: nobody said which codec made the vectors of {bundle}; give it to encode text with")
    if recorded and codec and codec != recorded:
        reader(recorded, codec)  # another one would measure something else
    made_by, notes = codec or recorded or None, [flow.config["gaussian"]] if flow.config.get("gaussian") else []
    if sampling is not None:
        sampling = sampling.filled(**SAMPLING)
        method, steps, until = str(sampling.method), int(sampling.steps or 1), float(sampling.until or 1)
        train, held_out = sentence_vectors(data, made_by, flow.config["vectors"])
        trained_on = train.values if train.fingerprint == flow.config["data_hash"] else None
        n, seed = sampling.samples, sampling.seed
        sampled = flow.sample(n, seed, method, steps)
        plain = flow.gaussian_sample(n, seed)
        measured, absent = of_samples(sampled.x, plain, trained_on, held_out.values)
        measured = how_reached(flow, sampled, seed) + measured
        if trained_on is None and any(train.texts):
            notes.append("known_words and perplexity are by the texts of this file, which it was not trained on")
        try:
            coder: Codec | None = reader(recorded, codec)
        except FlopsFitError as error:
            coder, absent["text"] = None, str(error)
        if coder is not None:
            heard = sampled.x if until == 1 else flow.sample(n, seed, method, steps, until=until).x
            plain = flow.gaussian_sample(n, seed, until)
            read, unread = of_text(coder, heard, plain, train.texts, held_out.texts)
            measured, absent = measured + read, absent | unread
    else:
        held_out = held_out_vectors(data, made_by)
        measured, absent = [], {"samples": "none asked for; give --samples"}
    if held_out.fingerprint != flow.config.get("held_out_hash"):
        notes.append("these are not the vectors that were held out of its training; some may have been trained on")
    losses = flow.losses(held_out.values)
    found = tuple(losses.metrics() + measured)
    return Evaluation(
        bundle, held_out.described, held_out.fingerprint, found, absent, by_time=losses.by_time(),
        sampled=sampling.to_dict() if sampling else {}, notes=tuple(notes),
    )  # fmt: skip


def how_reached(flow: SentenceFlow, sampled: Solution, seed: int) -> list[Metric]:
    """Evaluations of the network that samples took, and how far from straight their paths are (V5)."""
    nfe = Metric(name="nfe", value=sampled.nfe, lo=sampled.nfe, hi=sampled.nfe, n=len(sampled.x))
    return [nfe, straightness(flow.velocity, flow.noise(min(len(sampled.x), BENT), seed))]


def of_samples(
    x: Tensor, plain: Tensor, train: Tensor | None, held_out: Tensor
) -> tuple[list[Metric], dict[str, str]]:
    """(metrics, what is absent): distances of samples (n, D) to held-out rows, beside those of the Gaussian's samples
    and those of training rows to other training rows, and whether samples repeat training rows.

    All four sets are of one size, since a distance of sets grows as they get smaller (V1 to V3).

    Args:
        plain: (n, D) samples of the Gaussian, which knows no more than mean and covariance.
        train: None where the training rows are not known.
    """
    n = min(len(x), len(held_out), MOST if train is None else len(train) // 2, MOST)
    said = f"{len(x)} samples, {len(held_out)} held out"
    if train is None:
        unknown = "these are not the vectors that it was trained on"
        absent = {"floor": unknown, "memorised": unknown}
        if n < FEWEST:
            return [], absent | {"distances": f"{said}: at least {FEWEST} say much"}
        return compared("held_out", x[:n], held_out[:n]) + compared("gaussian", plain[:n], held_out[:n]), absent
    if n < FEWEST:
        told = f"{said}, {len(train)} trained on: at least {FEWEST} say much"
        return memorised(x, train, held_out), {"distances": told}
    some = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))]
    distances = compared("held_out", x[:n], held_out[:n]) + compared("gaussian", plain[:n], held_out[:n])
    distances += compared("floor", some[:n], some[n : 2 * n])
    return distances + memorised(x, train, held_out), {}


def of_text(
    codec: Codec, x: Tensor, plain: Tensor, train: tuple[str, ...], held_out: tuple[str, ...]
) -> tuple[list[Metric], dict[str, str]]:
    """(metrics, what is absent) of what samples (n, D) say, beside what those of the Gaussian and held-out texts say:
    words, variety, likeness to real text, and the way back.

    The vocabulary and the model of words are those of the training texts.
    """
    said, plainly = codec.decode(x), codec.decode(plain)
    back = way_back(codec, x, said) + way_back(codec, plain, plainly, "_gaussian")
    if not any(train) or not any(held_out):
        return back, {"text": "the data have no texts to compare with"}
    vocabulary = {word for text in train for word in words(text)}
    model = WordModel(train)
    n = min(len(said), len(held_out))  # variety falls with the number of texts: as many of both
    found, absent = list[Metric](), dict[str, str]()
    for texts, suffix in ((said, ""), (plainly, "_gaussian"), (list(held_out), "_held_out")):
        measured = [
            known_words(texts, vocabulary), model.perplexity(texts), distinct(texts[:n], 1), distinct(texts[:n], 2),
        ]  # fmt: skip
        try:
            measured.append(self_bleu(texts[:n]))
        except MissingExtra as error:
            absent["self_bleu"] = str(error)
        found += [replace(metric, name=metric.name + suffix) for metric in measured]
    return found + back, absent


def way_back(codec: Codec, x: Tensor, said: list[str], suffix: str = "") -> list[Metric]:
    """Cosine of samples (n, D) with the vectors of what was decoded from them, and the share nearest to its own."""
    again = F.normalize(codec.encode(said), dim=1)
    likeness = F.normalize(x.float(), dim=1) @ again.T  # (n, n)
    own = likeness.argmax(dim=1) == torch.arange(len(x))
    return [
        mean_of(f"round_trip_cosine{suffix}", likeness.diagonal().double().numpy()),
        share_of(f"round_trip_contrastive{suffix}", own.numpy()),
    ]
