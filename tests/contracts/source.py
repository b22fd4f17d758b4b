"""What every Source promises (`flops_fit.data.batches.Source`), as tests to be reused over all of them.

Subclass `SourceContract` in a test file and give it a fixture `dataset`: samples (x (1,) float, its index), where the
index is the identity of a sample.
"""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from flops_fit.data.batches import MapSource, StreamSource, prepare

COUNT = 300


def table() -> TensorDataset:
    index = torch.arange(COUNT)
    return TensorDataset(index[:, None].float().sin(), index)


class Mapped(Dataset[Any]):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([float(index)]).sin(), index


class Batched(Mapped):
    """Offers its samples already collated."""

    def batch(self, indices: list[int]) -> list[Tensor]:
        index = torch.tensor(indices)
        return [index[:, None].float().sin(), index]


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return (Mapped()[index] for index in range(COUNT))


DATASETS = {
    "tensors": table, "map": Mapped, "batched": Batched, "list": lambda: [Mapped()[index] for index in range(COUNT)],
    "stream": Streamed, "loader of map": lambda: DataLoader(Mapped(), batch_size=16, shuffle=True),
    "loader of stream": lambda: DataLoader(Streamed(), batch_size=16),
}  # fmt: skip


def indices(batches: Any, count: int | None = None) -> list[int]:
    """Identities of the samples in the first `count` batches."""
    return [index for batch in itertools.islice(batches, count) for index in batch[1].tolist()]


class SourceContract:
    """Reused over all implementations."""

    @pytest.fixture
    def source(self, dataset: Any) -> MapSource | StreamSource:
        return prepare(dataset)

    @pytest.mark.parametrize("size", [1, 7, 64])
    def test_batches_are_full_and_never_end(self, source: MapSource, size: int) -> None:
        batches = list(itertools.islice(source.batches(size, seed=0), 3 * COUNT // size))
        assert len(batches) == 3 * COUNT // size
        assert {len(member) for batch in batches for member in batch} == {size}

    def test_samples_are_whole(self, source: MapSource) -> None:
        x, index = next(source.batches(32, seed=1))
        assert torch.equal(x, index[:, None].float().sin())

    def test_no_held_out_sample_is_ever_trained_on(self, source: MapSource) -> None:
        held, trained = indices(source.held_out()), indices(source.batches(10, seed=0), 3 * COUNT // 10)
        assert held
        assert len(held) == len(set(held))
        assert set(held).isdisjoint(trained)
        assert set(held) | set(trained) == set(range(COUNT))
        assert source.samples == COUNT - len(held)

    def test_an_epoch_holds_every_sample_once(self, source: MapSource) -> None:
        assert source.samples is not None
        order = indices(source.batches(1, seed=3), 2 * source.samples)
        first, second = order[: source.samples], order[source.samples :]
        assert len(set(first)) == len(set(second)) == source.samples

    def test_the_same_seed_gives_the_same_order_whatever_the_batch(self, source: MapSource) -> None:
        orders = [indices(source.batches(size, seed=5), 3 * 280 // size) for size in (1, 4, 8, 40)]
        assert all(order == orders[0] for order in orders)

    @pytest.mark.parametrize("start", [0, 1, 37, 60])
    def test_pieces_are_the_batches_from_there_on(self, source: MapSource, start: int) -> None:
        cuts = (slice(0, 3), slice(5, 8))  # what lies between is another rank's
        batches = [batch[1].tolist() for batch in itertools.islice(source.batches(8, seed=4), start, start + 5)]
        pieces = itertools.islice(source.pieces(8, 4, cuts, start), 5)
        assert [[piece[1].tolist() for piece in parts] for parts in pieces] == [[b[:3], b[5:8]] for b in batches]

    def test_the_held_out_samples_are_the_same_every_time(self, source: MapSource, dataset: Any) -> None:
        assert indices(source.held_out()) == indices(source.held_out()) == indices(prepare(dataset).held_out())

    def test_it_survives_pickling(self, source: MapSource) -> None:
        again = pickle.loads(pickle.dumps(source))
        assert indices(again.batches(8, seed=2), 5) == indices(source.batches(8, seed=2), 5)
        assert again.fingerprint == source.fingerprint

    def test_held_out_data_can_be_given(self, dataset: Any) -> None:
        source = prepare(dataset, held_out=TensorDataset(torch.zeros(5, 1), torch.arange(1000, 1005)))
        assert source.held_out_from == "given"
        assert indices(source.held_out()) == list(range(1000, 1005))
        assert set(indices(source.batches(1, seed=0), COUNT)) == set(range(COUNT))
