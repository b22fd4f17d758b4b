"""The default study: what it plans, without training it."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from flops_fit.recipes import load
from flops_fit.recipes.gpt_python import CONTEXT, next_byte_loss
from flops_fit.runs.watch import Quiet
from flops_fit.scaling.plan import SweepPlan
from flops_fit.study import Study, Sweep

FLOAT = 1e-6      # float32 means of a few hundred logarithms
ONE_STEP = 0.05   # C of a run is its budget rounded to whole steps


@pytest.fixture(scope="module")
def study() -> Study:
    return load("gpt-python")


def test_it_plans_enough_runs_for_a_law(plan: SweepPlan) -> None:
    sizes: dict[float, set[int]] = {}
    for spec in plan.experiments:
        sizes.setdefault(spec.budget, set()).add(spec.size)
    assert len(sizes) >= 4
    assert all(len(found) >= 5 for found in sizes.values())
    assert len(plan.experiments) >= 20
    assert all(spec.flops == pytest.approx(spec.budget, rel=ONE_STEP) for spec in plan.experiments)
    assert {how.how for how in plan.measured} <= {"measured on cpu", "measured on meta"}
    assert plan.unit == "tokens"
    assert plan.skipped == ()


def test_two_loads_are_one_study(study: Study) -> None:
    keys = [content.prepared.identity for content in (
        Sweep(one, executor="inline", workers=1, watch=Quiet()) for one in (study, load("gpt-python")))]  # fmt: skip
    assert keys[0] == keys[1]
    assert keys[0]["held_out"] == "given"


def test_its_loss_is_nats_a_byte() -> None:
    logits = torch.randn(2, 5, 256, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(256, (2, 5), generator=torch.Generator().manual_seed(1))

    def nats(row: Tensor, target: int) -> float:
        return -(row[target].exp() / row.exp().sum()).log().item()

    by_hand = sum(nats(logits[b, t], int(targets[b, t])) for b in range(2) for t in range(5)) / 10
    assert next_byte_loss((logits, None), targets).item() == pytest.approx(by_hand, rel=FLOAT)


def test_it_can_be_sent_to_workers_and_samples_are_windows(study: Study) -> None:
    assert pickle.loads(pickle.dumps(study.dataset)).fingerprint == study.dataset.fingerprint
    ids, targets = study.dataset[3]
    assert ids.shape == targets.shape == (CONTEXT,)
    assert torch.equal(ids[1:], targets[:-1])
