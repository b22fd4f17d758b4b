"""The sentence autoencoder: what may see what, and that it can learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flops_fit.models.codec import END, SentenceCodec, written

FLOAT32 = 1e-5


def codec(**changes: int) -> SentenceCodec:
    torch.manual_seed(0)
    given = {"width": 32, "vocab_size": 40, "context": 8, "slots": 4, "dim": 64, "layers": 1, "heads": 2}
    return SentenceCodec(**given | changes)


def rows() -> Tensor:
    return torch.tensor([[5, 6, 7, END, END, END, END, END], [9, 8, 7, 6, 5, 4, 3, END], [END] * 8])


def test_written_is_up_to_the_end() -> None:
    assert written(rows()).sum(dim=1).tolist() == [4, 8, 1]
    assert written(torch.tensor([[3, 4]])).tolist() == [[True, True]]


def test_a_vector_has_unit_mean_square_and_the_promised_size() -> None:
    z = codec().encode(rows())
    assert z.shape == (3, 64)
    torch.testing.assert_close(z.square().mean(dim=1), torch.ones(3), rtol=FLOAT32, atol=0)


def test_what_comes_after_the_end_does_not_matter() -> None:
    model, cut = codec(), rows()[:1, :4]
    torch.testing.assert_close(model.encode(rows()[:1]), model.encode(cut), rtol=FLOAT32, atol=FLOAT32)
    found, whole = model(cut), model(rows()[:1])[:, :4]
    torch.testing.assert_close(found, whole, rtol=FLOAT32, atol=FLOAT32)


def test_a_place_sees_the_vector_and_what_was_written_before() -> None:
    model, z = codec(), torch.randn(1, 64)
    tokens = rows()[1:2]
    base = model.hidden(z, tokens)
    for place in range(8):
        other = tokens.clone()
        other[0, place] = 20
        changed = (model.hidden(z, other) - base).abs().sum(dim=2)[0] > 1e-6
        assert changed.tolist() == [False] * (place + 1) + [True] * (7 - place)
    moved = (model.hidden(z + 1, tokens) - base).abs().sum(dim=2)[0]
    assert bool((moved > 1e-6).all())


@torch.no_grad()
def test_order_and_every_token_reach_the_vector() -> None:
    model = codec()
    base = model.encode(rows()[1:2])
    for place in range(7):
        other = rows()[1:2].clone()
        other[0, place] = 20
        assert float((model.encode(other) - base).abs().max()) > 1e-4
    assert float((model.encode(rows()[1:2].flip(1).roll(-1, 1)) - base).abs().max()) > 1e-4


def test_decoding_is_greedy_and_ends() -> None:
    """Against the whole matrix of logits, row by row."""
    model = codec()
    z = torch.randn(6, 64)
    found = model.decode(z)
    assert found.shape == (6, 8) and bool((found[:, -1] == END).all())
    for row, vector in zip(found, z, strict=True):
        length = int(written(row[None]).sum())
        logits = model.logits(model.hidden(vector[None], row[None]))[0]
        until = length if length < 8 else 7  # the last place is kept for END
        assert logits.argmax(dim=1)[:until].tolist() == row[:until].tolist()
        assert bool((row[length:] == END).all())


def test_it_learns_to_return_what_it_was_given() -> None:
    """Random rows: nothing can be guessed, so all must go through the vector."""
    model = codec(vocab_size=20, dim=128)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def draw(n: int) -> Tensor:
        tokens = torch.randint(1, 20, (n, 8), generator=generator)
        lengths = torch.randint(2, 5, (n, 1), generator=generator)
        return torch.where(torch.arange(8) < lengths, tokens, END)

    for _ in range(700):
        tokens = draw(128)
        there = written(tokens)
        loss = F.cross_entropy(model(tokens)[there], tokens[there])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh = draw(200)
    returned = model.decode(model.encode(fresh))
    assert float((returned == fresh).all(dim=1).float().mean()) > 0.9  # of 20^2 to 20^4 rows each


def test_params_are_counted() -> None:
    model = codec()
    assert model.num_params() == sum(p.numel() for p in model.parameters())


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="multiple of its 3 heads"):
        codec(heads=3)
    with pytest.raises(ValueError, match="dim=64 and context=8 of its 5 slots"):
        codec(slots=5)
