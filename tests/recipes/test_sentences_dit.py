"""The law of velocity networks: what it plans, without training it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flops_fit.data.vectors import write_vectors
from flops_fit.models import create_model
from flops_fit.recipes import load
from flops_fit.recipes.sentences_dit import PIECES
from flops_fit.scaling.plan import SweepPlan
from flops_fit.study import Study

DIM, ROWS = 32, 2000  # pieces of two numbers instead of 64: at these widths hardly cheaper


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    path: Path = tmp_path_factory.mktemp("data") / "vectors.parquet"
    write_vectors(path, torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0)), [""] * ROWS)
    return replace(load("sentences-dit", data=str(path)), max_epochs=1e6)  # of so few vectors


def test_it_plans_enough_runs_for_a_law_and_counts_pieces(plan: SweepPlan) -> None:
    sizes: dict[float, set[int]] = {}
    for spec in plan.experiments:
        sizes.setdefault(spec.budget, set()).add(spec.size)
        assert spec.tokens == PIECES * spec.batch_size * spec.steps
    assert len(sizes) >= 4 and all(len(found) >= 5 for found in sizes.values())
    assert plan.skipped == ()


def test_what_it_measures_is_what_a_width_trains(plan: SweepPlan) -> None:
    """`train sentences --hidden WIDTH --no-gaussian`."""
    for spec in plan.experiments:
        network = create_model("dit-chunked", "small", hidden=spec.size, dim=DIM)
        assert sum(parameter.numel() for parameter in network.parameters()) == spec.params
