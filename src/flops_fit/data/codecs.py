"""Text to vectors and back, behind two methods. Which codec made them is part of what vectors are.

    Embedded    a sentence autoencoder that `flops-fit train codec` made
    Sonar       Meta's SONAR (Duquenne et al. 2023, arXiv 2308.11466), through its own package

The home of sonar.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from flops_fit.data.sentences import Vocabulary
from flops_fit.errors import InputError, MissingExtra
from flops_fit.models import weights
from flops_fit.models.codec import END, SentenceCodec

HASH = 12  # characters of a codec's weights' SHA-256 that are kept with vectors
AT_ONCE = 256  # sentences through the model together
VOCABULARY = "tokenizer.json"
DEFAULT_CODEC = "codec"  # comes with flops-fit


class Codec(Protocol):
    """Contract, tested over every implementation: rows stay in order, and no text or no row gives none."""

    reference: str  # what `codec_named` takes to find this very codec again

    @property
    def dim(self) -> int: ...
    def encode(self, texts: Sequence[str]) -> Tensor: ...  # (n, dim) float32
    def decode(self, vectors: Tensor) -> list[str]: ...  # (n, dim) -> n texts


class Embedded:
    """A trained `SentenceCodec` with its vocabulary."""

    def __init__(self, model: SentenceCodec, vocabulary: Vocabulary, reference: str = "") -> None:
        self.model, self.vocabulary, self.reference = model.eval(), vocabulary, reference

    @classmethod
    def load(cls, folder: Path) -> Embedded:
        """From a folder of `save`. Raises InputError where something is missing or does not fit."""
        tensors, config = weights.read(folder)
        try:
            model = SentenceCodec(**config["arguments"])
            vocabulary = Vocabulary.from_json((folder / VOCABULARY).read_text(encoding="utf-8"))
        except (KeyError, TypeError, OSError) as error:
            told = f"{folder}: not a sentence codec ({error})"
            raise InputError(f"{told}; give the folder that `train codec` wrote") from error
        weights.fill(model, tensors, str(folder))
        digest = hashlib.sha256((folder / weights.WEIGHTS).read_bytes()).hexdigest()
        return cls(model, vocabulary, f"{folder}@{digest[:HASH]}")

    @property
    def dim(self) -> int:
        return self.model.dim

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        rows = self.vocabulary.encode(texts, self.model.context)
        lengths = (rows != END).sum(dim=1) + 1  # with the END that is read
        found = torch.zeros(len(rows), self.dim)
        batches = lengths.argsort().split(AT_ONCE) if len(rows) else ()
        for some in batches:  # of like length together, without the rest of their rows
            found[some] = self.model.encode(rows[some, : int(lengths[some].max())])
        return found

    def cut(self, texts: Sequence[str]) -> int:
        """How many are longer than its context, and come back without their end."""
        return self.vocabulary.longer(texts, self.model.context - 1)

    def decode(self, vectors: Tensor) -> list[str]:
        check(vectors, self.dim)
        rows = [self.model.decode(part) for part in vectors.float().split(AT_ONCE) if len(part)]
        return [text for part in rows for text in self.vocabulary.decode(part)]


class Sonar:
    """SONAR's encoder and decoder, loaded when first used; their weights, 2 to 3 GB, are fetched by fairseq2."""

    dim, reference = 1024, "sonar"

    def __init__(self, language: str = "eng_Latn", device: str = "cpu") -> None:
        try:
            from sonar.inference_pipelines.text import EmbeddingToTextModelPipeline, TextToEmbeddingModelPipeline
        except ImportError as error:
            raise MissingExtra.of("sonar-space", "sonar", "for the codec sonar") from error
        self._language = language
        self._pipelines = (TextToEmbeddingModelPipeline, EmbeddingToTextModelPipeline)
        self._device = torch.device(device)
        self._encoder: Any = None
        self._decoder: Any = None

    def encode(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.dim)
        if self._encoder is None:
            name = "text_sonar_basic_encoder"
            self._encoder = self._pipelines[0](encoder=name, tokenizer=name, device=self._device)
        found: Tensor = self._encoder.predict(list(texts), source_lang=self._language)
        return found.float().cpu()

    def decode(self, vectors: Tensor) -> list[str]:
        check(vectors, self.dim)
        if not len(vectors):
            return []
        if self._decoder is None:
            name = "text_sonar_basic_decoder"
            self._decoder = self._pipelines[1](decoder=name, tokenizer="text_sonar_basic_encoder", device=self._device)
        return list(self._decoder.predict(vectors.to(self._device), target_lang=self._language, max_seq_len=512))


def codec_named(name: str) -> Codec:
    """The codec of that name: sonar, a bundle by its name, or the folder of one.

    Args:
        name: with "@hash" behind it as in `reference`, the weights must be those.

    Raises:
        InputError: no such codec, or another has taken its place: vectors of one codec mean nothing to another.
    """
    if name == Sonar.reference:
        return Sonar()
    name, wanted = _named(name)
    try:
        folder = weights.located(name)
    except InputError as error:
        allowed = (DEFAULT_CODEC, Sonar.reference, "the folder of a trained one")
        raise InputError.unknown("--codec", name, allowed) from error
    found = Embedded.load(folder)
    found.reference = f"{name}@{found.reference.rpartition('@')[2]}"
    if wanted and not found.reference.endswith(f"@{wanted}"):
        told = f"codec: {name} has other weights ({found.reference}) than those of the vectors (@{wanted})"
        raise InputError(f"{told}; give --codec and the folder of the one that made them")
    return found


def _named(reference: str) -> tuple[str, str]:
    """(name or folder, hash of the weights or "")."""
    found = re.fullmatch(r"(.+)@([0-9a-f]+)", reference, re.DOTALL)
    return (found[1], found[2]) if found else (reference, "")


def same(first: str, second: str) -> bool:
    """Whether two references are of one codec, wherever it lies; "" is one that nobody named."""
    return first.rpartition("@")[2] == second.rpartition("@")[2]


def reader(recorded: str, given: str | None) -> Codec:
    """The codec to read vectors by: the one that made them, as `recorded`; where nobody knows, the one `given`.

    Raises:
        InputError: neither, or the one given is another than the one recorded.
    """
    if not recorded and not given:
        raise InputError("--codec: nobody said which codec made the vectors; give it")
    if not given:
        try:
            return codec_named(recorded)
        except InputError as error:
            told = f"--codec: {recorded}, which made the vectors, is not here ({error})"
            raise InputError(f"{told}; give --codec and the folder where it is") from error
    other = f"but {recorded} made the vectors; leave it out"
    if recorded and (given == Sonar.reference) != (recorded == Sonar.reference):  # told before anything is loaded
        raise InputError(f"--codec: got {given}, {other}")
    found = codec_named(given)
    if recorded and not same(found.reference, recorded):
        raise InputError(f"--codec: got {given} ({found.reference}), {other}")
    return found


def check(vectors: Tensor, dim: int) -> None:
    """Raises InputError unless these are finite vectors of `dim` numbers."""
    if vectors.dim() != 2 or vectors.shape[1] != dim:
        raise InputError(f"vectors: got shape {tuple(vectors.shape)}; this codec takes (n, {dim})")
    bad = (~torch.isfinite(vectors)).any(dim=1).nonzero()[:, 0].tolist()
    if bad:
        raise InputError(f"vectors: {len(bad)} of {len(vectors)} hold NaN or infinity, the first in row {bad[0]}")
