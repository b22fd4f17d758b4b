"""A law put to the test: which run shows whether a prediction holds, and what its loss says of it."""

from __future__ import annotations

from dataclasses import replace

from flops_fit.records import RunResult, RunSpec
from flops_fit.scaling.plan import PlanRules
from flops_fit.scaling.result import Result, Verify
from flops_fit.scaling.sizes import Sizes

FRESH = 4.0  # passes over the data up to which repeats cost little (Muennighoff et al. 2023, arXiv 2305.16264)


def run_to_verify(result: Result, sizes: Sizes, rules: PlanRules, compute: float) -> RunSpec:
    """The run of the predicted size; where it would repeat the data too often, of the next size that does not."""
    best = result.predict(compute).params
    predicted = spec = _run(result, sizes, rules, compute, sizes.near(best))
    most = rules.max_epochs * rules.unique_tokens
    while spec.tokens > most:
        size = sizes.near(spec.params * spec.tokens / most)  # D = C / f(N), and f is about proportional to N
        if size is None or size <= spec.size:
            size = sizes.next_to(spec.size, 1)
        if size is None or (sizes.params(size) or 0) > rules.span * best:
            return predicted
        spec = _run(result, sizes, rules, compute, size)
    return spec


def _run(result: Result, sizes: Sizes, rules: PlanRules, compute: float, size: int | None) -> RunSpec:
    """Of one size at `compute`: it goes on from the trunk of that size when the sweep has one."""
    measured = None if size is None else sizes.at(size)
    assert measured is not None  # the sweep ran, so sizes can be built
    known = {run.spec.budget for run in result.experiments if run.spec.size == size}
    return rules.runs(measured, [*sorted(budget for budget in known if budget < compute), compute], "verify")[-1]


def prediction(result: Result, spec: RunSpec) -> tuple[float, tuple[float, float]]:
    """(loss that the law expects of this run, 95% of such runs)."""
    low, high = (float(end) for end in result.loss_interval(spec.params, spec.tokens))
    return float(result.loss(spec.params, spec.tokens)), (low, high)


def with_verification(result: Result, run: RunResult, passes: float) -> Result:
    """The result with what the run showed; `passes` is how often it went over the data."""
    spec = run.spec
    if run.loss is None:
        return replace(result, warnings=(*result.warnings, f"the verification {run.status}: {run.reason}"))
    predicted, (low, high) = prediction(result, spec)
    missed = f"the verification at {spec.flops:.3g} FLOPs missed its 95% interval: do not extrapolate that far"
    if passes > FRESH:
        missed += f"; it passed {passes:.1f} times over the data, and a larger model learns more by heart"
    return replace(
        result,
        warnings=result.warnings if low <= run.loss <= high else (*result.warnings, missed),
        verify=Verify(
            compute=spec.flops, size=spec.size, params=spec.params, tokens=spec.tokens, predicted_loss=predicted,
            interval=(low, high), measured_loss=run.loss, relative_error=predicted / run.loss - 1,
        ),
    )  # fmt: skip
