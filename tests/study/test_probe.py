"""Short runs before a sweep, on losses with a known best learning rate and batch: openly synthetic landscapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from flops_fit.errors import FitError
from flops_fit.records import RunResult, RunSpec
from flops_fit.runs.journal import Journal
from flops_fit.runs.watch import Quiet
from flops_fit.scaling.plan import plan_sweep
from flops_fit.scaling.rules import LR_FACTORS, LR_START, BatchRule, LrRule
from flops_fit.study import Sweep
from flops_fit.study.probe import (
    BATCH_RATIOS,
    CHECK_EXTENSIONS,
    CHECK_FACTORS,
    CHECK_SHARE,
    MOVED,
    NOTE,
    TELLING,
    Probed,
    Prober,
)
from flops_fit.train.synthetic import SyntheticTrainer
from study.toy import BUDGETS, LAW, Listener, study

EXACT = 1e-6  # float64: the loss is a parabola in log lr, so the vertex of three of its points is exact
WHOLE_STEPS = 0.03    # of FLOPs: budgets are rounded to whole steps
ROUNDED_BATCH = 0.01  # of a learning rate: the batches that the landscape sees are whole numbers of some hundred
FIND: dict[str, Any] = {"resume": True, "extend": 0, "verify": None, "bootstrap": 40}
STATED = LrRule(LR_START)
MOVING = LrRule(0.7, n_exponent=-1.1)

Task = Callable[[RunSpec, Any], RunResult]


def landscape(best: LrRule, largest_batch: float = math.inf) -> Task:
    """Loss = law x (1 + .1 log(lr / best)^2), 5% more where the batch exceeds `largest_batch` x the stated rule."""
    exact = SyntheticTrainer(LAW)

    def train(spec: RunSpec, progress: Any) -> RunResult:
        done = exact(spec, progress)
        assert done.loss is not None
        too_large = spec.batch_size > largest_batch * BatchRule()(spec.tokens, 1)
        away = math.log(spec.lr / best(spec.params, spec.tokens))
        return replace(done, loss=done.loss * (1 + 0.1 * away**2 + 0.05 * too_large))

    return train


@cache
def toy(**changes: Any) -> Sweep:
    return Sweep(study(**{"trainer": None} | changes), executor="inline", workers=1, watch=Quiet())


def prober(task: Task, tried: list[RunSpec], **changes: Any) -> Prober:
    """Of the toy study, its runs carried out by `task` and noted in `tried`."""
    sweep = toy(**changes)

    def run(specs: Sequence[RunSpec]) -> list[RunResult]:
        tried.extend(specs)
        return [task(spec, None) for spec in specs]

    return Prober(budgets=BUDGETS, sizes=sweep.sizes, rules=sweep.rules, run=run, say=lambda text: None)


def probed(task: Task, asked: Sequence[str] = ("lr",), lr: LrRule = STATED) -> tuple[Probed, list[RunSpec]]:
    """(What was found, the runs that were made for it.)"""
    tried: list[RunSpec] = []
    return prober(task, tried).find(Probed(lr=lr, batch=BatchRule()), asked), tried


def at_larger(tried: list[RunSpec]) -> list[RunSpec]:
    return [spec for spec in tried if spec.size > tried[0].size]


def moved_by(factor: float) -> LrRule:
    """A rule with another exponent of N whose optimum at the size of the check is `factor` times the stated one's."""
    _, tried = probed(landscape(STATED))
    return STATED.bent(tried[0].params, at_larger(tried)[0].params, factor)


def assert_equal_rules(found: LrRule, wanted: LrRule) -> None:
    assert math.log(found.coefficient) == pytest.approx(math.log(wanted.coefficient), abs=EXACT)
    assert found.n_exponent == pytest.approx(wanted.n_exponent, abs=EXACT)
    assert found.d_exponent == wanted.d_exponent


# --- the learning rate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", [0.02, 0.5, 1.4, 5.0, 60.0])
def test_the_best_coefficient_is_found_however_far_it_lies_from_the_start(best: float) -> None:
    found, tried = probed(landscape(LrRule(best * LR_START)))
    beyond = max(0, round(abs(math.log2(best))) - 1)
    assert len(tried) == len(LR_FACTORS) + beyond + len(CHECK_FACTORS)
    assert {spec.role for spec in tried} == {"probe"}
    assert_equal_rules(found.lr, LrRule(best * LR_START))


@pytest.mark.parametrize("factor", [1.0, 1.4, 1 / 1.4])
def test_an_optimum_that_stays_is_not_warned_of(factor: float) -> None:
    assert max(factor, 1 / factor) < MOVED
    found, _ = probed(landscape(moved_by(factor)))
    assert found.warnings == ()
    assert found.lr.n_exponent == STATED.n_exponent
    assert f"is x {factor:.2f} of what that says" in found.note


