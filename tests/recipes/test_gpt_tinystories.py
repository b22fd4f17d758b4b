"""A GPT on stories: what the recipe plans on the built-in and on given text, without training it."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import pytest
import torch

from flops_fit.data.documents import MARK
from flops_fit.data.stories import made_up_stories
from flops_fit.recipes import load
from flops_fit.recipes.gpt_tinystories import CONTEXT, VOCABULARY, next_token_loss
from flops_fit.runs.watch import Quiet
from flops_fit.study import Study, Sweep

FLOAT = 1e-6     # float32 mean of a few hundred logarithms
AT_START = 0.15  # a fresh model knows nothing: its logits are small, so its loss is near log V


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return load("gpt-tinystories")


def test_it_plans_enough_runs_for_a_law_and_repeats_no_data(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweep, "_with_cost", lambda self, plan: plan)  # without the timing, which is the machine's
    sweep = Sweep(study, executor="inline", workers=1, watch=Quiet())
    plan = sweep.plan()
    assert plan.skipped == ()
    assert plan.unit == "tokens"
    sizes = {budget: {spec.size for spec in plan.experiments if spec.budget == budget}
             for budget in study.compute_budgets}  # fmt: skip
    assert all(len(found) >= 5 for found in sizes.values())
    assert sweep.prepared.source.samples is not None
    assert max(spec.tokens for spec in plan.experiments) < sweep.prepared.source.samples * CONTEXT
    assert "made-up stories" in plan.conventions["data set"]


def test_its_samples_are_windows_and_its_loss_is_nats_a_token(study: Study) -> None:
    ids, targets = study.dataset.batch([0, 5, 9])
    assert ids.shape == targets.shape == (3, CONTEXT)
    assert torch.equal(ids[:, 1:], targets[:, :-1])
    torch.manual_seed(0)
    model = study.model_cls(d_model=64, **study.model_kwargs)
    outputs = model(ids)
    loss = next_token_loss(outputs, targets).item()
    assert loss == pytest.approx(math.log(VOCABULARY), rel=AT_START)
    likely = outputs[0].softmax(-1).gather(-1, targets[..., None])  # (B, T, 1)
    assert loss == pytest.approx(-likely.log().mean().item(), rel=FLOAT)


def test_it_takes_a_text_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mine.txt").write_text(MARK.join(islice(made_up_stories(seed=3), 300)))
    study = load("gpt-tinystories", str(tmp_path / "mine.txt"))
    assert study.describe_data.startswith("mine.txt, byte-level BPE of 512: ")
    assert study.model_kwargs["vocab_size"] == VOCABULARY
    assert study.held_out is not None and len(study.dataset) > len(study.held_out) > 0
