"""Sentence vectors to train on and held-out ones, from what a user has: vectors, text, or nothing at all.

    FILE.parquet    its vectors; split by its column `split` (train, and any other), or by hash
    another FILE    text, one sentence a line, encoded by a codec
    nothing         sentences of made-up stories, encoded by a codec
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor

from flops_fit.data.codecs import DEFAULT_CODEC, Codec, Embedded, Sonar, codec_named
from flops_fit.data.sentences import made_up_sentences, read_sentences
from flops_fit.data.text import cache_folder, is_held_out, store
from flops_fit.data.vectors import Vectors, read_vectors
from flops_fit.errors import InputError

HELD_OUT_SHARE = 0.05  # of vectors, by hash, where no column says which
HELD_OUT = 1000  # of texts that are encoded for it, at most
MADE_UP_ORIGIN = "made-up sentences"
MADE_UP = 40_000  # sentences; a twentieth of them is held out
WORDS = 20  # of a sentence at most: what the codec was trained on
KEPT_FROM = 2000  # texts, whose vectors are kept: to encode so many takes longer than to read them
PART = 2048  # texts between two signs of life
FEWEST = 2  # rows of either part: one has no deviation, and no interval


def sentence_vectors(data: str | None, codec: str | None = None, most: int | None = None) -> tuple[Vectors, Vectors]:
    """(to train on, held out).

    Args:
        data: a parquet file, a text file, or None for made-up sentences.
        codec: text: what encodes it, None the default one. Vectors: what made them, None where nobody knows.
        most: vectors to train on at most; the first ones.

    Raises:
        InputError: a file that cannot be used, or an unknown codec.
    """
    if holds_vectors(data):
        train, held_out = _read(data, codec)
        return train.at(torch.arange(len(train))[:most]), held_out
    known, unseen = _sentences(data, most)
    coder, origin = codec_named(codec or DEFAULT_CODEC), _origin(data)
    return encoded(coder, known, origin), encoded(coder, unseen, origin)


def held_out_vectors(data: str | None, codec: str | None = None) -> Vectors:
    """Those of `sentence_vectors` that are held out, without the cost of encoding what is not asked for."""
    if holds_vectors(data):
        return _read(data, codec)[1]
    return encoded(codec_named(codec or DEFAULT_CODEC), _sentences(data, None)[1], _origin(data))


def holds_vectors(data: str | None) -> TypeGuard[str]:
    """Whether it is read as vectors, not as text."""
    return data is not None and Path(data).suffix == ".parquet"


def _origin(data: str | None) -> str:
    return MADE_UP_ORIGIN if data is None else Path(data).name


def _read(data: str, codec: str | None) -> tuple[Vectors, Vectors]:
    """(to train on, held out) of a file of vectors."""
    train, held_out = _split(read_vectors(data))
    if min(len(train), len(held_out)) < FEWEST:
        told = f"data: {len(train)} vectors to train on and {len(held_out)} held out are in {Path(data).name}"
        raise InputError(f"{told}; give at least {FEWEST} of each")
    if codec is None:
        return train, held_out
    made_by = codec
    if codec != Sonar.reference:
        named = codec_named(codec)
        made_by = named.reference
        if named.dim != train.values.shape[1]:
            told = f"--codec: {codec} makes vectors of {named.dim} numbers"
            raise InputError(f"{told}; those of {Path(data).name} have {train.values.shape[1]}: name another, or none")
    return replace(train, codec=made_by), replace(held_out, codec=made_by)


def _sentences(data: str | None, most: int | None) -> tuple[list[str], list[str]]:
    """(to train on, held out): different ones, told apart by their hash."""
    sentences = made_up_sentences(MADE_UP) if data is None else list(dict.fromkeys(read_sentences(data, WORDS)))
    known = [sentence for sentence in sentences if not is_held_out(sentence)][:most]
    unseen = [sentence for sentence in sentences if is_held_out(sentence)][:HELD_OUT]
    if min(len(known), len(unseen)) < FEWEST:
        told = f"data: {len(known)} sentences to train on and {len(unseen)} held out are left"
        raise InputError(f"{told}; give more: one in twenty is held out, and at least {FEWEST} are needed of each")
    return known, unseen


def encoded(codec: Codec, texts: Sequence[str], origin: str) -> Vectors:
    """The vectors of texts. Those of many are kept in the user's cache folder, in half precision."""
    if isinstance(codec, Embedded) and (cut := codec.cut(texts)):
        origin = f"{origin} ({cut:,} sentences cut off, longer than the codec takes)"
    values = codec.encode(texts) if len(texts) < KEPT_FROM else _kept(codec, texts)
    return Vectors(values, tuple(texts), {}, origin, codec.reference, of_texts=True)


def _kept(codec: Codec, texts: Sequence[str]) -> Tensor:
    key = hashlib.sha256("\n".join((codec.reference, *texts)).encode()).hexdigest()[:16]
    folder = cache_folder() / f"vectors-{key}"
    with suppress(OSError, ValueError, EOFError):  # not there, or damaged
        values = np.load(folder / "vectors.npy")
        if values.shape == (len(texts), codec.dim):
            return torch.from_numpy(values).float()
    found = torch.cat([codec.encode(part) for part in _parts(texts)]).half()  # a codec hears far more noise than that
    with suppress(OSError):  # a full disk costs time only
        store(folder, lambda unfinished: np.save(unfinished / "vectors.npy", found.numpy()))
    return found.float()


def _parts(texts: Sequence[str]) -> Iterable[Sequence[str]]:
    """In order; a terminal shows how far it is."""
    from rich.console import Console
    from rich.progress import track

    parts = [texts[start : start + PART] for start in range(0, len(texts), PART)]
    told = {"console": Console(stderr=True), "transient": True, "disable": not sys.stderr.isatty()}
    return track(parts, f"encoding {len(texts):,} sentences", **cast(Any, told))


def _split(vectors: Vectors) -> tuple[Vectors, Vectors]:
    """By the column `split` where there is one: train, and val or whatever else comes first."""
    splits = vectors.columns.get("split", ())
    names = dict.fromkeys(name for name in splits if name is not None)
    if names and None in splits:
        told = f"split: {splits.count(None):,} of {len(splits):,} rows of {vectors.origin} have none"
        raise InputError(f"{told}; fill the column, or leave it out to split by hash")
    if names and "train" not in names:
        told = f"split: got {', '.join(map(str, names))}"
        raise InputError(f"{told}; one part must be named train, or leave the column out to split by hash")
    if len(names) > 1:
        return vectors.where("split", "train"), vectors.where("split", held_out_name(names))
    held_out = torch.tensor([_low(row.numpy().tobytes()) for row in vectors.values])  # equal vectors stay together
    return vectors.at((~held_out).nonzero()[:, 0]), vectors.at(held_out.nonzero()[:, 0])


def _low(content: bytes) -> bool:
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big") < HELD_OUT_SHARE * 2**32


def held_out_name(names: Sequence[str] | dict[str, None]) -> str:
    """Of the parts of a file, the one to judge by."""
    usual = [name for name in ("val", "valid", "validation", "test") if name in names]
    return [*usual, *(name for name in names if name != "train")][0]
