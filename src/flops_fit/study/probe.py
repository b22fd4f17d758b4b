"""Short runs before a sweep: the learning rate's coefficient at a small size, whether it still holds at a larger one,
and the batch size when asked. What they found is a note in the journal; the runs themselves are in it too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from flops_fit.records import Measurement, Record, RunResult, RunSpec
from flops_fit.scaling.plan import PlanRules, plan_sweep
from flops_fit.scaling.rules import LR_FACTORS, LR_START, BatchRule, LrRule, search_factor
from flops_fit.scaling.sizes import Sizes

NOTE = "lr"          # the journal remembers what was found under this name
PROBE_SHARE = 0.25   # of the smallest budget, spent on each run at the small size
CHECK_SHARE = 0.1    # of the sweep's FLOPs, the most that all runs at the larger size cost
CHECK_FACTORS = (0.5, 1.0, 2.0)  # of what the rule says there, tried first
CHECK_EXTENSIONS = 2             # more of them when the best lies at an end
BATCH_RATIOS = (0.5, 1.0, 2.0, 4.0)  # of the batch that the rule says
BATCH_COST = 0.01    # a batch is too large when its loss is this far above the best one's
MOVED = 1.5          # from there on a move costs more than the noise of a run, see docs/math.md, P8
TELLING = 2.0        # times N_1, from where on a second size tells an exponent of N, see P9


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed(Record):
    """The rules that a sweep follows, how they came about, and what its result must warn of."""

    lr: LrRule
    batch: BatchRule
    note: str = ""                   # behind the rule, in the conventions of the result
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From a note, as `to_dict` and JSON leave it."""
        return cls(
            lr=LrRule.from_dict(data["lr"]), batch=BatchRule.from_dict(data["batch"]), note=data["note"],
            warnings=tuple(data["warnings"]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Prober:
    """Measures on the sizes of one study, by short runs that the caller carries out and remembers."""

    budgets: tuple[float, ...]
    sizes: Sizes
    rules: Callable[[LrRule], PlanRules]
    run: Callable[[Sequence[RunSpec]], list[RunResult]]  # results in the order of the specs
    say: Callable[[str], None]

    def find(self, given: Probed, asked: Sequence[str]) -> Probed:
        """What is asked, "lr" or "batch", measured at a small size (Eq. P3, P10); lr is checked at a larger one (P8).

        Raises:
            FitError: no learning rate led to a finite loss.
        """
        small = self._small()
        probed = self._coefficient(given, small) if "lr" in asked else given
        if "batch" in asked and given.batch.samples is None:  # a DataLoader fixes it
            probed = self._batch(probed, small, follow="lr" in asked)
        return self._checked(probed, small) if "lr" in asked else probed

    def _coefficient(self, given: Probed, small: Measurement) -> Probed:
        self.say(f"learning rate: {len(LR_FACTORS)} or more short runs at size {small.size}")

        def losses_of(factors: Sequence[float]) -> list[float | None]:
            return self._losses([self._short(small, LrRule(LR_START * factor), given.batch) for factor in factors])

        lr = LrRule(LR_START * search_factor(losses_of))
        return replace(given, lr=lr, note=f" (coefficient measured at size {small.size}")

    def _batch(self, probed: Probed, small: Measurement, *, follow: bool) -> Probed:
        """The largest of some batches that costs at most 1% of loss; `follow`: the learning rate goes by its root."""
        rules = {ratio: _at_batch(probed, ratio, follow) for ratio in BATCH_RATIOS}
        budget = self._short(small, probed.lr, probed.batch).budget  # one D for all
        specs = {ratio: self._spec(small, budget, at.lr, at.batch) for ratio, at in rules.items()}
        specs = {ratio: spec for ratio, spec in specs.items() if not self.rules(probed.lr).infeasible(spec)}
        self.say(f"batch size: {len(specs)} short runs at size {small.size}")
        losses = dict(zip(specs, self._losses(list(specs.values())), strict=True))
        good = {ratio: loss for ratio, loss in losses.items() if loss is not None}
        if not good:
            return probed  # the sweep itself will tell why
        chosen = max(ratio for ratio, loss in good.items() if loss <= (1 + BATCH_COST) * min(good.values()))
        said = f"batch measured at size {small.size}: x {chosen:g} of the rule"
        return replace(rules[chosen], note=f"{probed.note}; {said}" if follow else f"; {said}")

    def _checked(self, probed: Probed, small: Measurement) -> Probed:
        """The rule tried at a larger size; where the best learning rate moved, corrected and warned of."""
        specs, _ = plan_sweep(self.budgets, self.sizes, replace(self.rules(probed.lr), batch=probed.batch))
        cost = math.fsum(spec.cost for spec in specs)
        spec = self._check_spec(probed, small, {spec.size for spec in specs}, cost)
        if spec is None:
            return replace(probed, note=f"{probed.note}; not checked at a larger size: no run fits)")
        tried: list[float] = []

        def losses_of(factors: Sequence[float]) -> list[float | None]:
            tried.extend(factors)
            return self._losses([replace(spec, lr=spec.lr * factor) for factor in factors])

        self.say(f"learning rate: {len(CHECK_FACTORS)} or more runs at size {spec.size}, to see whether it holds there")
        moved = search_factor(losses_of, CHECK_FACTORS, CHECK_EXTENSIONS)
        said = (
            f"{probed.note}; the best one at size {spec.size} is x {moved:.2f} of what that says, "
            f"checked with {len(tried) * spec.flops / cost:.1%} of the sweep's FLOPs"
        )
        if 1 / MOVED <= moved <= MOVED:
            return replace(probed, note=f"{said})")
        if spec.params >= TELLING * small.params:
            corrected, lr = "exponent of N", probed.lr.bent(small.params, spec.params, moved)
            done = f"from {probed.lr.n_exponent:.3g} to {lr.n_exponent:.3g}, through both"
        else:
            corrected, lr = "coefficient", replace(probed.lr, coefficient=probed.lr.coefficient * math.sqrt(moved))
            done = f"by x {math.sqrt(moved):.3g}, halfway: the two sizes are too near to tell an exponent of N"
        warning = (
            f'lr="auto": the best learning rate moved: at size {spec.size} (N = {spec.params:,}) it is '
            f"{moved * spec.lr:.3g}, and the rule measured at size {small.size} (N = {small.params:,}) says "
            f"{spec.lr:.3g}; its {corrected} was corrected {done}"
        )
        return replace(
            probed, lr=lr, note=f"{said}: {corrected} corrected)", warnings=(*probed.warnings, warning)
        )  # fmt: skip

    def _check_spec(self, probed: Probed, small: Measurement, planned: set[int], cost: float) -> RunSpec | None:
        """A run about the middle of the sweep in log N and log C, or as far towards it as its share of FLOPs allows.

        None where the sweep has no size above the small one, or none for which such a run is long enough.
        """
        measured = [one for size in planned if (one := self.sizes.at(size)) is not None]
        middle = math.sqrt(min(m.params for m in measured) * max(m.params for m in measured))
        larger = [m for m in measured if m.params > small.params]
        budget = min(
            math.sqrt(self.budgets[0] * self.budgets[-1]),
            CHECK_SHARE * cost / (len(CHECK_FACTORS) + CHECK_EXTENSIONS),
        )
        rules = replace(self.rules(probed.lr), batch=probed.batch)
        for one in sorted(larger, key=lambda m: abs(math.log(m.params / middle))):
            spec = rules.spec(one, budget, "probe")
            if not rules.infeasible(spec):
                return spec
        return None

    def _small(self) -> Measurement:
        """The size in the middle of the smallest budget."""
        specs, _ = plan_sweep(self.budgets[:1], self.sizes, self.rules(LrRule.of("auto")))
        middle = self.sizes.at(specs[len(specs) // 2].size)
        assert middle is not None  # it was planned, so it can be built
        return middle

    def _short(self, measured: Measurement, lr: LrRule, batch: BatchRule) -> RunSpec:
        short = self._spec(measured, self.budgets[0] * PROBE_SHARE, lr, batch)
        return self._spec(measured, self.budgets[0], lr, batch) if self.rules(lr).infeasible(short) else short

    def _spec(self, measured: Measurement, budget: float, lr: LrRule, batch: BatchRule) -> RunSpec:
        return replace(self.rules(lr), batch=batch).spec(measured, budget, "probe")

    def _losses(self, specs: Sequence[RunSpec]) -> list[float | None]:
        distinct = {spec.key: spec for spec in specs}  # rounding to whole samples may make two the same
        losses = {key: run.loss for key, run in zip(distinct, self.run(list(distinct.values())), strict=True)}
        return [losses[spec.key] for spec in specs]


def _at_batch(probed: Probed, ratio: float, move_lr: bool) -> Probed:
    """`ratio` times the batch, and the learning rate by its root (Malladi et al. 2022, arXiv 2205.10287)."""
    batch = replace(probed.batch, coefficient=probed.batch.coefficient * ratio)
    lr = replace(probed.lr, coefficient=probed.lr.coefficient * math.sqrt(ratio)) if move_lr else probed.lr
    return replace(probed, lr=lr, batch=batch)
