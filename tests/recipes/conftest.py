"""The plan of the recipe that a test file names by its fixture `study`."""

from __future__ import annotations

import pytest

from flops_fit.runs.watch import Quiet
from flops_fit.scaling.plan import SweepPlan
from flops_fit.study import Study, Sweep


@pytest.fixture
def plan(study: Study, monkeypatch: pytest.MonkeyPatch) -> SweepPlan:
    """Without the timing of steps, which is the machine's."""
    monkeypatch.setattr(Sweep, "_with_cost", lambda self, plan: plan)
    return Sweep(study, executor="inline", workers=1, watch=Quiet()).plan()
