"""The velocity of remembered data: between the Gaussian and the rows themselves, and blind to a row's own fold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.flow.baselines import full_covariance
from flops_fit.flow.kernel import FOLDS, KernelVelocity, Memory, folded
from flops_fit.flow.loss import Flow, flow_loss
from flops_fit.flow.paths import PATHS
from flops_fit.flow.precondition import rotated

DIM, ROWS = 6, 40
CLOSE = 1e-4  # float32 through a softmax over 40 rows
WIDE, NARROW = 20.0, -20.0  # of a sigmoid: 1 and 2e-9


def data(n: int = ROWS, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, DIM, generator=generator) * torch.arange(1, DIM + 1) ** -0.5 + 1


def remembering(
    values: Tensor, heads: int = 1, path: str = "linear", others: bool = False
) -> tuple[KernelVelocity, Tensor]:
    """(the velocity, values in its axes)."""
    axes, along = rotated(full_covariance(values))
    turned = values @ axes
    rest = folded(turned)[1] if others else ()
    return KernelVelocity(heads, along.mean, along.variances, turned - along.mean, path, rest), turned


@pytest.mark.parametrize("path", sorted(PATHS))
@torch.no_grad()
def test_with_full_bandwidth_it_is_the_gaussian(path: str) -> None:
    model, _ = remembering(data(), heads=2, path=path)
    model.bandwidth.fill_(WIDE)
    gaussian = rotated(full_covariance(data()))[1]
    x, t = torch.randn(30, DIM, generator=torch.Generator().manual_seed(1)), torch.linspace(0.02, 0.98, 30)
    torch.testing.assert_close(model(x, t), gaussian.velocity(PATHS[path])(x, t), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("path", sorted(PATHS))
@torch.no_grad()
def test_without_bandwidth_it_is_the_rows(path: str) -> None:
    """E[velocity | x_t] of the rows alone, each by Bayes' rule and one at a time."""
    model, turned = remembering(data(), path=path)
    model.bandwidth.fill_(NARROW)
    model.trust.fill_(0.0)
    x, t = torch.randn(10, DIM, generator=torch.Generator().manual_seed(1)), torch.linspace(0.1, 0.9, 10)
    at = PATHS[path].at(t, x)
    for i in range(10):
        a, s = at.alpha[i].double(), at.sigma[i].double()
        noise = (x[i].double() - a * turned.double()) / s  # (ROWS, D) that would have led here
        share = torch.softmax(-noise.square().sum(dim=1) / 2, dim=0)
        wanted = (share[:, None] * (at.d_alpha[i] * turned + at.d_sigma[i] * noise)).sum(dim=0)
        torch.testing.assert_close(model(x[i : i + 1], t[i : i + 1])[0].double(), wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_row_is_told_by_the_other_folds_alone() -> None:
    values = data()
    folds, others = folded(values)
    assert sorted(folds.bincount().tolist()) == [ROWS // FOLDS] * FOLDS
    mine = folds == 2
    changed = values.clone()
    changed[mine] += 100
    again = folded(changed)[1]
    for name, one, other in zip(Memory._fields, others[2], again[2], strict=True):
        assert torch.equal(one, other), name
    assert not torch.equal(others[1].rows, again[1].rows)
    axes, along = rotated(full_covariance(values))
    model = KernelVelocity(1, along.mean, along.variances, values @ axes - along.mean, "linear", others)
    x, t, labels = values + 0.1, torch.full((ROWS,), 0.5), folds
    told = model(x, t, labels=labels)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x[order], t[order], labels=labels[order]), told[order], rtol=CLOSE, atol=CLOSE)
    assert not torch.allclose(told, model(x, t))


def test_trained_across_folds_it_does_not_learn_to_repeat() -> None:
    """On a closed line through the space it comes nearer to unseen rows than the Gaussian, and as near as it says."""
    def line(n: int, seed: int) -> Tensor:
        angle = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed)) * 6.2832
        return torch.cat(((angle * torch.arange(1, 4)).cos(), (angle * torch.arange(1, 4)).sin()), dim=1)

    train, unseen = line(200, 1), line(400, 2)
    axes, along = rotated(full_covariance(train))
    train, unseen = train @ axes, unseen @ axes
    folds, others = folded(train)
    model = KernelVelocity(1, along.mean, along.variances, train - along.mean, "linear", others)
    torch.manual_seed(0)
    gaussian = float(flow_loss(along.velocity(PATHS["linear"]), Flow(), unseen.repeat(5, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(100):
        rows = torch.randint(len(train), (64,))
        loss = flow_loss(model, Flow(), train[rows], folds[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        told = float(flow_loss(model, Flow(), train.repeat(10, 1), folds.repeat(10)))
        found = float(flow_loss(model, Flow(), unseen.repeat(5, 1)))
    assert found < 0.9 * gaussian
    assert told == pytest.approx(found, rel=0.1)  # 2000 draws of each: standard error about 2% of either


def test_it_counts_what_is_trained_and_saves_no_folds() -> None:
    model, _ = remembering(data(), heads=3, others=True)
    assert model.num_params() == 3 * (12 + 12 + 6 + 6 * 12)
    saved = model.state_dict()
    assert {"mean", "variances", "rows", "bandwidth", "scale", "trust", "mix"} == saved.keys()


def test_what_cannot_be() -> None:
    model, turned = remembering(data())
    with pytest.raises(InputError, match="no fold was remembered"):
        model(turned, torch.full((ROWS,), 0.5), labels=torch.zeros(ROWS, dtype=torch.int64))
    others, turned = remembering(data(), others=True)
    with pytest.raises(InputError, match=rf"labels: got fold {FOLDS}; allowed are 0 to {FOLDS - 1}"):
        others(turned, torch.full((ROWS,), 0.5), labels=torch.full((ROWS,), FOLDS))
    with pytest.raises(InputError, match="at least 2 rows"):
        KernelVelocity(1, torch.zeros(3), torch.ones(3), torch.zeros(1, 3))
    with pytest.raises(InputError, match="data: got 9 vectors, .* in 5 folds; give at least 10"):
        folded(torch.randn(9, 3))


def test_half_precision_does_not_reach_the_distances() -> None:
    model, turned = remembering(data(), others=True)
    labels, t = torch.arange(ROWS) % FOLDS, torch.full((ROWS,), 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(turned, t, labels=labels)
    assert torch.equal(half, model(turned, t, labels=labels))
