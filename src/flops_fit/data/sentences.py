"""Sentences as rows of tokens, and back: what a sentence codec reads and writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flops_fit.data.stories import made_up_stories
from flops_fit.data.text import learn_bpe, tokenizers_library
from flops_fit.errors import InputError
from flops_fit.models.codec import END

BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"])")


class Vocabulary:
    """A byte-level BPE: any text has tokens, and tokens are text again."""

    def __init__(self, tokeniser: Any) -> None:
        self._tokeniser = tokeniser

    @classmethod
    def learned(cls, sentences: Sequence[str], size: int) -> Vocabulary:
        """Of at most `size` tokens, END among them. Learned with a space before the first word too."""
        return cls(learn_bpe((" " + sentence for sentence in sentences), size))

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        try:
            return cls(tokenizers_library().Tokenizer.from_str(text))
        except ImportError:
            raise
        except Exception as error:  # the library raises Exception itself
            raise InputError(f"vocabulary: not a tokeniser ({error}); give what to_json wrote") from error

    def to_json(self) -> str:
        return str(self._tokeniser.to_str())

    def __len__(self) -> int:
        return int(self._tokeniser.get_vocab_size())

    def encode(self, sentences: Sequence[str], context: int) -> Tensor:
        """(n, context) int64: tokens, then END to the end of the row; what does not fit is cut off."""
        rows = torch.full((len(sentences), context), END, dtype=torch.int64)
        for row, one in zip(rows, self._encoded(sentences), strict=True):
            ids = one.ids[: context - 1]
            row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return rows

    def longer(self, sentences: Sequence[str], most: int) -> int:
        """How many have more tokens than that."""
        return sum(len(one.ids) > most for one in self._encoded(sentences))

    def _encoded(self, sentences: Sequence[str]) -> list[Any]:
        return list(self._tokeniser.encode_batch([" " + sentence.strip() for sentence in sentences]))

    def decode(self, rows: Tensor) -> list[str]:
        """The text of each row up to its first END."""
        ids = [row[: row.index(END)] if END in row else row for row in rows.tolist()]
        return [text.strip() for text in self._tokeniser.decode_batch(ids)]


def read_sentences(path: str | Path, most_words: int | None = None) -> list[str]:
    """The lines of a text file that hold something, in their order.

    Args:
        most_words: longer ones are left out; None: none.

    Raises:
        InputError: no such file, not UTF-8, or nothing is left.
    """
    path = Path(path)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        told = f"data: {path} cannot be read as text ({error})"
        raise InputError(f"{told}; give a file with one sentence a line") from error
    kept = [line for line in lines if line and (most_words is None or len(line.split()) <= most_words)]
    if not kept:
        size = f"of {most_words} words or fewer" if most_words else "at all"
        raise InputError(f"data: {path.name} holds no sentence {size}; give others")
    return kept


def made_up_sentences(n: int, most_words: int = 20) -> list[str]:
    """The first n different sentences of made-up stories."""
    found: dict[str, None] = {}
    if n == 0:
        return []
    for story in made_up_stories():
        for sentence in BETWEEN_SENTENCES.split(story):
            if len(sentence.split()) <= most_words:
                found[sentence] = None
                if len(found) == n:
                    return list(found)
    raise AssertionError("stories have no end")
