"""Windows of a fixed length over one long row of tokens, held in memory or in a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Windows(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Windows of `context` tokens, side by side; sample i is (ids (T,), next ids (T,)), int64.

    Args:
        text: (tokens,) uint8 or uint16, or the .npy file that holds them: it is mapped, not read, and a pickled copy
            carries its name, so that worker processes share one copy of the pages.
        context: T.
        fingerprint: None: computed from all tokens and T.
    """

    def __init__(self, text: Tensor | Path, context: int, fingerprint: str | None = None) -> None:
        self.origin, self.context = text, context
        # "c": the mapping is private to this process; torch wants one that could be written to
        self.text = text if isinstance(text, Tensor) else torch.from_numpy(np.load(text, mmap_mode="c"))
        self._offsets = torch.arange(context + 1)
        self.fingerprint = fingerprint or f"{hashlib.sha256(self.text.numpy().data).hexdigest()[:16]}-{context}"

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.context

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        ids, targets = self.batch([index])
        return ids[0], targets[0]

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The samples at `indices`, collated: ids (B, T) and next ids (B, T)."""
        starts = torch.tensor(indices)[:, None] * self.context  # (B, 1)
        windows = self.text[starts + self._offsets].long()  # (B, T+1)
        return windows[:, :-1], windows[:, 1:]

    def __reduce__(self) -> tuple[Any, ...]:
        return Windows, (self.origin, self.context, self.fingerprint)
