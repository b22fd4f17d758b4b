"""The image study: what it plans, on what data, without training it."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
import torch

from flops_fit.recipes import load
from flops_fit.recipes.vit_cifar import EPOCHS, cross_entropy
from flops_fit.runs.watch import Quiet
from flops_fit.scaling.plan import SweepPlan
from flops_fit.scaling.rules import LrRule
from flops_fit.study import Study, Sweep

FLOAT = 1e-6      # float32 means of a few logarithms
ONE_STEP = 0.05   # C of a run is its budget rounded to whole steps


@pytest.fixture(scope="module")
def study() -> Study:
    return load("vit-cifar")


def test_it_plans_enough_runs_for_a_law(study: Study, plan: SweepPlan) -> None:
    sizes: dict[float, set[int]] = {}
    for spec in plan.experiments:
        sizes.setdefault(spec.budget, set()).add(spec.size)
    assert len(sizes) >= 4
    assert all(len(found) >= 5 for found in sizes.values())
    assert len(plan.experiments) >= 20
    assert all(spec.flops == pytest.approx(spec.budget, rel=ONE_STEP) for spec in plan.experiments)
    assert {how.how for how in plan.measured} <= {"measured on cpu", "measured on meta"}
    assert plan.unit == "samples"
    assert plan.skipped == ()


def test_there_are_images_enough_to_verify_at_four_times_the_largest_budget(study: Study, plan: SweepPlan) -> None:
    """On 50,000 images, as many as CIFAR-10 has, at twice the middle N: what is best grows at least as C^.5."""
    costs = sorted(spec.flops_per_token for spec in plan.experiments if spec.budget == max(study.compute_budgets))
    images = 4 * max(study.compute_budgets) / (2 * costs[len(costs) // 2])
    assert images < 50_000 * EPOCHS


def test_batch_and_learning_rate_do_not_depend_on_the_data_of_a_run(study: Study) -> None:
    """So that runs of one size can share their first steps."""
    sweep = Sweep(study, executor="inline", workers=1, watch=Quiet())
    rules = sweep.rules(LrRule.of(study.lr))
    measured = sweep.sizes.at(32)
    assert measured is not None
    short, long = (rules.spec(measured, budget) for budget in study.compute_budgets[::4])
    assert long.tokens > 5 * short.tokens
    assert (short.batch_size, short.lr) == (long.batch_size, long.lr)


def test_its_loss_is_nats_an_image() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 0.0, -1.0]])
    shares = [math.exp(z) for z in (1, 3, 0, -1)]
    by_hand = (math.log(4) - math.log(shares[1] / sum(shares))) / 2
    assert cross_entropy(logits, torch.tensor([2, 1])).item() == pytest.approx(by_hand, rel=FLOAT)


def test_its_images_are_mirrored_or_as_they_are(study: Study) -> None:
    image = study.held_out.batch([3])[0]
    assert torch.equal(study.held_out.batch([3])[0], image)
    image = study.dataset.batch([3])[0]
    kinds = {image.numpy().tobytes(), image.flip(3).numpy().tobytes()}
    assert {one.numpy().tobytes() for one in study.dataset.batch([3] * 40)[0]} == kinds  # 40 coins: both sides come
    assert "shapes drawn by code" in study.describe_data


def test_its_data_come_from_a_path_and_set_the_classes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'flops-fit[data]'")
    for side, count in (("train", 40), ("test", 4)):
        for i in range(count):
            home = tmp_path / side / f"kind {i % 4}"
            home.mkdir(parents=True, exist_ok=True)
            image.new("RGB", (40, 32), (6 * i, 0, 0)).save(home / f"{i}.png")
    study = load("vit-cifar", data=str(tmp_path))
    assert (len(study.dataset), len(study.held_out)) == (40, 4)
    model = study.model_cls(16, **study.model_kwargs)
    assert model(study.dataset.batch([0, 1])[0]).shape == (2, 4)


def test_it_can_be_sent_to_workers(study: Study) -> None:
    assert pickle.loads(pickle.dumps(study.held_out)).fingerprint == study.held_out.fingerprint
    assert pickle.loads(pickle.dumps(study.model_cls)) is study.model_cls
