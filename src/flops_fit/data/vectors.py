"""Vectors with their texts, as of sentence embeddings: read from parquet, normalised, augmented.

A file has a column `embedding` (lists of numbers, all of one length) and, where there are texts, `text`; a column
`split` tells what is for training (`train`) and what is held out (`val`, or whatever is asked for).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from flops_fit.data import parquet
from flops_fit.errors import InputError

Statistics = Literal["standard", "robust", "common"]
IQR = 0.7413  # interquartile range to standard deviation of a normal
SMALLEST = 1e-3  # of the median scale: a dimension that hardly moves is not blown up further
FARTHEST = 10.0  # scales from the centre, where values are clamped: an outlier pulls no more than that


@dataclass(frozen=True)
class Vectors:
    """(n, D) float32 with a text each, "" where there are none, and further columns by name."""

    values: Tensor
    texts: tuple[str, ...]
    columns: dict[str, tuple[Any, ...]]
    origin: str  # a file, or whatever they come from
    codec: str = ""  # that made them, as `codec_named` takes it; "" where nobody said
    of_texts: bool = False  # the codec made them here, from these texts

    def __len__(self) -> int:
        return len(self.values)

    @property
    def described(self) -> str:
        return f"{self.origin}: {len(self):,} vectors of {self.values.shape[1]}"

    @property
    def fingerprint(self) -> str:
        """Of texts and codec, where it made them here: on another machine the last digits of vectors are others. The
        codec counts by its weights, wherever it lies."""
        made = (self.codec.rpartition("@")[2], *self.texts)
        content = "\n".join(made).encode() if self.of_texts else self.values.numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def at(self, rows: Tensor) -> Vectors:
        """Those rows, by number."""
        numbers = rows.tolist()
        columns = {name: tuple(values[i] for i in numbers) for name, values in self.columns.items()}
        texts = tuple(self.texts[i] for i in numbers)
        return replace(self, values=self.values[rows], texts=texts, columns=columns)

    def where(self, column: str, value: object) -> Vectors:
        """The rows with that value. Raises InputError where there are none."""
        found = [i for i, one in enumerate(self.columns.get(column, ())) if one == value]
        if not found:
            there = sorted({str(one) for one in self.columns.get(column, ())})
            raise InputError(f"{column}: got {value!r}, no row of {self.origin} has it; there are {there or 'none'}")
        return self.at(torch.tensor(found))


def read_vectors(path: str | Path, dim: int | None = None) -> Vectors:
    """All rows of a parquet file.

    Args:
        dim: numbers that every vector must have; None: as many as the first one.

    Raises:
        InputError: no such file or column, vectors of other or several lengths, numbers that are not finite.
    """
    path = Path(path)
    names = parquet.columns(path)
    if "embedding" not in names:
        there = ", ".join(names)
        raise InputError(f"data: {path.name} has the columns {there}; one must be named embedding (lists of numbers)")
    values = torch.from_numpy(parquet.matrix(path, "embedding"))  # (n, D)
    if dim is not None and values.shape[1] != dim:
        raise InputError(f"data: vectors of {path.name} have {values.shape[1]} numbers; the model takes {dim}")
    bad = (~torch.isfinite(values)).any(dim=1).nonzero()[:, 0].tolist()
    if bad:
        raise InputError(
            f"data: {len(bad)} of {len(values)} vectors of {path.name} hold NaN or infinity, "
            f"the first in row {bad[0]}; leave those rows out"
        )
    columns = {name: tuple(parquet.column(path, name)) for name in names if name not in ("embedding", "text")}
    texts = tuple(text or "" for text in parquet.column(path, "text")) if "text" in names else ("",) * len(values)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise InputError(f"data: column text of {path.name} holds {wrong[0]!r}; allowed is text")
    return Vectors(values, texts, columns, path.name)


def write_vectors(path: str | Path, values: Tensor, texts: Sequence[str]) -> None:
    """A parquet file that `read_vectors` reads again, values as float32.

    Raises:
        InputError: a name of another kind of file, or one that cannot be written.
    """
    check_out(path)
    if not bool(torch.isfinite(values).all()):
        raise InputError("--out: there is NaN or infinity in the vectors; nothing is written")
    parquet.write(Path(path), {"embedding": list(values.float().numpy()), "text": list(texts)})


def check_out(path: str | Path) -> None:
    """Before the vectors are made. Raises InputError for a name of another kind, or a folder that is not there."""
    if Path(path).suffix != ".parquet" or not Path(path).absolute().parent.is_dir():
        raise InputError(f"--out: got {path}; allowed is FILE.parquet in a folder that exists")


class Normaliser(nn.Module):
    """x -> (x - centre) / scale @ axes, and back. Saved with the model that was trained on what it gives.

    Args:
        dim: D. A fresh one knows no statistics: `fit` it, or load it.
        rotate: whether `axes` are the principal ones of the training data; noise and loss do not see the turn.
    """

    def __init__(self, dim: int, rotate: bool = False) -> None:
        super().__init__()
        self.register_buffer("centre", torch.full((dim,), float("nan")))
        self.register_buffer("scale", torch.full((dim,), float("nan")))
        self.register_buffer("axes", torch.eye(dim) if rotate else None)
        self.centre: Tensor
        self.scale: Tensor
        self.axes: Tensor | None

    def fit(self, values: Tensor, statistics: Statistics = "standard") -> Normaliser:
        """Centre and scale of (n, D), of each dimension for itself but for the last scale.

        Args:
            statistics: standard: mean and standard deviation; robust: median and interquartile range; common: mean, and
                one scale for all dimensions, so that those which say little stay small.

        Raises:
            InputError: unknown statistics, fewer than two rows, or rows that are all the same.
        """
        if statistics not in get_args(Statistics):
            raise InputError.unknown("statistics", statistics, get_args(Statistics))
        if values.dim() != 2 or values.shape[1] != len(self.centre) or len(values) < 2:
            told = f"data: got shape {tuple(values.shape)}"
            raise InputError(f"{told}; allowed are at least 2 vectors of {len(self.centre)} numbers")
        if not bool(torch.isfinite(values).all()):
            raise InputError("data: got NaN or infinity; leave those rows out")
        if statistics in ("standard", "common"):
            centre, scale = values.mean(dim=0), values.std(dim=0)
        else:
            low, centre, high = values.quantile(torch.tensor([0.25, 0.5, 0.75]).to(values), dim=0)
            scale = IQR * (high - low)
        typical = scale.median()
        if not typical > 0:
            raise InputError("data: half of the dimensions do not vary; give vectors that differ")
        if statistics == "common":
            scale = scale.square().mean().sqrt().expand_as(scale)
        self.centre.copy_(centre)
        self.scale.copy_(scale.clamp(min=SMALLEST * float(typical)))
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(n, D) raw -> (n, D) normalised, clamped to `FARTHEST` scales."""
        self._check(x)
        y = ((x.to(self.scale) - self.centre) / self.scale).clamp(-FARTHEST, FARTHEST)
        return y if self.axes is None else y @ self.axes

    def back(self, y: Tensor) -> Tensor:
        """(n, D) normalised -> (n, D) raw."""
        self._check(y)
        return (y if self.axes is None else y.to(self.axes) @ self.axes.T) * self.scale + self.centre

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != len(self.centre):
            told = f"data: got vectors of {x.shape[-1]} numbers; the statistics are of {len(self.centre)}"
            raise InputError(f"{told}: give vectors of the kind that the model was trained on")
        if not bool(torch.isfinite(self.scale).all()):
            raise InputError("normaliser: it has no statistics; fit it on training data, or load it with its model")