@pytest.mark.parametrize("factor", [1.05 * MOVED, 3.0, 1 / (1.05 * MOVED), 0.3])
def test_an_optimum_that_moved_is_warned_of_and_the_rule_goes_through_both(factor: float) -> None:
    best = moved_by(factor)
    found, tried = probed(landscape(best))
    assert_equal_rules(found.lr, best)
    [warning], larger = found.warnings, at_larger(tried)[0]
    assert f"at size {larger.size} (N = {larger.params:,}) it is {best(larger.params, larger.tokens):.3g}" in warning
    assert f"corrected from {STATED.n_exponent:.3g} to {best.n_exponent:.3g}" in warning
    assert "exponent of N corrected" in found.note


@pytest.mark.parametrize("factor", [3.0, 0.3])
def test_two_sizes_that_lie_near_each_other_tell_no_exponent(factor: float) -> None:
    """The rule then lies halfway, in log lr, between the two optima, with the stated exponents."""
    sizes: dict[str, Any] = {"sizes": (7, 8, 9)}
    tried: list[RunSpec] = []
    prober(landscape(STATED), tried, **sizes).find(Probed(lr=STATED, batch=BatchRule()), ["lr"])
    small, larger = tried[0], at_larger(tried)[0]
    assert small.params < larger.params < TELLING * small.params
    best = STATED.bent(small.params, larger.params, factor)
    found = prober(landscape(best), [], **sizes).find(Probed(lr=STATED, batch=BatchRule()), ["lr"])
    assert_equal_rules(found.lr, LrRule(STATED.coefficient * math.sqrt(factor)))
    [warning] = found.warnings
    assert "halfway" in warning
    assert f"(N = {larger.params:,})" in warning


def test_the_check_is_one_larger_size_within_its_share_of_the_sweep() -> None:
    tried: list[RunSpec] = []
    one = prober(landscape(moved_by(0.1)), tried)
    found = one.find(Probed(lr=STATED, batch=BatchRule()), ["lr"])
    runs, (sweep, _) = at_larger(tried), plan_sweep(BUDGETS, one.sizes, one.rules(STATED))
    assert len(runs) == len(CHECK_FACTORS) + CHECK_EXTENSIONS  # the best lies beyond those tried first
    share = sum(spec.flops for spec in runs) / sum(spec.cost for spec in sweep)
    assert share <= CHECK_SHARE * (1 + WHOLE_STEPS)
    assert f"checked with {share:.1%} of the sweep's FLOPs" in found.note
    assert min(spec.params for spec in sweep) < runs[0].params < max(spec.params for spec in sweep)
    assert len({(spec.size, spec.tokens, spec.batch_size) for spec in runs}) == 1


def test_a_single_size_cannot_be_checked_at_a_larger_one_and_says_so() -> None:
    tried: list[RunSpec] = []
    found = prober(landscape(STATED), tried, sizes=(8,)).find(Probed(lr=STATED, batch=BatchRule()), ["lr"])
    assert at_larger(tried) == []
    assert "not checked" in found.note


def test_when_every_rate_fails_it_is_said() -> None:
    def fails(spec: RunSpec, progress: Any) -> RunResult:
        return RunResult(spec=spec, status="failed", loss=None, reason="no")

    with pytest.raises(FitError, match='lr="auto": no learning rate'):
        probed(fails)


# --- the batch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [0.6, 1.1, 2.1, 9.0])
@pytest.mark.parametrize("asked", [["lr", "batch"], ["batch"]])
def test_the_batch_is_the_largest_that_costs_little_and_the_rate_follows_by_its_root(
    largest: float, asked: list[str]
) -> None:
    def by_root(spec: RunSpec, progress: Any) -> RunResult:
        root = math.sqrt(spec.batch_size / BatchRule()(spec.tokens, 1)) if "lr" in asked else 1.0
        return landscape(LrRule(LR_START * root), largest)(spec, progress)

    ratio = max(r for r in BATCH_RATIOS if r <= largest)
    found, tried = probed(by_root, asked)
    assert found.batch == BatchRule(ratio * BatchRule().coefficient)
    assert f"batch measured at size {tried[0].size}: x {ratio:g} of the rule" in found.note
    if "lr" in asked:
        assert found.lr.coefficient == pytest.approx(LR_START * math.sqrt(ratio), rel=ROUNDED_BATCH)
        assert found.warnings == ()
    else:
        assert found.lr == STATED
        assert len(tried) == len(BATCH_RATIOS)


