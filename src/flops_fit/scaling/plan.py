"""From budgets to runs: which sizes, how much data each, at which batch size and learning rate.

    budgets -> sizes around the expected optimum of each budget -> feasible pairs -> RunSpec

Nothing here trains or imports torch: a size is measured by a callable that the caller gives.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flops_fit.errors import InputError
from flops_fit.records import Measurement, Role, RunSpec, Skipped
from flops_fit.scaling.rules import BatchRule, LrRule, stable_steps
from flops_fit.scaling.sizes import Sizes, sizes_for

FEWEST_BUDGETS = 3       # two give a slope and no residual: nothing would tell whether a law holds
FEWEST_STEPS = 20        # a shorter run is mostly warmup; its loss says nothing of the law
FEWEST_TOKENS_PER_PARAM = 0.1
MOST_WARMUP = 0.2        # of a branch; up to here no length is best at all sizes (experiments/gpt-python/LOG.md)
SCHEDULES = ("auto", "wsd", "wsd-branch")


@dataclass(frozen=True, kw_only=True)
class PlanRules:
    """How budgets become runs: everything about planning that is not the model."""

    study: str                                 # identity hash, into every RunSpec
    tokens_per_sample: int
    samples: int | None                        # training samples in one epoch; None: unknown
    lr: LrRule
    batch: BatchRule
    seed: int = 0
    sizes: tuple[int, ...] | None = None       # these sizes for every budget, instead of a search
    size_multiple: int = 64
    sizes_per_budget: int = 5
    tokens_per_param: float = 20.0             # D/N around which sizes are placed; not a claim about the optimum
    span: float = 3.0                          # sizes reach from 1/span to span times the centre, in N
    max_epochs: float = 4.0                    # more repeats are worth less (Muennighoff et al. 2023, arXiv 2305.16264)
    branch: bool = False                       # True: one trunk a size, a decay branched off it for each D (Eq. P7)
    warmup: float = 0.1                        # of a run; on a trunk, of the shortest (D = rho N / span^2)
    decay: float = 0.5                         # of each run

    def __post_init__(self) -> None:
        allowed: dict[str, tuple[float, str, bool]] = {
            "sizes_per_budget": (self.sizes_per_budget, "at least 2", self.sizes_per_budget >= 2),
            "tokens_per_param": (self.tokens_per_param, "above 0, finite", 0 < self.tokens_per_param < math.inf),
            "span": (self.span, "above 1, finite", 1 < self.span < math.inf),
            "max_epochs": (self.max_epochs, "above 0", self.max_epochs > 0),
            "tokens_per_sample": (self.tokens_per_sample, "at least 1", self.tokens_per_sample >= 1),
        }
        for name, (value, what, good) in allowed.items():
            if not good:
                raise InputError(f"{name}: got {value}; allowed is a number {what}; leave it out for the default")
        wrong = [size for size in self.sizes or () if not isinstance(size, int) or size < 1]
        if wrong or self.sizes == ():
            raise InputError(f"sizes: got {wrong[0] if wrong else 'none'}; give whole numbers from 1 on, or None")

    @property
    def unique_tokens(self) -> float:
        return math.inf if self.samples is None else float(self.samples * self.tokens_per_sample)

    def spec(
        self, measured: Measurement, budget: float, role: Role = "sweep", *, batch: int | None = None,
        lr: float | None = None, warmup_steps: int | None = None, shared: int = 0,
    ) -> RunSpec:  # fmt: skip
        """The run of one size at one budget: D = C / f(N), in whole steps of full batches.

        Batch and learning rate are by rule unless given, as they are for a branch whose trunk has `shared` steps.
        """
        tokens = budget / measured.flops_per_token
        batch = batch or self.batch(tokens, self.tokens_per_sample)
        steps = max(1, round(tokens / (batch * self.tokens_per_sample)))
        spent = steps * batch * self.tokens_per_sample
        return RunSpec(
            study=self.study, size=measured.size, params=measured.params, flops_per_token=measured.flops_per_token,
            steps=steps, batch_size=batch, tokens=spent, lr=lr or self.lr(measured.params, spent), seed=self.seed,
            budget=budget, role=role, warmup_steps=warmup_steps, shared_steps=min(shared, steps - 1),
        )  # fmt: skip

    def runs(self, measured: Measurement, budgets: Sequence[float], role: Role = "sweep") -> list[RunSpec]:
        """The runs of one size at these ascending budgets: each by itself, or branches of one trunk (Eq. P7).

        Batch, learning rate and warmup of a trunk follow from its N alone: so the loss stays a function of N and D,
        and a budget that is added later reuses the trunk. Batch and rate are those of a D below the middle of its runs,
        since a batch that is too large for a short run costs more than one that is too small for a long run; the
        warmup is that of the shortest, of which a longer one would be a large part.
        """
        if not self.branch:
            return [self.spec(measured, budget, role) for budget in budgets]
        reference = self.tokens_per_param * measured.params / self.span
        batch, lr = self.batch(reference, self.tokens_per_sample), self.lr(measured.params, reference)
        warmup = max(1, round(self.warmup * reference / self.span / (batch * self.tokens_per_sample)))
        shared, branches = 0, []
        for budget in budgets:
            run = self.spec(measured, budget, role, batch=batch, lr=lr, warmup_steps=warmup, shared=shared)
            branches.append(run)
            if not self.infeasible(run):
                shared = stable_steps(run.steps, self.decay)
        return branches

    def infeasible(self, spec: RunSpec) -> str:
        """"" or why this pair would tell nothing."""
        if self.samples is not None and spec.batch_size > self.samples:
            return f"the data ({self.samples:,} samples) is shorter than one batch ({spec.batch_size:,})"
        if spec.tokens < FEWEST_TOKENS_PER_PARAM * spec.params:
            return f"D = {spec.tokens:,} is less than N/10 = {spec.params / 10:,.0f}"
        if spec.tokens > self.max_epochs * self.unique_tokens:
            epochs = spec.tokens / self.unique_tokens
            return f"D = {spec.tokens:,} is {epochs:.1f} epochs of the data, more than {self.max_epochs:g}"
        if spec.steps < FEWEST_STEPS:
            return f"only {spec.steps} steps, fewer than {FEWEST_STEPS}"
        if (spec.warmup_steps or 0) > MOST_WARMUP * spec.steps:
            return f"the trunk's warmup takes {spec.warmup_steps} of its {spec.steps} steps"
        return ""


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What a sweep would run. Inspect it before paying for it."""

    experiments: tuple[RunSpec, ...]
    skipped: tuple[Skipped, ...]
    measured: tuple[Measurement, ...]           # every size that was measured
    seconds_each: tuple[float, ...] | None = None  # estimated wall time of each experiment; None: not calibrated
    seconds: float | None = None                # estimated wall time of the whole sweep
    peak_memory_bytes: int | None = None        # estimated, all processes together
    unit: Literal["tokens", "samples"] = "tokens"
    conventions: dict[str, str] = field(default_factory=dict)
    synthetic: bool = False                     # True: SyntheticTrainer would compute the losses

    @property
    def total_flops(self) -> float:
        """FLOPs that will be spent: steps that several runs share count once (Eq. P7)."""
        return math.fsum(spec.cost for spec in self.experiments)

    @property
    def separate_flops(self) -> float:
        """FLOPs of the same runs, had each been trained by itself."""
        return math.fsum(spec.flops for spec in self.experiments)

    def to_dict(self) -> dict[str, Any]:
        each = self.seconds_each or (None,) * len(self.experiments)
        return {
            "experiments": [
                {
                    "budget": s.budget, "size": s.size, "params": s.params, "tokens": s.tokens, "flops": s.flops,
                    "steps": s.steps, "batch_size": s.batch_size, "lr": s.lr, "shared_steps": s.shared_steps,
                    "cost": s.cost, "seconds": seconds,
                }
                for s, seconds in zip(self.experiments, each, strict=True)
            ],
            "total_flops": self.total_flops,
            "separate_flops": self.separate_flops,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "unit": self.unit,
            "skipped": [s.to_dict() for s in self.skipped],
            "conventions": dict(self.conventions),
            "synthetic": self.synthetic,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [
            f"{'budget':>9} {'size':>6} {'N':>12} {'D (' + self.unit + ')':>16} {'steps':>7} {'batch':>6} {'lr':>9}"
            f" {'time':>7}"
        ]
        each = self.seconds_each or (None,) * len(self.experiments)
        for s, seconds in zip(self.experiments, each, strict=True):
            time = "" if seconds is None else f"{seconds:.0f} s"
            lines.append(
                f"{s.budget:9.2g} {s.size:6d} {s.params:12,d} {s.tokens:16,d} {s.steps:7,d} {s.batch_size:6d} "
                f"{s.lr:9.2g} {time:>7}"
            )
        lines += [f"left out: {_where(skip)}: {skip.reason}" for skip in self.skipped]
        total = f"{len(self.experiments)} runs, {self.total_flops:.3g} FLOPs"
        if self.total_flops < self.separate_flops:
            share = self.total_flops / self.separate_flops
            total += f" ({share:.0%} of what they would cost one by one: runs of a size share their beginning)"
        if self.seconds is not None and self.peak_memory_bytes is not None:
            total += f", about {self.seconds / 60:.1f} min and {self.peak_memory_bytes / 2**30:.2f} GiB on this machine"
        synthetic = ["SYNTHETIC: losses would be computed from a law, nothing would be trained"] * self.synthetic
        return "\n".join([*lines, *synthetic, total])


def check_budgets(compute_budgets: Iterable[float], fewest: int = FEWEST_BUDGETS) -> tuple[float, ...]:
    """Budgets in FLOPs, ascending, without duplicates.

    Raises:
        InputError: empty, not positive, not finite, or too few to fit a law.
    """
    hint = "give FLOPs such as compute_budgets=[1e12, 3e12, 1e13]"
    try:
        budgets = [float(budget) for budget in compute_budgets]
    except (TypeError, ValueError) as error:
        raise InputError(f"compute_budgets: got {compute_budgets!r}, not a list of numbers; {hint}") from error
    wrong = [budget for budget in budgets if not (math.isfinite(budget) and budget > 0)]
    if wrong:
        raise InputError(f"compute_budgets: got {wrong[0]}; every budget must be positive and finite: {hint}")
    unique = tuple(sorted(set(budgets)))
    if len(unique) < fewest:
        came = "none" if not unique else f"only {len(unique)} ({', '.join(f'{b:g}' for b in unique)})"
        raise InputError(f"compute_budgets: got {came}; a law needs at least {fewest} different ones: {hint}")
    return unique


def plan_sweep(
    budgets: Sequence[float], sizes: Sizes, rules: PlanRules
) -> tuple[tuple[RunSpec, ...], tuple[Skipped, ...]]:
    """Every feasible pair of budget and size as a RunSpec, and what was left out with its reason."""
    specs: list[RunSpec] = []
    skipped: list[Skipped] = []
    for measured, wanted in _pairs(budgets, sizes, rules):
        first: dict[tuple[int, int], float] = {}
        for spec in rules.runs(measured, wanted):
            reason = rules.infeasible(spec)
            before = spec.budget if reason else first.setdefault((spec.steps, spec.batch_size), spec.budget)
            if before != spec.budget:
                reason = f"in whole steps the same run as at {before:.2g} FLOPs"
            if reason:
                skipped.append(Skipped(budget=spec.budget, size=spec.size, reason=reason))
            else:
                specs.append(spec)
    specs.sort(key=lambda spec: (spec.budget, spec.size))
    skipped.sort(key=lambda skip: (skip.budget, skip.size))
    for size, why in sorted(sizes.broken.items()):
        skipped.append(Skipped(budget=None, size=size, reason=f"cannot be built: {why}"))
    if not specs:
        reasons = "; ".join(f"{_where(skip)}: {skip.reason}" for skip in skipped[:3]) or "no size can be built"
        raise InputError(f"compute_budgets: no feasible run is left ({reasons}); change the budgets, sizes or data")
    return tuple(specs), tuple(skipped)


def _pairs(
    budgets: Sequence[float], sizes: Sizes, rules: PlanRules
) -> Iterator[tuple[Measurement, list[float]]]:
    """Each size with the ascending budgets at which it is wanted."""
    chosen = {budget: sizes_for(budget, sizes, rules) for budget in budgets}
    for size in sorted({size for of_budget in chosen.values() for size in of_budget}):
        measured = sizes.at(size)
        if measured is not None:
            yield measured, [budget for budget in budgets if size in chosen[budget]]


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Wall time of jobs on `workers` equal workers, longest first (the order in which executors take them)."""
    loads = [0.0] * workers
    for job in sorted(seconds, reverse=True):
        heapq.heapreplace(loads, loads[0] + job)
    return max(loads)


def with_estimate(plan: SweepPlan, seconds_each: Sequence[float], workers: int, start: float, memory: int) -> SweepPlan:
    """The plan with its estimated cost: `start` seconds until the first run begins, then the makespan."""
    jobs: dict[str, float] = defaultdict(float)  # runs of one lane go one after the other
    for spec, seconds in zip(plan.experiments, seconds_each, strict=True):
        jobs[spec.lane or spec.key] += seconds
    total = start + makespan(jobs.values(), workers)
    return dataclasses.replace(plan, seconds_each=tuple(seconds_each), seconds=total, peak_memory_bytes=memory)


def _where(skip: Skipped) -> str:
    parts = [f"{skip.budget:.2g} FLOPs" if skip.budget is not None else "", f"size {skip.size}" if skip.size else ""]
    return ", ".join(part for part in parts if part)