# --- augmentation ---------------------------------------------------------------------------------------------------


def mixup(x: Tensor, amount: float) -> Tensor:
    """Each row mixed with another by a share of Beta(amount, amount) (Zhang et al. 2018, arXiv 1710.09412)."""
    share = torch.distributions.Beta(amount, amount).sample((len(x), 1)).to(x)  # (B, 1)
    return share * x + (1 - share) * x[torch.randperm(len(x), device=x.device)]


def jitter(x: Tensor, amount: float) -> Tensor:
    """Gaussian noise of that standard deviation."""
    return x + amount * torch.randn_like(x)


def dropped(x: Tensor, amount: float) -> Tensor:
    """Each number set to 0, the mean, with that probability."""
    return x * (torch.rand_like(x) >= amount)


AUGMENTATIONS = {"mixup": mixup, "noise": jitter, "dropout": dropped}
MOST = {"mixup": 100.0, "noise": 100.0, "dropout": 1.0}


@dataclass(frozen=True)
class Augmentation:
    """A chain such as "mixup:0.2,noise:0.1", worked off from left to right; "" or "none" does nothing."""

    text: str = ""

    def __post_init__(self) -> None:
        _ = self.steps

    @property
    def steps(self) -> tuple[tuple[str, float], ...]:
        """(name, amount) of each. Raises InputError for what cannot be read."""
        if self.text in ("", "none"):
            return ()
        return tuple(_step(part) for part in self.text.split(","))

    def __call__(self, x: Tensor) -> Tensor:
        for name, amount in self.steps:
            x = AUGMENTATIONS[name](x, amount)
        return x


def _step(part: str) -> tuple[str, float]:
    name, _, amount = part.strip().partition(":")
    if name not in AUGMENTATIONS:
        raise InputError.unknown("augmentation", name, AUGMENTATIONS)
    try:
        value = float(amount)
    except ValueError:
        value = float("nan")
    if not 0 < value <= MOST[name]:
        told = f"augmentation: got {part.strip()!r}"
        raise InputError(f"{told}; allowed is NAME:AMOUNT, as {name}:0.1, above 0 and up to {MOST[name]:g}")
    return name, value