def test_batches_are_compared_on_one_d_and_those_too_large_for_it_are_left_out() -> None:
    """Seen to fail: a batch too large for the short D was tried on four times as much data, and won by it."""
    rule = BatchRule(8 * BatchRule().coefficient)  # so few steps that x 4 leaves fewer than a run needs
    tried: list[RunSpec] = []
    found = prober(landscape(STATED), tried).find(Probed(lr=STATED, batch=rule), ["batch"])
    assert 1 < len(tried) < len(BATCH_RATIOS)
    assert {spec.budget for spec in tried} == {tried[0].budget}
    assert found.batch.coefficient < max(BATCH_RATIOS) * rule.coefficient


def test_a_batch_that_a_loader_fixes_is_not_measured() -> None:
    tried: list[RunSpec] = []
    fixed = Probed(lr=STATED, batch=BatchRule(samples=64))
    assert prober(landscape(STATED), tried).find(fixed, ["batch"]) == fixed
    assert tried == []


# --- in a sweep ----------------------------------------------------------------------------------------------------


def sweep_with(task: Task, **changes: Any) -> tuple[Sweep, Listener]:
    listener = Listener()
    sweep = Sweep(study(**{"trainer": None, "lr": "auto"} | changes), executor="inline", workers=1, watch=listener)
    sweep.trainer = task
    return sweep, listener


def until(stop: Callable[[RunSpec], bool], folder: Path, **changes: Any) -> Listener:
    """What a sweep did before the first run for which `stop` holds."""
    task = landscape(MOVING)

    def interrupted(spec: RunSpec, progress: Any) -> RunResult:
        if stop(spec):
            raise KeyboardInterrupt
        return task(spec, progress)

    sweep, listener = sweep_with(interrupted, **changes)
    with pytest.raises(KeyboardInterrupt):
        sweep.find(folder, **FIND)
    return listener


def is_sweep(spec: RunSpec) -> bool:
    return spec.role == "sweep"


def probes(listener: Listener) -> list[RunSpec]:
    return [spec for spec in listener.specs if spec.role == "probe"]


def test_the_sweep_follows_what_was_found_and_its_result_warns(tmp_path: Path) -> None:
    sweep, listener = sweep_with(landscape(MOVING))
    result = sweep.find(tmp_path, **FIND)
    assert any(warning.startswith('lr="auto": the best learning rate moved') for warning in result.warnings)
    assert result.warnings[-1] in listener.lines
    assert {run.spec.role for run in result.experiments} == {"sweep"}
    for run in result.experiments:
        wanted = MOVING(run.spec.params, run.spec.tokens)
        assert math.log(run.spec.lr) == pytest.approx(math.log(wanted), abs=EXACT)


def test_what_was_found_is_remembered_also_for_other_budgets(tmp_path: Path) -> None:
    assert probes(until(is_sweep, tmp_path))
    before = Journal.read(tmp_path).notes
    assert until(is_sweep, tmp_path).finished == []
    assert until(is_sweep, tmp_path, compute_budgets=(2e8, *BUDGETS[1:])).finished == []
    assert Journal.read(tmp_path).notes == before


@pytest.mark.parametrize("stop_at", [3, len(LR_FACTORS) + 2])
def test_an_interrupted_probe_goes_on_where_it_stopped(stop_at: int, tmp_path: Path) -> None:
    seen: list[RunSpec] = []

    def here(spec: RunSpec) -> bool:
        seen.append(spec)
        return len(seen) == stop_at

    whole = until(is_sweep, tmp_path / "unbroken")
    begun = until(here, tmp_path / "broken")
    rest = until(is_sweep, tmp_path / "broken")
    assert len(begun.finished) == stop_at - 1
    assert [spec.key for spec in begun.specs + rest.specs] == [spec.key for spec in whole.specs]
    assert Journal.read(tmp_path / "broken").notes == Journal.read(tmp_path / "unbroken").notes


def test_a_journal_with_a_rule_that_was_never_checked_keeps_it(tmp_path: Path) -> None:
    sweep, _ = sweep_with(landscape(MOVING))
    with Journal.open(tmp_path, sweep.prepared.identity) as journal:
        journal.note(NOTE, LrRule(0.123).to_dict())
    ran: list[RunSpec] = []
    until(lambda spec: bool(ran.append(spec)) or len(ran) == 3, tmp_path)
    assert {spec.role for spec in ran} == {"sweep"}
    assert [spec.lr for spec in ran] == [LrRule(0.123)(spec.params, spec.tokens) for spec in ran]


def test_measuring_the_batch_too_is_another_question_than_the_rate_alone(tmp_path: Path) -> None:
    first = until(is_sweep, tmp_path)
    second = until(is_sweep, tmp_path, batch_size="measure")
    assert first.keys.isdisjoint(second.keys)  # the runs of the search are in the journal
    assert len(second.finished) >= len(BATCH_RATIOS) - 1  # one batch is the rule's
    assert Journal.read(tmp_path).notes[NOTE]["asked"] == ["lr", "batch"]
