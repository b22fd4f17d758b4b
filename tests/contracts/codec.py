"""What every codec promises: rows in order, the right shapes, finite vectors, and words for what it cannot take."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import pytest
import torch

from flops_fit.data.codecs import Codec
from flops_fit.errors import InputError

TEXTS = ["A man rides a bicycle.", "Two dogs play in the snow.", "A woman reads."]


class CodecContract(ABC):
    @abstractmethod
    def codec(self) -> Codec: ...

    def test_texts_become_vectors_and_vectors_texts(self) -> None:
        codec = self.codec()
        vectors = codec.encode(TEXTS)
        assert vectors.shape == (3, codec.dim) and vectors.dtype == torch.float32
        assert bool(torch.isfinite(vectors).all())
        texts = codec.decode(vectors)
        assert len(texts) == 3 and all(isinstance(text, str) for text in texts)

    def test_rows_do_not_see_each_other(self) -> None:
        codec = self.codec()
        together, alone = codec.encode(TEXTS), torch.cat([codec.encode([text]) for text in TEXTS])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)  # float32, other batch shapes
        assert codec.decode(together) == [codec.decode(row[None])[0] for row in together]

    def test_nothing_gives_nothing(self) -> None:
        codec = self.codec()
        assert codec.encode([]).shape == (0, codec.dim)
        assert codec.decode(torch.zeros(0, codec.dim)) == []

    def test_vectors_that_cannot_be_are_told(self) -> None:
        codec = self.codec()
        with pytest.raises(InputError, match=f"this codec takes .n, {codec.dim}."):
            codec.decode(torch.zeros(2, codec.dim + 1))
        with pytest.raises(InputError, match="1 of 2 hold NaN or infinity, the first in row 1"):
            codec.decode(torch.tensor([[0.0] * codec.dim, [math.nan] * codec.dim]))
