"""Text as data for a language model: tokenised once, kept in the user's cache folder, memory-mapped from then on.

Documents are split by a hash of their content, so that no document is on both sides. Each ends with token 0.
The home of tokenizers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flops_fit.data import documents
from flops_fit.data.windows import Windows
from flops_fit.errors import InputError, MissingExtra

HELD_OUT = 0.05            # share of the documents
TOKENISER_TEXT = 10_000_000  # characters that the tokeniser is learned from, at most
BATCH = 64                 # documents tokenised at once; more would ask for shards that are not needed
FORMAT = 1                 # of the cached files; another one is made anew
BYTES = 256
LARGEST = 2**16            # tokens are kept as uint16

Vocabulary = int | Literal["bytes"]
Ids = NDArray[np.uint16]                     # (tokens of a document,), 0 at the end
Encode = Callable[[list[str]], list[Ids]]


@dataclass(frozen=True)
class Text:
    """Tokens to train on and held-out ones."""

    training: Windows
    held_out: Windows
    vocab_size: int   # tokens that there are, 0 among them
    description: str


def windows(
    source: str | os.PathLike[str] | None, context: int, *, vocabulary: Vocabulary = 2048, tokens: int | None = None
) -> Text:
    """Windows of `context` tokens over a text.

    Args:
        source: a text file, a folder of them, "hub:OWNER/NAME" or "hub:OWNER/NAME@REVISION" on the Hugging Face Hub,
            or None for made-up stories.
        context: T, tokens in a window.
        vocabulary: size of a byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; over bytes as in Radford et al.
            2019) learned from the head of the text; "bytes": UTF-8 itself, without a tokeniser.
        tokens: stop when so many are there to train on, and fetch no more shards; None: the whole text.

    Raises:
        InputError: the text cannot be found, fetched, read or split; or it is shorter than one window.
        MissingExtra: a library is not installed.
    """
    if vocabulary != "bytes" and not BYTES < vocabulary <= LARGEST:
        raise InputError(f'vocabulary: got {vocabulary!r}; allowed are {BYTES + 1} to {LARGEST}, and "bytes"')
    if tokens is not None and tokens < 1:
        raise InputError(f"tokens: got {tokens}; allowed is a number from 1 on, or None for the whole text")
    corpus = documents.find(source)
    key = hashlib.sha256(json.dumps([FORMAT, corpus.identity, vocabulary, tokens]).encode()).hexdigest()[:16]
    folder = cache_folder() / f"text-{key}"
    text = _read(folder, context)
    if text is None:
        store(folder, lambda unfinished: _tokenise(corpus, vocabulary, tokens, unfinished))
        text = _read(folder, context)
    assert text is not None  # it was just written
    for side in (text.training, text.held_out):
        if len(side) == 0:
            raise InputError(f"data: {text.description}: less than one window of {context} tokens; give more text")
    return text


def cache_folder() -> Path:
    """Where what can be made again is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flops-fit"


# --- the cache ------------------------------------------------------------------------------------------------------


