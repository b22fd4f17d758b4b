"""A sentence autoencoder: tokens -> one vector -> tokens. What a generated vector says can be read."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

END = 0  # the token that ends a sentence, and fills what is left of its row


class Past:
    """Keys and values (B, heads, T, K) that a block has read so far, so that nothing is read twice."""

    def __init__(self) -> None:
        self.read: Tensor | None = None  # (2, B, heads, T, K)

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        new = torch.stack((k, v))
        self.read = new if self.read is None else torch.cat((self.read, new), dim=3)
        return self.read[0], self.read[1]

    def keep(self, rows: Tensor) -> None:
        self.read = None if self.read is None else self.read[:, rows]


class Block(nn.Module):
    """Attention and a 4x GELU network, pre-norm. `forward(x (B, T, H), mask) -> (B, T, H)`"""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)
        for out in (
            self.attention_out,
            self.mlp_out,
        ):  # the stream keeps its size through all blocks (Radford et al. 2019)
            nn.init.normal_(out.weight, std=1 / math.sqrt(out.in_features * 2 * depth))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, causal: bool = False, past: Past | None = None
    ) -> Tensor:  # fmt: skip
        """mask (B, 1, 1, T): True where a token may be looked at; or `causal`: at itself and what came before.

        With `past` at what it holds too; x is added to it.
        """
        batch, tokens, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, T, K) each
        if past is not None:
            k, v = past.extended(k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + cast(Tensor, self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)))))


class SentenceCodec(nn.Module):
    """`encode(tokens (B, T)) -> (B, D)` of length sqrt(D); `decode(z (B, D)) -> tokens (B, T)`.

    The sentence is cut into as many pieces as there are slots, each of the same number of tokens. A slot begins with
    its piece and reads the whole sentence; what the slots hold, side by side, is the vector. The decoder reads the
    slots first and then writes, token by token, with the slot of a token's own piece beside it. That way from a piece
    to its slot and back is what lets it learn to copy soon.

    Args:
        width: H, of both sides; the size parameter.
        vocab_size: tokens, END among them.
        context: T, tokens of a sentence at most, its END among them; a multiple of the slots.
        slots: pieces that sentence and vector are cut into.
        dim: D.
        layers: blocks of each side.
        heads: of the attention.
    """

    def __init__(
        self, width: int = 240, vocab_size: int = 4096, context: int = 32, slots: int = 32, dim: int = 1024,
        layers: int = 3, heads: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads or dim % slots or context % slots:
            told = f"width={width} must be a multiple of its {heads} heads"
            raise ValueError(f"{told}, dim={dim} and context={context} of its {slots} slots")
        self.context, self.slots, self.dim = context, slots, dim
        self.tokens = nn.Embedding(vocab_size, width)  # in, and turned round for the way out
        self.places = nn.Parameter(0.02 * torch.randn(2, context, width))  # of the encoder's and the decoder's tokens
        self.queries = nn.Parameter(torch.randn(slots, width) / math.sqrt(width))
        self.encoder = nn.ModuleList(Block(width, heads, layers) for _ in range(layers))
        self.from_piece = nn.Linear(context // slots * width, width, bias=False)
        self.to_piece = nn.Linear(dim // slots, context // slots * width, bias=False)
        self.to_vector = nn.Linear(width, dim // slots)
        self.from_vector = nn.Linear(dim // slots, width)
        self.slot_places = nn.Parameter(0.02 * torch.randn(slots, width))
        self.decoder = nn.ModuleList(Block(width, heads, layers) for _ in range(layers))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        nn.init.normal_(self.tokens.weight, std=1 / math.sqrt(width))

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, D), the root mean square of each row 1."""
        batch, length = tokens.shape
        all_ = F.pad(tokens, (0, self.context - length), value=END)
        words = self.tokens(all_) * math.sqrt(self.tokens.embedding_dim)  # (B, context, H)
        pieces = words.reshape(batch, self.slots, -1)  # (B, S, context / S * H)
        slots = self.queries + self.from_piece(pieces)  # (B, S, H)
        x = torch.cat((slots, words[:, :length] + self.places[0, :length]), dim=1)  # (B, S + T, H)
        there = torch.cat((tokens.new_ones(batch, self.slots, dtype=torch.bool), written(tokens)), dim=1)
        for block in self.encoder:
            x = block(x, there[:, None, None])
        z = self.to_vector(self.encoder_norm(x[:, : self.slots])).reshape(batch, self.dim)  # (B, D)
        return F.rms_norm(z, (self.dim,))

    def hidden(self, z: Tensor, tokens: Tensor) -> Tensor:
        """(B, D), (B, T) -> (B, T, H): what place k holds to tell token k, of the vector and of the tokens before k."""
        slots, own = self._told(z)
        before = F.pad(tokens[:, :-1], (1, 0), value=END)  # (B, T): END opens the sentence too
        x = self._known(before, own[:, : tokens.shape[1]])
        x = torch.cat((slots, x), dim=1)  # (B, S + T, H)
        for block in self.decoder:
            x = block(x, causal=True)
        return cast(Tensor, self.decoder_norm(x[:, self.slots :]))

    def _told(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) -> slots (B, S, H), and what each token's own piece tells it (B, context, H)."""
        parts = z.view(len(z), self.slots, self.dim // self.slots)
        own = self.to_piece(parts).view(len(z), self.context, -1) + self.places[1]
        return self.from_vector(parts) + self.slot_places, own

    def _known(self, before: Tensor, own: Tensor) -> Tensor:
        """(B, T) tokens before each place and (B, T, H) -> (B, T, H) with which the decoder begins."""
        return cast(Tensor, self.tokens(before) * math.sqrt(self.tokens.embedding_dim) + own)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., V)."""
        return F.linear(hidden, self.tokens.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, V): each token told from the whole sentence's vector and from the tokens before it."""
        return self.logits(self.hidden(self.encode(tokens), tokens))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(B, D) -> (B, T): the likeliest token at each place, END from the first END on."""
        tokens = torch.full((len(z), self.context), END, dtype=torch.int64, device=z.device)
        open_ = torch.arange(len(z), device=z.device)  # rows that have not ended
        x, own = self._told(z)
        pasts = [Past() for _ in self.decoder]
        for block, past in zip(self.decoder, pasts, strict=True):
            x = block(x, causal=True, past=past)
        for place in range(self.context - 1):
            before = tokens[open_, place - 1 : place] if place else tokens[open_, :1]  # END opens the sentence too
            x = self._known(before, own[open_, place : place + 1])  # (rows, 1, H)
            for block, past in zip(self.decoder, pasts, strict=True):
                x = block(x, past=past)
            tokens[open_, place] = self.logits(self.decoder_norm(x[:, 0])).argmax(dim=1)
            on = tokens[open_, place] != END
            open_ = open_[on]
            if not len(open_):
                break
            if not bool(on.all()):
                for past in pasts:
                    past.keep(on)
        return tokens


def written(tokens: Tensor) -> Tensor:
    """(B, T): True up to the first END of each row, that one included."""
    ended = (tokens == END).cumsum(dim=1)  # (B, T)
    return ended - (tokens == END).to(ended.dtype) == 0
