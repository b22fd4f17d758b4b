"""A study being worked off: plan, run what the journal lacks, extend at the edges, fit, verify."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flops_fit.errors import InputError, JournalError
from flops_fit.records import Measurement, RunResult, RunSpec, content_hash
from flops_fit.runs.beacon import Beacon
from flops_fit.runs.executors import Executor, InlineExecutor, ProcessExecutor, Task, choose
from flops_fit.runs.journal import Journal
from flops_fit.runs.watch import Watch
from flops_fit.scaling.compute import FlopsPerToken
from flops_fit.scaling.fit import DRAWS, MIN_DRAWS, fit
from flops_fit.scaling.isoflop import isoflop
from flops_fit.scaling.plan import PlanRules, SweepPlan, plan_sweep
from flops_fit.scaling.result import Result
from flops_fit.scaling.rules import BatchRule, LrRule
from flops_fit.scaling.sizes import Sizes
from flops_fit.scaling.table import Runs
from flops_fit.study.cost import with_cost
from flops_fit.study.definition import Study, prepare_study
from flops_fit.study.launched import LaunchedExecutor, processes, together
from flops_fit.study.probe import NOTE, Probed, Prober
from flops_fit.study.verify import prediction, run_to_verify, with_verification
from flops_fit.study.work import CHECKPOINTS, work_off
from flops_fit.train.checkpoint import Checkpoints
from flops_fit.train.engine import Trainer
from flops_fit.train.measure import REAL_FIRST
from flops_fit.train.options import Placement

LADDER_STEPS = 7       # sizes are measured up to 4^7 x the largest N of the sweep
SMALL_SWEEP = 5e10     # FLOPs: about the seconds that starting workers takes
WORTH_BRANCHING = 0.8  # of the FLOPs of separate runs: above it, one lr and batch for all D of a size are not worth it
WORTH_THREADS = 1e6    # params: the products of a smaller model are too small to be shared by threads


class Sweep:
    """One study being worked off on this machine: checked, planned, run, fitted, verified.

    Making one checks everything that can be checked before training and raises all breaches together.
    """

    def __init__(self, study: Study, *, executor: str | Executor, workers: int | None, watch: Watch) -> None:
        self.study, self.watch = study, watch
        self.executor, self.workers = executor, len(os.sched_getaffinity(0)) if workers is None else workers
        ProcessExecutor(self.workers)  # a number of workers that cannot be is told now
        choose("inline" if executor == "local" else executor, self.workers)  # an unknown name is told now
        self.prepared = ready = prepare_study(study)
        self.sizes = Sizes(ready.measurer, ready.measurer.params, study.size_multiple)
        if study.schedule == "auto" and not self._branching_saves():
            self.prepared = ready = ready.scheduled(branch=False)
        self.trainer: Task = study.trainer or Trainer(
            ready.measurer, ready.source, ready.objective, ready.options,
            Placement(micro_batch=study.micro_batch, shard=study.shard),
        )  # fmt: skip

    # --- plan -------------------------------------------------------------------------------------------------------

    def plan(self) -> SweepPlan:
        """The runs and what they will cost, from a few steps of each on this machine."""
        note = " (a start; the sweep measures it)" if "lr" in self._asks() else ""
        plan = self._plan(self.rules(LrRule.of(self.study.lr)), note)
        return plan if self.study.trainer else together(self.trainer, lambda: self._with_cost(plan))

    def _plan(self, rules: PlanRules, lr_note: str = "") -> SweepPlan:
        specs, skipped = plan_sweep(self.prepared.budgets, self.sizes, rules)
        return SweepPlan(
            experiments=specs, skipped=skipped, measured=self.sizes.measured,
            synthetic=self.study.trainer is not None, unit=self.prepared.unit,
            conventions=self.prepared.conventions(
                rules, max(spec.tokens for spec in specs), (m.how for m in self.sizes.measured), lr_note
            ),
        )  # fmt: skip

    def _branching_saves(self) -> bool:
        """Whether trunks are worth their one batch a size: they save FLOPs and leave out no run."""
        rules = self.rules(LrRule.of(self.study.lr))
        branches, _ = plan_sweep(self.prepared.budgets, self.sizes, rules)
        separate, _ = plan_sweep(self.prepared.budgets, self.sizes, replace(rules, branch=False))
        alone = math.fsum(spec.flops for spec in branches)
        saves = math.fsum(spec.cost for spec in branches) <= WORTH_BRANCHING * alone
        return saves and len(branches) >= len(separate)

    def _with_cost(self, plan: SweepPlan) -> SweepPlan:
        executor, trainer, parallel = self._executor(plan.experiments)
        assert isinstance(trainer, Trainer)
        return with_cost(plan, executor, trainer, parallel, self.watch.say)

    def rules(self, lr: LrRule) -> PlanRules:
        study, ready = self.study, self.prepared
        batch = BatchRule.of(study.batch_size)
        if ready.source.batch_size is not None:
            batch = BatchRule(samples=ready.source.batch_size)  # a DataLoader fixes it
        return PlanRules(
            study=content_hash(ready.identity), tokens_per_sample=ready.measurer.tokens_per_sample,
            samples=ready.source.samples, lr=lr, batch=batch, seed=study.seed, sizes=study.sizes,
            size_multiple=study.size_multiple, sizes_per_budget=study.sizes_per_budget,
            tokens_per_param=study.tokens_per_param, span=study.span, max_epochs=study.max_epochs,
            branch=ready.branch, warmup=ready.options.warmup, decay=ready.options.decay,
        )  # fmt: skip

    # --- run --------------------------------------------------------------------------------------------------------

    def find(
        self, output_dir: str | os.PathLike[str], *, resume: bool, extend: int, verify: float | None, bootstrap: int
    ) -> Result:
        """Run what the journal does not hold yet, fit, verify, and write result, plots and report."""
        _check_options(verify, bootstrap)
        plan_sweep(self.prepared.budgets, self.sizes, self.rules(LrRule.of(self.study.lr)))  # before it takes a folder
        return together(self.trainer, lambda: self._drive(Path(output_dir), not resume, extend, verify, bootstrap))

    def _drive(self, folder: Path, fresh: bool, extend: int, verify: float | None, bootstrap: int) -> Result:
        if self.study.schedule == "auto" and not fresh:
            self._keep_schedule(folder)
        with Journal.open(folder, self.prepared.identity, fresh=fresh) as journal:
            if fresh:  # no state and no answer of the sweep that was put aside may pass for one of this
                Checkpoints(folder / CHECKPOINTS).clear()
                for name in ("result.json", "progress.json", "report.html", "sweep.png", "sweep.svg"):
                    (folder / name).unlink(missing_ok=True)
            with Beacon(folder, self.watch) as beacon:
                told, self.watch = self.watch, beacon
                try:
                    result = self._find(journal, beacon, extend, verify, bootstrap)
                finally:
                    self.watch = told
                _save(result, folder)
                failed = [one.spec for one in journal.results.values() if one.status == "failed"]
                Checkpoints(folder / CHECKPOINTS).tidy(failed)
        return result

    def _keep_schedule(self, folder: Path) -> None:
        """Go on with the schedule of the folder's runs, though other budgets would now have chosen the other one."""
        other = self.prepared.scheduled(branch=not self.prepared.branch)
        try:
            there = Journal.read(folder).identity
        except (InputError, JournalError):
            return  # nothing is there, or Journal.open will tell what
        if there is not None and content_hash(dict(there)) == content_hash(other.identity):
            self.prepared = other
            if isinstance(self.trainer, Trainer):
                self.trainer = replace(self.trainer, options=other.options)

    def _find(self, journal: Journal, beacon: Beacon, extend: int, verify: float | None, bootstrap: int) -> Result:
        if journal.recovered:
            self.watch.say(journal.recovered)
        if isinstance(self.trainer, Trainer):
            self.trainer = self.trainer.on(checkpoints=journal.path.parent.resolve() / CHECKPOINTS)
        probed = self._probed(journal)
        rules = replace(self.rules(probed.lr), batch=probed.batch)
        plan = self._plan(rules, probed.note)
        results = self._run(journal, plan.experiments)
        for _ in range(extend):
            more = self._beyond_edges(results, rules)
            if not more:
                break
            results += self._run(journal, more)
        beacon.phase("fitting")
        result = self._fit(results, plan, bootstrap)
        result = replace(result, warnings=(*result.warnings, *probed.warnings))
        if verify is None:
            return result
        beacon.phase("verifying")
        return self._verify(journal, result, rules, verify)

    def _run(self, journal: Journal, specs: Sequence[RunSpec]) -> list[RunResult]:
        executor, task, _ = self._executor(specs)
        return work_off(journal, specs, executor, task, self.watch)

    def _executor(self, specs: Sequence[RunSpec]) -> tuple[Executor, Task, int]:
        """(executor, task, runs at once). "local": single-threaded workers on the CPU, since small models gain nothing
        from a second thread; inline for one run, on CUDA, and where starting workers costs more than the runs."""
        if processes() > 1 and isinstance(self.trainer, Trainer):
            return LaunchedExecutor(processes()), self.trainer.on(ranks=processes()), 1
        if self.executor != "local":
            executor = choose(self.executor, self.workers)
            ranks = getattr(executor, "ranks", 1)  # processes that share each run
            task = self.trainer.on(ranks=ranks) if isinstance(self.trainer, Trainer) else self.trainer
            return executor, task, executor.workers if isinstance(executor, ProcessExecutor) else 1
        trainer = self.trainer
        if self.prepared.device.type != "cpu" or not isinstance(trainer, Trainer):
            return InlineExecutor(), trainer, 1
        if self.workers < 2 or len(specs) < 2:
            large = max((spec.params for spec in specs), default=0) >= WORTH_THREADS
            return InlineExecutor(), trainer.on(threads=self.workers if large else 1), 1
        task = trainer.on(threads=1)
        if sum(spec.cost for spec in specs) < SMALL_SWEEP:
            return InlineExecutor(), task, 1
        return ProcessExecutor(self.workers), task, self.workers

    def _probed(self, journal: Journal) -> Probed:
        """The rules of learning rate and batch: as given, or as short runs found them, which the journal remembers."""
        study, asked = self.study, self._asks()
        given = Probed(lr=LrRule.of(study.lr), batch=self.rules(LrRule.of(study.lr)).batch)
        if not asked:
            return given
        noted = journal.notes.get(NOTE, {})
        if noted.get("asked") == asked:
            return Probed.from_dict(noted)
        if asked == ["lr"] and "coefficient" in noted:  # of a journal from before the rule was checked
            return replace(given, lr=LrRule.from_dict(noted), note=" (coefficient measured)")
        prober = Prober(
            budgets=self.prepared.budgets, sizes=self.sizes, rules=self.rules, say=self.watch.say,
            run=lambda specs: self._run(journal, specs),
        )  # fmt: skip
        probed = prober.find(given, asked)
        journal.note(NOTE, {**probed.to_dict(), "asked": asked})
        self.watch.say(f"learning rate: {probed.lr}; batch: {probed.batch}")
        for warning in probed.warnings:
            self.watch.say(warning)
        return probed

    def _asks(self) -> list[str]:
        """What short runs are to find before the sweep."""
        study = self.study
        asks = {"lr": study.lr == "auto", "batch": study.batch_size == "measure"}
        return [] if study.trainer is not None else [name for name, wanted in asks.items() if wanted]

    def _beyond_edges(self, results: Sequence[RunResult], rules: PlanRules) -> list[RunSpec]:
        """One more size for each group whose optimum lies at its edge, when it is feasible; announced."""
        runs, _ = Runs.from_results(results)
        budgets: dict[int, set[float]] = defaultdict(set)  # of each size, so that a branch finds its trunk
        for result in results:
            budgets[result.spec.size].add(result.spec.budget)
        shared = tuple(budgets) if rules.branch else ()
        wanted: dict[Measurement, list[float]] = defaultdict(list)
        for group in isoflop(runs, self._flops_per_token(results)).edges:
            have = sorted(size for size, of_size in budgets.items() if group.budget in of_size)
            size = self.sizes.next_beyond(have, group.edge, shared)
            measured = None if size is None else self.sizes.at(size)
            if measured is None:
                continue
            [spec] = rules.runs(measured, [group.budget])
            reason = rules.infeasible(spec)
            side = "smallest" if group.edge == "low" else "largest"
            self.watch.say(
                f"{group.budget:.3g} FLOPs: the optimum lies at the {side} size, "
                + (f"size {size} would be next but {reason}" if reason else f"adding size {size}")
            )
            if not reason:
                wanted[measured].append(group.budget)
        return [
            spec for measured, new in wanted.items()
            for spec in rules.runs(measured, sorted({*budgets[measured.size], *new})) if spec.budget in new
        ]  # fmt: skip

    # --- law and answer ---------------------------------------------------------------------------------------------

    def _fit(self, results: Sequence[RunResult], plan: SweepPlan, bootstrap: int) -> Result:
        return fit(
            results, bootstrap=bootstrap, flops_per_token=self._flops_per_token(results), skipped=plan.skipped,
            conventions=plan.conventions, unit=self.prepared.unit,
        )  # fmt: skip

    def _flops_per_token(self, results: Sequence[RunResult]) -> FlopsPerToken:
        """f(N) of every size measured, and of larger ones as far as predictions will ask, while they cost little."""
        largest = max(result.spec.params for result in results)
        for step in range(1, LADDER_STEPS + 1):
            size = self.sizes.near(largest * 4.0**step)
            measured = None if size is None else self.sizes.at(size)
            if measured is None or (measured.params > REAL_FIRST and measured.how != "measured on meta"):
                break
        rows = {m.params: m for m in self.sizes.measured}
        table = [rows[params] for params in sorted(rows)]
        return FlopsPerToken(
            params=tuple(float(m.params) for m in table),
            flops_per_token=tuple(m.flops_per_token for m in table),
            sizes=tuple(float(m.size) for m in table),
        )

    def _verify(self, journal: Journal, result: Result, rules: PlanRules, factor: float) -> Result:
        """Train the predicted size at `factor` times the largest budget and put the measured loss beside it."""
        compute = factor * self.prepared.budgets[-1]
        spec = run_to_verify(result, self.sizes, rules, compute)
        reason = rules.infeasible(spec)
        if reason:
            return replace(result, warnings=(*result.warnings, f"not verified at {compute:.3g} FLOPs: {reason}"))
        predicted, (low, high) = prediction(result, spec)
        other = spec.size != self.sizes.near(result.predict(compute).params)
        self.watch.say(
            f"verifying: size {spec.size}{' (the predicted one would repeat the data more)' if other else ''} at "
            f"{factor:g} x the largest budget, predicted loss {predicted:.4f} (95% {low:.4f} to {high:.4f})"
        )
        (run,) = self._run(journal, [spec])
        return with_verification(result, run, spec.tokens / rules.unique_tokens)


def _save(result: Result, folder: Path) -> None:
    """result.json, report.html, sweep.png and sweep.svg beside the journal."""
    from flops_fit.scaling import plot

    unfinished = folder / "result.json.new"
    unfinished.write_text(result.to_json(), encoding="utf-8")
    unfinished.replace(folder / "result.json")  # a kill leaves the old file or the new one, never half of one
    result.report(folder / "report.html")
    plot.save(result, folder)


def _check_options(verify: float | None, bootstrap: int) -> None:
    """What a finished sweep would stumble over is told before it begins."""
    if verify is not None and not 1 < verify < math.inf:
        raise InputError(f"verify: got {verify}; give how many times the largest budget to train, above 1, such as 4")
    if bootstrap < MIN_DRAWS:
        raise InputError(f"bootstrap: got {bootstrap}; at least {MIN_DRAWS} draws make an interval (default {DRAWS})")