def _read(folder: Path, context: int) -> Text | None:
    """None when there is nothing, or not what was written."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        sides = [Windows(folder / f"{side}.npy", context) for side in ("training", "held_out")]
    except (OSError, ValueError):
        return None
    if [side.fingerprint.split("-")[0] for side in sides] != about["hashes"]:
        return None
    return Text(sides[0], sides[1], about["vocab_size"], about["description"])


def store(folder: Path, write: Callable[[Path], None]) -> None:
    """`folder` as `write` fills it, whole or not at all. Of two processes at once, the first to finish is kept."""
    shutil.rmtree(folder, ignore_errors=True)  # damaged, or not there
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        write(unfinished)
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():  # else another process was faster with the same
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _tokenise(corpus: documents.Corpus, vocabulary: Vocabulary, tokens: int | None, folder: Path) -> None:
    """The files of the cache: tokens of both sides, the tokeniser, and what they are."""
    described, texts = corpus.read()
    size, kind = BYTES, "bytes"
    encode: Encode = _bytes
    if vocabulary != "bytes":
        head = _head(texts, TOKENISER_TEXT if tokens is None else min(TOKENISER_TEXT, 8 * tokens))
        size, encode = _learn(head, vocabulary, folder / "tokenizer.json")
        texts, kind = chain(head, texts), f"byte-level BPE of {size:,}"
    sides = _encoded(texts, encode, tokens)
    counts = [sum(len(ids) for ids in side) for side in sides]
    if not all(counts):
        raise InputError(
            f"data: {described}: {len(sides[0])} documents to train on and {len(sides[1])} held out; "
            f"give more text, or set its documents apart by {documents.MARK} or blank lines"
        )
    hashes = []
    for name, side in zip(("training", "held_out"), sides, strict=True):
        joined = np.concatenate(side)
        np.save(folder / f"{name}.npy", joined)
        hashes.append(hashlib.sha256(joined.data).hexdigest()[:16])
    about = {
        "vocab_size": size,
        "hashes": hashes,
        "description": f"{described}, {kind}: {counts[0]:,} tokens to train on, {counts[1]:,} held out by document",
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


# --- tokens ---------------------------------------------------------------------------------------------------------


def _encoded(texts: Iterator[str], encode: Encode, tokens: int | None) -> tuple[list[Ids], list[Ids]]:
    """(to train on, held out): token ids of each document, until `tokens` are there to train on."""
    sides: tuple[list[Ids], list[Ids]] = ([], [])
    count = 0
    while batch := list(islice(texts, BATCH)):
        for document, ids in zip(batch, encode(batch), strict=True):
            held_out = is_held_out(document)
            sides[held_out].append(ids)
            count += 0 if held_out else len(ids)
            if tokens is not None and count >= tokens:
                return sides
    return sides


def is_held_out(document: str) -> bool:
    """By the hash of its content: equal documents are on one side, and no other document has a say."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") < HELD_OUT * 2**64


def _bytes(texts: list[str]) -> list[Ids]:
    return [np.frombuffer(text.encode() + b"\0", dtype=np.uint8).astype(np.uint16) for text in texts]


def _head(texts: Iterator[str], most: int) -> list[str]:
    """Documents of `most` characters, taken from the iterator."""
    head, characters = [], 0
    while characters < most and (text := next(texts, None)) is not None:
        head.append(text)
        characters += len(text)
    return head


def _learn(head: list[str], vocabulary: int, file: Path) -> tuple[int, Encode]:
    """(size, encode) of a BPE learned from the training documents of `head`; a short text may give a smaller one."""
    tokeniser = learn_bpe((text for text in head if not is_held_out(text)), vocabulary)
    tokeniser.save(str(file))

    def encode(texts: list[str]) -> list[Ids]:
        return [np.array([*found.ids, 0], dtype=np.uint16) for found in tokeniser.encode_batch(texts)]

    return tokeniser.get_vocab_size(), encode


def learn_bpe(texts: Iterable[str], vocabulary: int) -> Any:
    """A tokenizers.Tokenizer: byte-level BPE of at most that size, whose token 0 is the end of a document.

    Raises:
        MissingExtra: tokenizers is not installed.
    """
    library = tokenizers_library()
    by_byte = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokeniser = library.Tokenizer(library.models.BPE())
    tokeniser.pre_tokenizer, tokeniser.decoder = by_byte, library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[documents.MARK], initial_alphabet=sorted(by_byte.alphabet()),
        show_progress=False,
    )  # fmt: skip
    tokeniser.train_from_iterator(texts, trainer)
    return tokeniser


def tokenizers_library() -> Any:
    """The module. Raises MissingExtra where it is not installed."""
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtra.of("tokenizers", "data", 'to learn a vocabulary (or choose vocabulary="bytes")') from error
    return tokenizers
