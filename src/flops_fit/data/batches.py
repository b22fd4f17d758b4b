"""From a data set of any of three kinds to batches: endless and full for training, fixed for the held-out loss.

    map-style (`__len__`, `__getitem__`)   shuffled from the seed; held out by hash of the index, or given
    iterable  (`__iter__`)                 never shuffled; held out by hash of the position, or given
    DataLoader                             its data set, its collate function and its batch size

A map-style data set may offer `batch(indices) -> batch`, its samples already collated; it is used when there.

`prepare` turns what the user has into a Source; a Source is picklable when the data set is.
"""

from __future__ import annotations

import hashlib
import itertools
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from flops_fit.errors import ContractError

EVALUATION_BATCH = 64  # samples a batch of the held-out loss; one grouping for all runs, so equal sums
WHOLE = (slice(None),)

Collate = Callable[[list[Any]], Any]


class Source(Protocol):
    """Where batches come from. Contract, tested over every implementation:

    `batches` never ends, every batch is full, and the same seed gives the same samples in the same order,
    whatever the batch size; no sample of `held_out` is ever among them. `pieces` are the same batches from number
    `start` on, each cut into collated parts; what lies in no part is not even fetched where access is random.
    """

    @property
    def samples(self) -> int | None: ...  # training samples in one pass; None when the stream does not tell
    @property
    def batch_size(self) -> int | None: ...  # fixed by a DataLoader, else None
    @property
    def fingerprint(self) -> str: ...  # hash of the data's content
    @property
    def held_out_from(self) -> str: ...  # "given" or how it was split off

    def batches(self, batch_size: int, seed: int) -> Iterator[Any]: ...
    def pieces(self, batch_size: int, seed: int, cuts: Sequence[slice], start: int = 0) -> Iterator[list[Any]]: ...
    def held_out(self, at_once: int = EVALUATION_BATCH) -> Iterator[Any]: ...


def prepare(
    dataset: Any, held_out: Any = None, *, held_out_fraction: float = 0.05, held_out_samples: int = 2048
) -> MapSource | StreamSource:
    """A Source over `dataset`. At most `held_out_samples` are evaluated, spread evenly.

    Raises:
        ContractError: `dataset` is none of the three kinds, is empty, or can be read only once.
    """
    collate, batch_size = default_collate, None
    if isinstance(dataset, DataLoader):
        if not isinstance(dataset.sampler, (SequentialSampler, RandomSampler)) and hasattr(dataset.dataset, "__len__"):
            raise ContractError(
                f"dataset: a DataLoader with {type(dataset.sampler).__name__} orders samples by its own rule, which a "
                "sweep cannot repeat; pass the data set itself, or a DataLoader without a custom sampler"
            )
        if dataset.batch_size is None:
            raise ContractError("dataset: a DataLoader with a batch_sampler or batch_size=None; give it a batch_size")
        collate, batch_size, dataset = dataset.collate_fn, dataset.batch_size, dataset.dataset
    if isinstance(held_out, DataLoader):
        held_out = held_out.dataset
    mapped = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if mapped and not isinstance(dataset, IterableDataset):  # torch gives those a __getitem__ that only raises
        return _map_source(dataset, held_out, held_out_fraction, held_out_samples, collate, batch_size)
    if hasattr(dataset, "__iter__"):
        return _stream_source(dataset, held_out, held_out_fraction, held_out_samples, collate, batch_size)
    raise ContractError(
        f"dataset: got {type(dataset).__name__}; allowed are a map-style data set (__len__ and __getitem__), "
        "an iterable one (__iter__), or a torch DataLoader"
    )


