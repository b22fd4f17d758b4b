"""The law of flows over pictures: what it plans, without training it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flops_fit.data.cats import CLASSES
from flops_fit.data.pictures import drawn_shapes, write_png
from flops_fit.models.tinydit import TinyDiT
from flops_fit.recipes import load
from flops_fit.recipes.dit_cats import SWEEP_NETWORK, SWEEP_SIZE, tiny_presets
from flops_fit.scaling.plan import SweepPlan
from flops_fit.study import Study

PICTURES = 208  # sixteen of each class


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder: Path = tmp_path_factory.mktemp("cats")
    for number, image in enumerate(drawn_shapes(SWEEP_SIZE, PICTURES, 0).pixels):
        kind = folder / CLASSES[number % len(CLASSES)]
        kind.mkdir(exist_ok=True)
        write_png(kind / f"{number}.png", image)
    return replace(load("dit-cats", data=str(folder)), max_epochs=1e6)  # of so few pictures


def test_it_plans_enough_runs_for_a_law_and_counts_patches(plan: SweepPlan) -> None:
    sizes: dict[float, set[int]] = {}
    for spec in plan.experiments:
        sizes.setdefault(spec.budget, set()).add(spec.size)
        assert spec.tokens == 64 * spec.batch_size * spec.steps
    assert len(sizes) >= 4 and all(len(found) >= 5 for found in sizes.values())
    assert plan.skipped == ()


def test_what_it_measures_is_what_a_width_trains(plan: SweepPlan) -> None:
    known = {name: value for name, value in tiny_presets(SWEEP_NETWORK).items() if name != "hidden"}
    for spec in plan.experiments:
        with torch.device("meta"):
            assert TinyDiT(spec.size, classes=len(CLASSES), **known).num_params() == spec.params
