"""Vectors in files, their statistics and what is done to them in training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flops_fit.data.vectors import FARTHEST, Augmentation, Normaliser, jitter, mixup, read_vectors
from flops_fit.errors import InputError

FLOAT32 = 1e-5  # of values near 10, after a product with orthonormal axes


def table(path: Path, values: Any, **columns: Any) -> Path:
    pq.write_table(pa.table({"embedding": values, **columns}), path)
    return path


def cloud(n: int = 300, dims: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([3.0, 1.0, 0.2, 10.0, 1e-6])[:dims]
    return torch.randn(n, dims, generator=generator) * scale + torch.arange(float(dims))


# --- files ----------------------------------------------------------------------------------------------------------


KINDS = [pa.list_(pa.float32()), pa.list_(pa.float16(), 5), pa.list_(pa.float64()), pa.list_(pa.int32())]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_of_list_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    rows = [[float(i + k) for k in range(5)] for i in range(3)]
    numpy_type = np.dtype(kind.value_type.to_pandas_dtype())
    flat = pa.array(np.array(rows, dtype=numpy_type).ravel())
    made = pa.FixedSizeListArray.from_arrays(flat, 5)
    values = made if pa.types.is_fixed_size_list(kind) else made.cast(kind)
    found = read_vectors(table(tmp_path / "v.parquet", values, text=["a", None, "c"], score=[1, 2, 3]))
    assert found.values.tolist() == rows and found.values.dtype == torch.float32
    assert found.texts == ("a", "", "c") and found.columns == {"score": (1, 2, 3)}
    assert found.described == "v.parquet: 3 vectors of 5"


def test_rows_by_the_value_of_a_column(tmp_path: Path) -> None:
    found = read_vectors(table(tmp_path / "v.parquet", [[1.0], [2.0], [3.0]], split=["train", "val", "train"]))
    assert found.where("split", "train").values.tolist() == [[1.0], [3.0]]
    assert found.texts == ("", "", "")
    with pytest.raises(InputError, match=r"split: got 'test', no row of .* has it; there are \['train', 'val'\]"):
        found.where("split", "test")


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first = read_vectors(table(tmp_path / "a.parquet", [[1.0], [2.0]]))
    second = read_vectors(table(tmp_path / "b.parquet", [[1.0], [2.0]]))
    other = read_vectors(table(tmp_path / "c.parquet", [[1.0], [2.5]]))
    assert first.fingerprint == second.fingerprint != other.fingerprint


@pytest.mark.parametrize(("values", "said"), [
    ([[1.0, 2.0], [1.0]], "holds lists of 1, 2 numbers; give one length"),
    ([[1.0, 2.0], None], "holds lists of 2, None numbers"),
    ([[1.0, math.nan], [1.0, 2.0], [math.inf, 0.0]], "2 of 3 vectors of v.parquet hold NaN or infinity, the first"),
    ([["a"], ["b"]], "holds lists of string; allowed are numbers"),
    ([1.0, 2.0], "holds double; allowed are lists of numbers"),
    (pa.array([], pa.list_(pa.float32())), "no rows"),
])  # fmt: skip
def test_vectors_that_cannot_be_used(tmp_path: Path, values: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_vectors(table(tmp_path / "v.parquet", values))


def test_the_wrong_dimension_and_the_wrong_column(tmp_path: Path) -> None:
    path = table(tmp_path / "v.parquet", [[1.0, 2.0]])
    with pytest.raises(InputError, match="vectors of v.parquet have 2 numbers; the model takes 1024"):
        read_vectors(path, dim=1024)
    pq.write_table(pa.table({"vector": [[1.0]], "text": ["a"]}), path)
    with pytest.raises(InputError, match="has the columns vector, text; one must be named embedding"):
        read_vectors(path)


# --- statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("statistics", ["standard", "robust", "common"])
def test_there_and_back(statistics: Any, rotate: bool) -> None:
    x = cloud()
    normaliser = Normaliser(5, rotate).fit(x, statistics)
    if normaliser.axes is not None:
        normaliser.axes.copy_(torch.linalg.qr(torch.randn(5, 5))[0])
    torch.testing.assert_close(normaliser.back(normaliser(x)), x, rtol=FLOAT32, atol=FLOAT32)


def test_what_is_normalised_has_mean_zero_and_variance_one() -> None:
    y = Normaliser(4).fit(cloud()[:, :4])(cloud()[:, :4])
    torch.testing.assert_close(y.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std(dim=0), torch.ones(4), rtol=1e-5, atol=0)


def test_robust_statistics_are_those_of_a_normal_and_do_not_see_outliers() -> None:
    x = torch.randn(100_000, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
    spoilt = x.clone()
    spoilt[:100] = 1e6
    for rows in (x, spoilt):
        normaliser = Normaliser(3).fit(rows, "robust")
        torch.testing.assert_close(normaliser.centre, torch.ones(3), rtol=0, atol=0.03)
        torch.testing.assert_close(normaliser.scale, torch.full((3,), 2.0), rtol=0.02, atol=0)
    assert float(Normaliser(3).fit(spoilt).scale.min()) > 1000


def test_a_common_scale_leaves_the_dimensions_their_share_of_the_variance() -> None:
    x = cloud()
    y = Normaliser(5).fit(x, "common")(x)
    torch.testing.assert_close(y.var(dim=0).mean(), torch.tensor(1.0))
    torch.testing.assert_close(y.var(dim=0) / y.var(dim=0)[0], x.var(dim=0) / x.var(dim=0)[0], rtol=1e-4, atol=0)


def test_a_dimension_that_hardly_moves_is_not_blown_up() -> None:
    x = cloud()
    y = Normaliser(5).fit(x)(x)
    assert float(y[:, 4].std()) < 0.01  # of a deviation of 1e-6, where others have 1
    assert float(Normaliser(5).fit(x)(x + 100).abs().max()) == FARTHEST


def test_statistics_are_saved_and_their_lack_is_told() -> None:
    fresh = Normaliser(5)
    with pytest.raises(InputError, match="it has no statistics"):
        fresh(cloud())
    fresh.load_state_dict(Normaliser(5).fit(cloud()).state_dict())
    assert bool(torch.isfinite(fresh(cloud())).all())
    with pytest.raises(InputError, match="vectors of 4 numbers; the statistics are of 5"):
        fresh(cloud()[:, :4])


def test_statistics_that_cannot_be() -> None:
    with pytest.raises(InputError, match="did you mean robust"):
        Normaliser(5).fit(cloud(), "robus")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 2"):
        Normaliser(5).fit(cloud()[:1])
    with pytest.raises(InputError, match="do not vary"):
        Normaliser(5).fit(torch.ones(10, 5))
    with pytest.raises(InputError, match=r"got shape \(50, 1\); .* 2 vectors of 5 numbers"):
        Normaliser(5).fit(torch.randn(50, 1))
    with pytest.raises(InputError, match="NaN or infinity"):
        Normaliser(5).fit(torch.cat((cloud(), torch.full((1, 5), math.nan))))


@pytest.mark.parametrize("statistics", ["standard", "robust", "common"])
def test_vectors_of_other_precision_are_taken(statistics: Any) -> None:
    exact, plain = (Normaliser(5, rotate=True).fit(values, statistics) for values in (cloud().double(), cloud()))
    torch.testing.assert_close(exact(cloud().double()), plain(cloud()))
    torch.testing.assert_close(exact.back(exact(cloud().double()).double()), cloud())


# --- augmentation ---------------------------------------------------------------------------------------------------


def test_each_changes_what_it_says() -> None:
    torch.manual_seed(0)
    x = torch.ones(2000, 50)
    assert torch.equal(mixup(x, 0.5), x)  # a mixture of equals
    assert float(jitter(x, 0.3).std()) == pytest.approx(0.3, rel=0.02)
    assert float(Augmentation("dropout:0.2")(x).mean()) == pytest.approx(0.8, rel=0.01)


@settings(deadline=None)
@given(st.floats(0.05, 5.0))
def test_a_mixture_lies_between_two_rows(amount: float) -> None:
    torch.manual_seed(0)
    x = torch.arange(10.0)[:, None].expand(10, 3)
    mixed = mixup(x, amount)
    assert bool((mixed >= 0).all() & (mixed <= 9).all())
    assert torch.equal(mixed[:, :1].expand(10, 3), mixed)  # one share a row
    assert float(mixed.mean()) == pytest.approx(4.5, abs=4.5)


def test_a_chain_is_worked_off_in_order() -> None:
    chain = Augmentation("mixup:0.2, noise:0.1")
    assert chain.steps == (("mixup", 0.2), ("noise", 0.1))
    torch.manual_seed(0)
    expected = jitter(mixup(cloud(), 0.2), 0.1)
    torch.manual_seed(0)
    assert torch.equal(chain(cloud()), expected)
    assert torch.equal(Augmentation("none")(cloud()), cloud())


@pytest.mark.parametrize(("text", "said"), [
    ("mixpu:0.2", "augmentation: got 'mixpu'; allowed are mixup, noise, dropout; did you mean mixup"),
    ("noise", "got 'noise'; allowed is NAME:AMOUNT"), ("noise:-1", "got 'noise:-1'"), ("dropout:1.5", "dropout:1.5"),
    ("mixup:inf", "got 'mixup:inf'; .* up to 100"),
])  # fmt: skip
def test_an_unknown_one_is_an_error(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Augmentation(text)
