"""codec: a sentence autoencoder with 1024-d vectors, so that generated vectors can be read.

command   flops-fit train codec --data sentences.txt --output outputs/codec
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flops_fit.data.codecs import VOCABULARY, Codec, Embedded
from flops_fit.data.sentences import Vocabulary, made_up_sentences, read_sentences
from flops_fit.data.text import is_held_out
from flops_fit.errors import InputError
from flops_fit.evaluate.metric import Metric
from flops_fit.evaluate.text import require, round_trip
from flops_fit.models.codec import SentenceCodec, written
from flops_fit.study.training import Training
from flops_fit.train.options import TrainOptions

KIND = "codec"
MOST_WORDS = 20
VOCABULARY_SIZE = 4096
CONTEXT = 32  # tokens, its end among them; what does not fit is cut off
JUDGED = 500  # held-out sentences whose round trip is measured
NOISE = 0.1  # of a vector's length, for the second round trip


@dataclass(frozen=True)
class Reconstruction:
    """(model, [tokens (B, T)]) -> nats a token, from a vector with noise and tokens of which some are replaced.

    Args:
        noise: largest standard deviation of the noise, of vectors with unit mean square; each row draws its own.
        replaced: share of the tokens before a place that are random, so that it trusts the vector and not only them.
    """

    noise: float = 5.0
    replaced: float = 0.15

    def __call__(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        assert isinstance(model, SentenceCodec)
        tokens = batch[0]
        there = written(tokens)
        longest = int(there.sum(dim=1).max()) if tokens.device.type != "meta" else tokens.shape[1]
        tokens, there = tokens[:, :longest], there[:, :longest]
        z, before = model.encode(tokens), tokens
        if model.training:
            z = z + self.noise * torch.rand(len(z), 1, device=z.device) * torch.randn_like(z)
            other = torch.randint_like(tokens, 1, model.tokens.num_embeddings)
            before = torch.where(torch.rand(tokens.shape, device=z.device) < self.replaced, other, tokens)
        return F.cross_entropy(model.logits(model.hidden(z, before)[there]), tokens[there])


def training(
    data: str,
    width: int = 240,  # 10.5 MB in half precision
    layers: int = 3,
    epochs: float = 2.0,
    batch_size: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    made_up: int = 0,
    slots: int = CONTEXT,
    noise: float = 5.0,
) -> Training:
    """A codec of the sentences of up to 20 words in a text file, one a line.

    Args:
        slots: of a vector; the usual one for each token lets a flow decide one word at a time.
        noise: of training, see `Reconstruction`. With more of it the vector tells the gist first, what writes leans on
            the words before, and what a flow makes reads better; with less sentences return more exactly.
        made_up: sentences of made-up stories that it learns beside them; it is judged by those of the file alone.
    """
    if not width >= 4 or width % 4:
        raise InputError(f"width: got {width}; allowed are multiples of its 4 heads")
    if slots < 1 or CONTEXT % slots:
        raise InputError(f"slots: got {slots}; allowed are divisors of the {CONTEXT} tokens")
    if not 0 <= noise < math.inf:
        raise InputError(f"noise: got {noise}; allowed is a number from 0 on")
    sentences = list(dict.fromkeys(read_sentences(data, MOST_WORDS)))  # each once
    held_out = [sentence for sentence in sentences if is_held_out(sentence)]
    if len(held_out) < 2:
        told = f"data: {len(held_out)} of {len(sentences)} sentences are held out"
        raise InputError(f"{told}; give more: one in twenty is, and at least 2 are needed")
    require()  # of what judges it: before the hours, not after
    stories = made_up_sentences(made_up, MOST_WORDS)
    known = [sentence for sentence in dict.fromkeys(sentences + stories) if not is_held_out(sentence)]
    vocabulary = Vocabulary.learned(known, VOCABULARY_SIZE)
    arguments = {"width": width, "vocab_size": len(vocabulary), "context": CONTEXT, "slots": slots, "layers": layers}
    objective = Reconstruction(noise)

    def judged(model: nn.Module) -> list[Metric]:
        assert isinstance(model, SentenceCodec)
        return scores(Embedded(model, vocabulary), held_out[:JUDGED])

    def finish(folder: Path) -> None:
        (folder / VOCABULARY).write_text(vocabulary.to_json(), encoding="utf-8")

    return Training(
        name="codec", model_cls=SentenceCodec, size_param="width", size=width,
        model_kwargs={name: value for name, value in arguments.items() if name != "width"},
        dataset=TensorDataset(vocabulary.encode(known, CONTEXT)),
        held_out=TensorDataset(vocabulary.encode(held_out, CONTEXT)),
        objective=objective, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed,
        options=TrainOptions(warmup=0.02, decay=0.4, weight_decay=0.02, looks=20, ema=0.05),
        config={"kind": KIND, "arguments": arguments, "objective": asdict(objective), "sentences": len(known),
                "data_hash": fingerprint(sentences)},
        evaluate=judged, finish=finish, half=True,
    )  # fmt: skip


def fingerprint(sentences: Sequence[str]) -> str:
    """Of different sentences, in their order."""
    return hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:16]


def scores(codec: Codec, sentences: Sequence[str]) -> list[Metric]:
    """Round trips of sentences: as they are, and with noise of a tenth of each vector's length."""
    z = codec.encode(sentences)
    generator = torch.Generator().manual_seed(0)
    noise = F.normalize(torch.randn(z.shape, generator=generator), dim=1) * z.norm(dim=1, keepdim=True) * NOISE
    clean, noisy = (round_trip(sentences, codec.decode(vectors)) for vectors in (z, z + noise))
    return [*clean, *(Metric(**{**metric.to_dict(), "name": f"{metric.name}_noise"}) for metric in noisy)]