# --- map-style ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MapSource:
    """Random access: a seeded permutation per epoch, cut into full batches."""

    dataset: Any
    train_indices: Tensor  # (samples,) int64
    held_out_dataset: Any
    held_out_indices: Tensor  # (held-out samples,) int64
    collate: Collate
    batch_size: int | None
    fingerprint: str
    held_out_from: str

    @property
    def samples(self) -> int:
        return len(self.train_indices)

    def batches(self, batch_size: int, seed: int) -> Iterator[Any]:
        return (whole for (whole,) in self.pieces(batch_size, seed, WHOLE))

    def pieces(self, batch_size: int, seed: int, cuts: Sequence[slice], start: int = 0) -> Iterator[list[Any]]:
        order = self._order(seed, start * batch_size)
        while True:
            batch = list(itertools.islice(order, batch_size))
            yield [_fetch(self.dataset, batch[cut], self.collate) for cut in cuts]

    def _order(self, seed: int, start: int) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed)
        passes, start = divmod(start, self.samples)
        for _ in range(passes):
            torch.randperm(self.samples, generator=generator)
        while True:
            shuffled = self.train_indices[torch.randperm(self.samples, generator=generator)]
            yield from shuffled[start:].tolist()
            start = 0

    def held_out(self, at_once: int = EVALUATION_BATCH) -> Iterator[Any]:
        for chunk in self.held_out_indices.split(at_once):
            yield _fetch(self.held_out_dataset, chunk.tolist(), self.collate)


def _map_source(
    dataset: Any, held_out: Any, fraction: float, most: int, collate: Collate, batch_size: int | None
) -> MapSource:
    everything = torch.arange(_length(dataset, "dataset"))
    if held_out is not None:
        if not (hasattr(held_out, "__getitem__") and hasattr(held_out, "__len__")):
            held_out = list(itertools.islice(iter(held_out), most))
        train, held_dataset, held, origin = everything, held_out, torch.arange(_length(held_out, "held_out")), "given"
    else:
        train, held = split_by_hash(len(everything), fraction)
        held_dataset = dataset
        origin = f"{fraction:.0%} of the samples by hash of the index"
    if len(held) == 0 or len(train) == 0:
        raise ContractError(
            f"dataset: {len(everything)} samples leave {len(train)} to train on and {len(held)} held out; "
            "give more samples or pass held_out="
        )
    held = held[torch.linspace(0, len(held) - 1, min(most, len(held))).long()]
    data_hash = content_fingerprint(dataset) + content_fingerprint(held_dataset)
    return MapSource(dataset, train, held_dataset, held, collate, batch_size, data_hash, origin)


def _length(dataset: Any, name: str) -> int:
    length = len(dataset)
    if length == 0:
        raise ContractError(f"{name}: it is empty (len() is 0); give at least one batch of samples")
    return length


def _fetch(dataset: Any, indices: list[int], collate: Collate) -> Any:
    if collate is default_collate and isinstance(dataset, TensorDataset):
        return [tensor[indices] for tensor in dataset.tensors]  # what default_collate gives, without the loop
    if collate is default_collate and hasattr(dataset, "batch"):
        return dataset.batch(indices)
    if hasattr(dataset, "__getitems__"):
        return collate(dataset.__getitems__(indices))
    return collate([dataset[i] for i in indices])


# --- iterable -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StreamSource:
    """Sequential access: the stream in its own order, again from its beginning when it ends."""

    dataset: Iterable[Any]
    held_out_samples: tuple[Any, ...]
    held_out_positions: frozenset[int]  # left out of the training stream
    collate: Collate
    batch_size: int | None
    fingerprint: str
    held_out_from: str
    samples: int | None

    def batches(self, batch_size: int, seed: int) -> Iterator[Any]:
        return (whole for (whole,) in self.pieces(batch_size, seed, WHOLE))

    def pieces(self, batch_size: int, seed: int, cuts: Sequence[slice], start: int = 0) -> Iterator[list[Any]]:
        """`seed` is not used: an iterable data set is never shuffled. What comes before `start` is read and dropped."""
        endless = itertools.chain.from_iterable(self._once() for _ in itertools.count())
        samples = itertools.islice(endless, start * batch_size, None)
        while True:
            batch = list(itertools.islice(samples, batch_size))
            yield [self.collate(batch[cut]) for cut in cuts]

    def _once(self) -> Iterator[Any]:
        for position, sample in enumerate(self.dataset):
            if position not in self.held_out_positions:
                yield sample

    def held_out(self, at_once: int = EVALUATION_BATCH) -> Iterator[Any]:
        for start in range(0, len(self.held_out_samples), at_once):
            yield self.collate(list(self.held_out_samples[start : start + at_once]))


