"""From budgets to runs: what must hold for every model, budget and rule."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flops_fit.errors import InputError
from flops_fit.records import Measurement, RunSpec
from flops_fit.scaling.plan import (
    FEWEST_STEPS,
    MOST_WARMUP,
    PlanRules,
    SweepPlan,
    check_budgets,
    makespan,
    plan_sweep,
    with_estimate,
)
from flops_fit.scaling.rules import BatchRule, LrRule
from flops_fit.scaling.sizes import Sizes, sizes_for

ROUNDING = 1e-9  # float64


def params_of(size: int) -> int:
    """A transformer of one block: 12 d^2 + 256 d."""
    return 12 * size * size + 256 * size


def measure(size: int) -> Measurement:
    return Measurement(size=size, params=params_of(size), flops_per_token=6.0 * params_of(size) + 12.0 * 64 * size,
                       how="measured on meta")  # fmt: skip


def sizes(multiple: int = 16) -> Sizes:
    return Sizes(measure, params_of, multiple)


def rules(**changes: Any) -> PlanRules:
    given = {"study": "s", "tokens_per_sample": 64, "samples": None, "lr": LrRule(0.4), "batch": BatchRule()}
    return PlanRules(**given | changes)


budgets = st.floats(1e11, 1e20)


@settings(deadline=None)
@given(budgets, st.sampled_from([1, 8, 16, 64]), st.integers(3, 9), st.floats(1.5, 8.0), st.floats(5.0, 100.0))
def test_sizes_are_multiples_in_order_and_as_many_as_asked(
    budget: float, multiple: int, count: int, span: float, ratio: float
) -> None:
    one, rule = sizes(multiple), rules(sizes_per_budget=count, span=span, tokens_per_param=ratio)
    found = sizes_for(budget, one, rule)
    assert found == sorted(set(found))
    assert len(found) == count
    assert all(size > 0 and size % multiple == 0 for size in found)


@settings(deadline=None)
@given(st.floats(1e14, 1e20), st.floats(2.0, 8.0))
def test_sizes_spread_about_the_centre_by_the_span(budget: float, span: float) -> None:
    """Where multiples are fine, D/N at the middle is `tokens_per_param` and the ends are `span` away in N."""
    one, rule = sizes(1), rules(span=span)
    found = sizes_for(budget, one, rule)
    middle = measure(found[2])
    fine = 3 / found[0]  # one multiple is this share of a size, twice that of N; three for the centre's own rounding
    assert budget / middle.flops_per_token / middle.params == pytest.approx(20.0, rel=4 * fine)
    assert params_of(found[-1]) / middle.params == pytest.approx(span, rel=4 * fine)
    assert middle.params / params_of(found[0]) == pytest.approx(span, rel=4 * fine)


@settings(deadline=None)
@given(budgets, st.integers(1, 400), st.integers(1, 2048))
def test_tokens_are_whole_steps_nearest_to_the_budget(budget: float, k: int, per_sample: int) -> None:
    measured = measure(16 * k)
    spec = rules(tokens_per_sample=per_sample).spec(measured, budget)
    step = spec.batch_size * per_sample
    wanted = budget / measured.flops_per_token
    assert spec.tokens == spec.steps * step
    assert spec.steps >= 1
    assert spec.steps == 1 or abs(spec.tokens - wanted) <= step / 2 * (1 + ROUNDING)
    assert spec.flops == measured.flops_per_token * spec.tokens
    assert spec.lr == LrRule(0.4)(measured.params, spec.tokens)


@pytest.mark.parametrize(("changes", "size", "budget", "told"), [
    ({"samples": 10}, 16, 1e12, "the data (10 samples) is shorter than one batch ("),
    ({}, 1600, 1e13, "is less than N/10 = 3,112,"),
    ({"samples": 10_000}, 64, 3e12, "epochs of the data, more than 4"),
    ({"samples": 10_000, "max_epochs": 2.0}, 64, 1e12, "epochs of the data, more than 2"),
    ({"batch": BatchRule(samples=1000)}, 64, 5e11, f"steps, fewer than {FEWEST_STEPS}"),
    ({}, 64, 1e12, ""),
])  # fmt: skip
def test_pairs_that_would_tell_nothing(changes: dict[str, Any], size: int, budget: float, told: str) -> None:
    rule = rules(**changes)
    reason = rule.infeasible(rule.spec(measure(size), budget))
    assert told in reason
    assert bool(told) == bool(reason)


@settings(deadline=None)
@given(st.lists(budgets, min_size=3, max_size=5, unique=True), st.integers(100, 10**7))
def test_every_pair_is_run_or_skipped_with_a_reason(all_budgets: list[float], samples: int) -> None:
    one, rule = sizes(), rules(samples=samples)
    feasible = any(not rule.infeasible(rule.spec(measure(s), b)) for b in all_budgets for s in sizes_for(b, one, rule))
    if not feasible:
        with pytest.raises(InputError, match="no feasible run is left"):
            plan_sweep(all_budgets, one, rule)
        return
    specs, skipped = plan_sweep(all_budgets, one, rule)
    pairs = [(spec.budget, spec.size) for spec in specs] + [(skip.budget, skip.size) for skip in skipped]
    assert sorted(pairs) == sorted((b, s) for b in all_budgets for s in sizes_for(b, one, rule))
    assert all(rule.infeasible(spec) == "" for spec in specs)
    assert all(skip.reason for skip in skipped)


def test_a_size_that_cannot_be_built_is_replaced_by_a_neighbour_and_named() -> None:
    def count(size: int) -> int:
        if size % 48 == 0:
            raise ValueError(f"d_model={size} has no heads\nand more")
        return params_of(size)

    one = Sizes(measure, count, 16)
    specs, skipped = plan_sweep([1e12, 1e13], one, rules())
    assert all(spec.size % 48 for spec in specs)
    assert len(specs) == 10
    broken = [skip for skip in skipped if skip.budget is None]
    assert broken
    assert all(skip.reason == f"cannot be built: ValueError: d_model={skip.size} has no heads" for skip in broken)


@settings(deadline=None)
@given(st.floats(1e3, 1e12), st.sampled_from([1, 16, 64]))
def test_near_is_the_nearest_multiple(params: float, multiple: int) -> None:
    found = sizes(multiple).near(params)
    assert found is not None

    def away(size: int) -> float:
        return abs(math.log(params_of(size) / params))

    around = [size for size in (found - multiple, found + multiple) if size > 0]
    assert all(away(found) <= away(size) * (1 + ROUNDING) for size in around)


def test_where_nothing_can_be_built_the_plan_says_so() -> None:
    def never(size: int) -> int:
        raise ValueError("no")

    with pytest.raises(InputError, match="no feasible run is left .*cannot be built: ValueError: no"):
        plan_sweep([1e12], Sizes(measure, never, 16), rules())
    with pytest.raises(InputError, match="size_multiple: got 0"):
        sizes(0)


def test_next_beyond_goes_as_far_again_and_never_stays() -> None:
    one = sizes()
    have = [64, 128, 256]
    high, low = one.next_beyond(have, "high"), one.next_beyond(have, "low")
    assert high == one.near(params_of(256) ** 2 / params_of(128))
    assert low == one.near(params_of(64) ** 2 / params_of(128))
    assert one.next_beyond([16, 32], "low") is None  # 16 is the smallest multiple
    assert one.next_beyond([16, 32], "high") not in (16, 32, None)
    assert one.next_beyond([64], "high") == 80  # one size tells no distance


@pytest.mark.parametrize(("change", "told"), [
    ({"sizes_per_budget": 1}, "sizes_per_budget: got 1; allowed is a number at least 2"),
    ({"tokens_per_param": 0.0}, "tokens_per_param: got 0.0"), ({"tokens_per_param": -1.0}, "tokens_per_param: got -1"),
    ({"span": 1.0}, "span: got 1.0; allowed is a number above 1"), ({"span": math.nan}, "span: got nan"),
    ({"max_epochs": math.nan}, "max_epochs: got nan"), ({"max_epochs": -1.0}, "max_epochs: got -1.0"),
    ({"tokens_per_sample": -2}, "tokens_per_sample: got -2"), ({"sizes": ()}, "sizes: got none"),
    ({"sizes": (16, 0)}, "sizes: got 0; give whole numbers from 1 on"), ({"sizes": (16, 2.5)}, "sizes: got 2.5"),
], ids=str)  # fmt: skip
def test_rules_that_cannot_be_used(change: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        rules(**change)
    assert str(caught.value).startswith(told)


def test_a_size_given_twice_is_run_once() -> None:
    specs, _ = plan_sweep([1e12], sizes(), rules(sizes=(64, 32, 64)))
    assert [spec.size for spec in specs] == [32, 64]


@pytest.mark.parametrize(("given_budgets", "told"), [
    ([], "got none"), ([1e9, 1e9, 1e9, 2e9], "got only 2 (1e+09, 2e+09); a law needs at least 3"),
    ([1e9, -1e9, 2e9], "got -1000000000.0; every budget must be positive"), ([1e9, 0, 2e9], "got 0.0"),
    ([1e9, math.nan, 2e9], "got nan"), ([1e9, math.inf, 2e9], "got inf"), (["x", 1e9, 2e9], "not a list of numbers"),
    ([None], "not a list of numbers"), (1e9, "not a list of numbers"),
], ids=repr)  # fmt: skip
def test_budgets_that_cannot_be_used(given_budgets: Any, told: str) -> None:
    with pytest.raises(InputError, match="^compute_budgets: got ") as caught:
        check_budgets(given_budgets)
    assert told in str(caught.value)
    assert "give FLOPs such as compute_budgets=" in str(caught.value)


@settings(deadline=None)
@given(st.lists(budgets, min_size=3, unique=True))
def test_budgets_come_out_ascending(given_budgets: list[float]) -> None:
    assert check_budgets(iter(given_budgets + given_budgets)) == tuple(sorted(given_budgets))


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 3))
def test_makespan_is_within_graham_of_the_best_schedule(jobs: list[int], workers: int) -> None:
    """Longest first is at most 4/3 - 1/(3m) of the optimum (Graham 1969), which all assignments give."""
    best = min(
        max(sum(job for job, at in zip(jobs, assigned, strict=True) if at == worker) for worker in range(workers))
        for assigned in itertools.product(range(workers), repeat=len(jobs))
    )
    found = makespan(jobs, workers)
    assert best <= found <= (4 / 3 - 1 / (3 * workers)) * best + ROUNDING
    assert makespan(jobs, 1) == sum(jobs)


def test_an_estimate_is_the_start_and_the_makespan_and_goes_into_json() -> None:
    specs, skipped = plan_sweep([1e12, 3e12], sizes(), rules(samples=10**6))
    plan = SweepPlan(experiments=specs, skipped=skipped, measured=())
    assert plan.seconds is None
    assert json.loads(json.dumps(plan.to_dict()))["experiments"][0]["seconds"] is None
    seconds = [float(k + 1) for k in range(len(specs))]
    timed = with_estimate(plan, seconds, 2, 90.0 - makespan(seconds, 2), 2**30)
    assert timed.seconds == 90.0
    assert [run["seconds"] for run in timed.to_dict()["experiments"]] == seconds
    assert timed.to_dict()["peak_memory_bytes"] == 2**30
    assert timed.total_flops == math.fsum(spec.flops for spec in specs)
    assert f"{len(specs)} runs" in str(timed) and "about 1.5 min and 1.00 GiB" in str(timed)


# --- several D out of one run --------------------------------------------------------------------------------------

LADDER = tuple(1e14 * 1.35**k for k in range(9))  # budgets close together, where branches save most


def branched(budgets: Sequence[float], **changes: Any) -> tuple[RunSpec, ...]:
    return plan_sweep(budgets, sizes(), rules(branch=True, decay=0.25, **changes))[0]


def trunks(specs: Sequence[RunSpec]) -> list[list[RunSpec]]:
    found: dict[str, list[RunSpec]] = {}
    for spec in specs:
        found.setdefault(spec.lane, []).append(spec)
    return [sorted(lane, key=lambda spec: spec.steps) for lane in found.values()]


def test_a_trunk_is_one_size_at_one_batch_and_learning_rate() -> None:
    lanes = trunks(branched(LADDER))
    assert len({lane[0].size for lane in lanes}) == len(lanes)  # one trunk a size
    for lane in lanes:
        assert len({(spec.size, spec.batch_size, spec.lr, spec.warmup_steps) for spec in lane}) == 1
        assert len({spec.steps for spec in lane}) == len(lane)


@given(st.lists(st.floats(1e11, 1e15), min_size=1, max_size=5, unique=True), st.floats(1.5, 4.0))
def test_the_warmup_of_a_trunk_suits_its_shortest_run(budgets: list[float], span: float) -> None:
    """It follows from N alone, and no run that is planned is mostly warmup."""
    for spec in branched(sorted(budgets), span=span, warmup=0.05):
        shortest = 20.0 * spec.params / span**2  # tokens (Eq. P7)
        assert spec.warmup_steps is not None
        assert abs(spec.warmup_steps - 0.05 * shortest / (spec.batch_size * 64)) <= 1  # whole steps, at least one
        assert spec.warmup_steps <= MOST_WARMUP * spec.steps


def test_a_branch_that_is_mostly_warmup_is_left_out_and_said() -> None:
    _, skipped = plan_sweep(LADDER, sizes(), rules(branch=True, decay=0.25, sizes=(256, 384, 1024)))
    assert any(skip.size == 1024 and "the trunk's warmup takes" in skip.reason for skip in skipped)


def test_the_cost_of_a_plan_is_each_step_once() -> None:
    """Eq. P7, against a count of the steps themselves: those of the trunk once, and those of every decay."""
    plan = SweepPlan(experiments=branched(LADDER), skipped=(), measured=())
    done = 0.0
    for lane in trunks(plan.experiments):
        decays = [(spec, math.floor(0.75 * spec.steps)) for spec in lane]
        trunk = set(range(max(leaves for _, leaves in decays)))
        steps = len(trunk) + sum(spec.steps - leaves for spec, leaves in decays)
        done += steps * lane[0].flops / lane[0].steps
    assert plan.total_flops == pytest.approx(done, rel=ROUNDING)
    assert plan.separate_flops == pytest.approx(sum(spec.flops for spec in plan.experiments), rel=ROUNDING)
    assert plan.total_flops < 0.55 * plan.separate_flops
    assert "of what they would cost one by one" in str(plan)


def test_every_budget_keeps_its_number_of_sizes_around_its_centre() -> None:
    specs = branched(LADDER)
    for budget in LADDER:
        ratios = [spec.tokens / spec.params for spec in specs if spec.budget == budget]
        assert len(ratios) == 5
        assert min(ratios) < 20 < max(ratios)


@given(st.lists(st.floats(1e11, 1e15), min_size=2, max_size=6, unique=True), st.booleans())
def test_a_budget_that_is_added_later_throws_no_run_away(budgets: list[float], branch: bool) -> None:
    """Whether it lies below, between or above the others: keys and lanes stay, so nothing is trained twice."""
    one = rules(branch=branch)
    few, more = (plan_sweep(sorted(some), sizes(), one)[0] for some in (budgets[1:], budgets))
    assert {spec.key for spec in few} <= {spec.key for spec in more}
    assert {spec.lane for spec in few} <= {spec.lane for spec in more}


def test_budgets_that_round_to_the_same_steps_are_one_run() -> None:
    specs, skipped = plan_sweep([1e12, 1.00001e12], sizes(), rules())
    assert {spec.budget for spec in specs} == {1e12}
    assert len({spec.key for spec in specs}) == len(specs)
    assert {skip.reason for skip in skipped} == {"in whole steps the same run as at 1e+12 FLOPs"}


def test_labels_and_the_schedule_of_a_run_in_its_key() -> None:
    [spec, *_] = branched(LADDER)
    assert dataclasses.replace(spec, shared_steps=spec.shared_steps + 1).key == spec.key  # who paid is a label
    assert dataclasses.replace(spec, warmup_steps=None).key != spec.key
    assert dataclasses.replace(spec, warmup_steps=None).lane == ""


def test_an_estimate_takes_the_runs_of_a_trunk_one_after_the_other() -> None:
    plan = SweepPlan(experiments=branched(LADDER), skipped=(), measured=())
    seconds = [1.0] * len(plan.experiments)
    longest = max(len(lane) for lane in trunks(plan.experiments))
    assert with_estimate(plan, seconds, 1000, 0.0, 0).seconds == longest
    assert with_estimate(plan, seconds, 1, 0.0, 0).seconds == len(seconds)