def _stream_source(
    dataset: Iterable[Any], held_out: Any, fraction: float, most: int, collate: Collate, batch_size: int | None
) -> StreamSource:
    if iter(dataset) is dataset:
        raise ContractError(
            f"dataset: {type(dataset).__name__} can be read only once, and every run reads it from the start; "
            "pass an object whose __iter__ starts anew (a class, not a generator)"
        )
    horizon = int(most / fraction)  # positions among which the held-out samples are sought
    head = list(itertools.islice(iter(dataset), horizon))
    if not head:
        raise ContractError("dataset: it is empty (its iterator gave nothing); give at least one batch of samples")
    if held_out is not None:
        samples, positions, origin = tuple(itertools.islice(iter(held_out), most)), frozenset[int](), "given"
    else:
        outside = np.flatnonzero(_held_out_by_hash(np.arange(len(head), dtype=np.uint64), fraction)).tolist()
        samples, positions = tuple(head[i] for i in outside[:most]), frozenset(outside[:most])
        origin = f"{fraction:.0%} of the samples by hash of the position"
    if not samples:
        raise ContractError(f"held_out: no sample came out of {len(head)}; give more samples or pass held_out=")
    ended = len(head) < horizon
    fingerprint = hashlib.sha256(b"".join(_bytes_of(s) for s in (*head[:64], *samples))).hexdigest()[:16]
    return StreamSource(
        dataset, samples, positions, collate, batch_size, fingerprint, origin,
        samples=len(head) - len(positions) if ended else None,
    )  # fmt: skip


# --- hashing --------------------------------------------------------------------------------------------------------


def split_by_hash(count: int, fraction: float = 0.05) -> tuple[Tensor, Tensor]:
    """(positions to train on, held-out ones) of `count` samples, the same on every machine."""
    outside = torch.from_numpy(_held_out_by_hash(np.arange(count, dtype=np.uint64), fraction))
    everything = torch.arange(count)
    return everything[~outside], everything[outside]


def _held_out_by_hash(positions: np.ndarray, fraction: float) -> np.ndarray:
    """True where a sample is held out. SplitMix64 of the position: no order, no seed, the same on every machine."""
    z = positions + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) < np.uint64(int(fraction * 2**64))


def content_fingerprint(dataset: Sequence[Any], probes: int = 64) -> str:
    """Hash of a map-style data set: its own `fingerprint` when it offers one, else its length and `probes` samples."""
    own = getattr(dataset, "fingerprint", None)
    if own is not None:
        return str(own() if callable(own) else own)
    if isinstance(dataset, TensorDataset):
        return hashlib.sha256(_bytes_of(dataset.tensors)).hexdigest()[:16]
    digest = hashlib.sha256(str(len(dataset)).encode())
    with seeded(0):  # augmentations inside __getitem__ must not change the hash
        for index in sorted({round(i) for i in np.linspace(0, len(dataset) - 1, probes)}):
            digest.update(_bytes_of(dataset[index]))
    return digest.hexdigest()[:16]


def _bytes_of(sample: Any) -> bytes:
    if isinstance(sample, Tensor):
        return _bytes_of(sample.detach().cpu().numpy())
    if isinstance(sample, np.ndarray):
        return f"{sample.dtype}{sample.shape}".encode() + np.ascontiguousarray(sample).tobytes()
    if isinstance(sample, dict):
        return b"".join(_bytes_of(key) + _bytes_of(value) for key, value in sample.items())
    if isinstance(sample, (tuple, list)):
        return b"".join(_bytes_of(member) for member in sample)
    return pickle.dumps(sample, protocol=4)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's global generators set to `seed` inside, as they were outside."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
