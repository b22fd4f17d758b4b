"""The training engine: RunSpec -> RunResult. The one training loop of the project.

AdamW, warmup-stable-decay to zero over exactly the steps of the spec, gradient clipping, held-out loss on the same
windows for every run. On CUDA when there, with bf16 autocast; in fp32 on the CPU, or as asked. In one process or in
several ranks, in micro-batches when memory asks for them, and from the newest state on the disk when there is one.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from flops_fit.data.batches import EVALUATION_BATCH, Source, seeded
from flops_fit.errors import ContractError
from flops_fit.records import RunResult, RunSpec, seed_of
from flops_fit.scaling.rules import stable_steps
from flops_fit.train.checkpoint import Checkpoints, State, random_state, set_random_state
from flops_fit.train.keep import Keeper
from flops_fit.train.loss import Objective, first_tensor, to_device
from flops_fit.train.machine import (
    Meter,
    Spent,
    cpu_threads,
    energy_counters,
    environment,
    forget_peak,
    free_memory,
    out_of_memory,
    peak_memory,
)  # fmt: skip
from flops_fit.train.optim import optimiser, set_lr
from flops_fit.train.options import Placement, TrainOptions
from flops_fit.train.parallel import Trouble, join, load_states, place, states
from flops_fit.train.precision import autocast, precision_of

Progress = Callable[[int, float], None]  # (step, training loss)

CURVE_POINTS = 64    # points kept of the training curve
LOSS_EVERY_CUDA = 20  # steps between looks at the loss on CUDA, where each look waits for the device
WORSE_THAN_START = 1.02  # a held-out loss this much above that of the untrained model means that the run diverged
LEARNED = 0.999  # a best held-out loss above this much of the untrained model's means that nothing was learned
SAVING_SHARE = 0.05  # most of the time that may go into saving states
STEPS_BETWEEN_CLOCKS = 16  # ranks compare their clocks this rarely: it costs a message


class Builder(Protocol):
    """size -> a fresh model on the CPU (train.measure.Measurer is one)."""

    def build(self, size: int) -> nn.Module: ...


@dataclass(frozen=True)
class Trainer:
    """Trains the run that a spec describes. Picklable, so that worker processes can hold it."""

    builder: Builder
    source: Source
    objective: Objective
    options: TrainOptions = field(default_factory=TrainOptions)
    placement: Placement = field(default_factory=Placement)

    def on(self, **changes: Any) -> Trainer:
        """The same trainer with another placement."""
        return replace(self, placement=replace(self.placement, **changes))

    def __call__(self, spec: RunSpec, progress: Progress | None = None) -> RunResult:
        """Train and evaluate one run from its seed. Errors of user code pass through; the executor records them.

        Where memory runs out, the same batch is cut into twice as many micro-batches and the run goes on.
        """
        trainer = self
        while True:
            try:
                return trainer._train(spec, progress)
            except Exception as error:
                micro = trainer.placement.micro_batch or spec.batch_size
                if not out_of_memory(error) or micro == 1:
                    raise
            free_memory()  # outside of the handler, whose traceback holds the tensors of the failed step
            trainer = trainer.on(micro_batch=-(-min(micro, spec.batch_size) // 2))

    def held_out_loss(self, model: nn.Module) -> float:
        """Of a model on the CPU, in float32: what a look during such a run would have told."""
        model.eval()
        total = count = 0.0
        at_once = min(EVALUATION_BATCH, self.placement.micro_batch or EVALUATION_BATCH)
        with torch.no_grad(), cpu_threads(self.placement.threads):
            for number, batch in enumerate(self.source.held_out(at_once)):
                samples = first_tensor(batch).shape[0]
                with seeded(number):
                    total += self.objective(model, batch).item() * samples
                count += samples
        return total / count

    def _train(self, spec: RunSpec, progress: Progress | None) -> RunResult:
        forget_peak(self.options.torch_device())
        with seeded(spec.seed), cpu_threads(self.placement.threads):
            run = self._begun(spec, progress)
            reason = run.stopped or run.train(progress)
            loss = math.nan if reason else run.evaluate(progress)
            reason = reason or run.verdict(loss if math.isnan(loss) else min(loss, run.keeper.best))
            if not reason:
                run.keeper.finish(run.step, loss)
            where, memory, spent = environment(run.device, run.precision), peak_memory(run.device), run.spent()
        result = RunResult(
            spec=spec,
            status="diverged" if reason else "ok",
            loss=None if reason else loss,
            reason=reason,
            tokens=run.step * spec.tokens // spec.steps,
            flops=run.step * spec.flops / spec.steps,
            spent=run.executed * spec.flops / spec.steps,
            seconds=spent.seconds,
            cpu_seconds=spent.cpu_seconds,
            joules=spent.joules,
            peak_memory_bytes=memory,
            curve=thinned(run.curve),
            looks=((0, run.untrained), *run.keeper.seen) if run.keeper.looks else (),
            environment=where | run.ranks.described(len(run.cuts)) | run.told(),
        )
        del run  # the model goes before the next run begins
        free_memory()
        return result

    def _begun(self, spec: RunSpec, progress: Progress | None) -> TrainingRun:
        """The run as its newest state left it, or from its seed."""
        run = TrainingRun(self, spec)
        state = run.newest()
        if state is not None:
            built = random_state(run.device)  # as after every building of this model
            if run.restore(state):
                if progress is not None:
                    progress(run.step, math.nan)  # no loss yet: it goes on from here
                return run
            del run, state  # half of it may be loaded: away with it
            free_memory()
            with seeded(spec.seed):
                run = TrainingRun(self, spec)
            set_random_state(built, run.device)
        run.begin(progress)
        return run


class TrainingRun:
    """The state of one run in flight: model, optimiser, data order, curve."""

    def __init__(self, trainer: Trainer, spec: RunSpec) -> None:
        self.trainer, self.spec, self.options, self.placement = trainer, spec, trainer.options, trainer.placement
        self.ranks, self.device = join(self.placement.ranks, trainer.options.torch_device())
        self.precision = precision_of(self.options.precision, self.device)
        self.model = trainer.builder.build(spec.size).to(self.device)
        self.ranks = place(self.model, self.ranks, self.device, self.placement.shard)
        self.model.train()
        self.forward, self.compiled = self.model, self.placement.compiled  # forward: of training steps alone
        self.optimizer = optimiser(self.model, trainer.options)
        self.cuts = self.ranks.cuts(spec.batch_size, self.placement.micro_batch)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.keeper = Keeper(self.model, spec, self.options, self.placement.weights, self.ranks)
        self.checkpoints = Checkpoints(self.placement.checkpoints) if self.placement.checkpoints else None
        self.branching = stable_steps(spec.steps, self.options.decay)  # steps done when the decay begins
        self.step = 0       # optimiser steps done, those of an earlier run of the trunk included
        self.executed = 0   # optimiser steps done for this run alone
        self.curve: list[tuple[int, float]] = []
        self.recent: list[float] = []  # training losses since the last point of the curve
        self.pointed = 0    # the step of that point
        self.frozen = False
        self.untrained = math.nan
        self.ended = ""     # why it ended before its last step, with a loss
        self.stopped = ""   # why nothing is left to do: the lane is known to diverge on the way
        self.before = Spent()  # what earlier sittings took
        self.meter = Meter(energy_counters(self.device))
        self.trouble = Trouble(self.ranks)
        self.place = f"{self.ranks.count} x {self.device.type}"  # states of another place are of no use here

    # --- train ------------------------------------------------------------------------------------------------------

    def begin(self, progress: Progress | None = None) -> None:
        """From the seed: what the untrained model reaches, the measure of having learned anything."""
        self.untrained = self.evaluate(progress)
        if self.ranks.rank:
            torch.manual_seed(seed_of(self.spec.seed, self.ranks.rank))  # its own dropout and noise

    def train(self, progress: Progress | None) -> str:
        """The steps that are left. Returns "" or why the run had to stop."""
        spec, every = self.spec, 1 if self.device.type == "cpu" else LOSS_EVERY_CUDA
        if self.compiled:
            self.compile()
        saved, saving = time.monotonic(), 0.0
        for _, loss in self.steps():
            if self.step % every == 0 or self.step == spec.steps:
                value = loss.item()
                if not math.isfinite(value):
                    if self.checkpoints is not None and spec.lane and self.step <= self.branching:
                        self._save(trunk=True, diverged=value)  # a longer run would do these very steps
                    return self._became(value)
                self._note(value)
                if progress is not None:
                    with self.trouble:
                        progress(self.step, value)
            self.ended = self.keeper.after(self.step, lambda: self.evaluate(progress))
            if self.placement.look is not None and self.step in self.keeper.looks and not self.ranks.rank:
                self.placement.look(self.step, self.keeper.seen[-1][1])
            self.meter.keep_up()
            if reason := self._hopeless():
                return reason
            if self.ended:
                break
            self._show()
            leaves_trunk = bool(spec.lane) and self.step == self.branching
            if self.checkpoints is not None and (leaves_trunk or self._due(saved, saving)):
                began = time.monotonic()
                self._save(trunk=leaves_trunk)
                saved = time.monotonic()
                saving = saved - began
        return ""

    def steps(self) -> Iterator[tuple[int, Tensor]]:
        """(step, training loss before its update), the bare loop."""
        spec, options = self.spec, self.options
        pieces = self.trainer.source.pieces(spec.batch_size, spec.seed, self.cuts, start=self.step)
        for step in range(self.step, spec.steps):
            set_lr(self.optimizer, spec.lr * options.lr_factor(spec, step))
            self._freeze(step < options.heads_first * spec.steps)
            loss = self._gradients(pieces)
            nn.utils.clip_grad_norm_(self.parameters, options.clip)
            with autocast(self.device, self.precision):  # for the products of Muon
                self.optimizer.step()
            self.optimizer.zero_grad()
            self.step, self.executed = step + 1, self.executed + 1
            yield step, loss

    def compile(self) -> None:
        """Training steps by torch.compile: the same weights behind one compiled function for each shape of a piece.

        It needs a compiler, its headers and more, which only a step that counts for nothing can tell. Where it cannot
        be, steps are as they would have been without, and that is told.
        """
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # running means would count that step
        batches = self.trainer.source.pieces(self.spec.batch_size, self.spec.seed, self.cuts, start=self.step)
        try:
            compiled = cast(nn.Module, torch.compile(self.model, dynamic=False))
            with seeded(self.spec.seed):
                piece = next(batches)[0]
                with autocast(self.device, self.precision):
                    loss = self.trainer.objective(compiled, to_device(piece, self.device))
                loss.backward()
            self.forward = compiled
        except Exception as error:  # Dynamo, Inductor and the compilers behind them have words of their own
            if out_of_memory(error):
                raise
            self.compiled = False
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            told = f"training steps are not compiled ({type(error).__name__}: {reason}); the run goes on without"
            warnings.warn(told, UserWarning, stacklevel=2)
        with torch.no_grad():
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        self.optimizer.zero_grad()

    def _freeze(self, frozen: bool) -> None:
        """All but the heads as they are, or learning too. It depends on the step alone: a resumed run does the same."""
        if frozen == self.frozen:
            return
        freeze = getattr(self.model, "freeze", None)
        if freeze is None:
            name = type(self.model).__name__
            raise ContractError(f"model_cls: {name} has no freeze(bool), which heads_first needs; add it, or give 0")
        freeze(frozen)
        self.frozen = frozen

    def _gradients(self, batches: Iterator[list[Any]]) -> Tensor:
        """Gradients of the mean loss over the next batch, from this rank's pieces of it and those of the others."""
        total = torch.zeros((), device=self.device)
        scale = self.ranks.count if self.ranks.sharded else 1  # FSDP2 averages over the ranks; ours are shares of a sum
        with self.trouble:
            for cut, piece in zip(self.cuts, next(batches), strict=True):
                share = (cut.stop - cut.start) / self.spec.batch_size
                with autocast(self.device, self.precision):
                    loss = self.trainer.objective(self.forward, to_device(piece, self.device))
                (loss if share == 1 else loss * (share * scale)).backward()
                total = total + loss.detach() * share if share != 1 else loss.detach()
        return self.ranks.add_up(self.parameters, total, self.trouble.met)

    # --- evaluate ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, progress: Progress | None = None) -> float:
        """Mean loss over the held-out samples. Noise that an objective draws is the same for every run."""
        with self.keeper.averaged():
            return self._evaluate(progress)

    def _evaluate(self, progress: Progress | None) -> float:
        self.model.eval()
        self.ranks.average_buffers(self.model)
        total, count = 0.0, 0.0
        at_once = min(EVALUATION_BATCH, self.placement.micro_batch or EVALUATION_BATCH)
        with self.trouble:
            for number, batch in enumerate(self.trainer.source.held_out(at_once)):
                if not self.ranks.mine(number):
                    continue
                samples = first_tensor(batch).shape[0]
                with seeded(number), autocast(self.device, self.precision):
                    total += self.trainer.objective(self.model, to_device(batch, self.device)).item() * samples
                count += samples
                if progress is not None and self.curve:
                    progress(self.step, self.curve[-1][1])  # a sign of life: this can take longer than many steps
        self.model.train()
        total, count = self.ranks.sum((total, count), self.device, self.trouble.met)
        return total / count

    def told(self) -> dict[str, str]:
        """What else of this run's machine and end is to be known."""
        ended = {"ended early": self.ended} if self.ended else {}
        return ended | ({"compiled": "training steps"} if self.compiled else {})

    def verdict(self, loss: float) -> str:
        if not math.isfinite(loss):
            return f"the held-out loss is {loss} (learning rate {self.spec.lr:.3g})"
        if self.untrained > 0 and loss > WORSE_THAN_START * self.untrained:
            start = f"{self.untrained:.4g}, that of the untrained model"
            return f"the held-out loss {loss:.4g} is above {start}: not learned"
        return ""

    def _hopeless(self) -> str:
        """Why it is not worth going on: by now it should know more than the untrained model."""
        by, best = self.options.learns_by, self.keeper.best
        early = by is None or self.step < by * self.spec.steps or not self.keeper.seen
        if early or self.untrained <= 0 or best < LEARNED * self.untrained:
            return ""
        so_far = f"after {self.step:,} of {self.spec.steps:,} steps the held-out loss is {best:.4g}"
        return f"{so_far}, that of the untrained model {self.untrained:.4g}: it does not learn"

    @torch.no_grad()
    def _show(self) -> None:
        """The model as it is evaluated, to whoever wants to see it; its generators go on as they were."""
        show, every = self.placement.show, self.placement.show_every
        if show is None or not every or self.step % every or self.ranks.rank:
            return
        with self.keeper.averaged(), seeded(self.spec.seed):
            show(self.model.eval(), self.step)
        self.model.train()

    def spent(self) -> Spent:
        """What the run took of its machine, earlier sittings up to the state that it went on from included."""
        return self.before.and_then(self.meter.spent())

    # --- state ------------------------------------------------------------------------------------------------------

    def newest(self) -> State | None:
        """The newest state on the disk, if all ranks see the same one."""
        if self.checkpoints is None:
            return None
        state = self.checkpoints.newest(self.spec, self.branching, self.device, self.place)
        first, *others = self.ranks.gather(None if state is None else (state["by"], state["step"]))
        return state if all(other == first for other in others) else None

    def restore(self, state: State) -> bool:
        """Go on from `state`. False when it does not fit in one of the ranks: half-loaded, this run is of no use."""
        fits = True
        try:
            self._take(state)
        except Exception as error:  # torch has many words for what does not fit
            warnings.warn(f"a state does not fit ({error}); the run begins anew", UserWarning, stacklevel=2)
            fits = False
        return all(self.ranks.gather(fits))

    def _take(self, state: State) -> None:
        self.step, self.untrained = state["step"], state["untrained"]
        own = state["by"] == self.spec.key
        self.executed = state["executed"] if own else 0
        self.before = Spent(*state["spent"]) if own and "spent" in state else Spent()
        self.curve, self.recent = [(int(d), float(v)) for d, v in state["curve"]], list(state["recent"])
        self.pointed = state["pointed"]
        if "diverged" in state:
            self.stopped = self._became(state["diverged"])
            return
        self.precision = state.get("precision", self.precision)  # as it began, whatever this machine is faster at
        self.compiled = state.get("compiled", self.compiled)
        load_states(self.model, self.optimizer, state, self.ranks)
        self.keeper.restore(state["kept"], own=own)
        set_random_state(state["random"][self.ranks.rank], self.device)

    def _save(self, *, trunk: bool, diverged: float | None = None) -> None:
        assert self.checkpoints is not None
        held: State = {"diverged": diverged}
        if diverged is None:  # every rank takes part, the first one writes
            own = self.ranks.gather(random_state(self.device))
            held = {**states(self.model, self.optimizer, self.ranks), "random": own, "kept": self.keeper.state(),
                    "precision": self.precision, "compiled": self.compiled}  # fmt: skip
        if self.ranks.rank == 0:
            self.checkpoints.save(self.spec, {
                **held, "place": self.place, "step": self.step, "executed": self.executed, "untrained": self.untrained,
                "curve": self.curve, "recent": self.recent, "pointed": self.pointed, "spent": tuple(self.spent()),
            }, trunk=trunk)  # fmt: skip

    def _due(self, saved: float, saving: float) -> bool:
        """Whether a state should be kept now: not too often, and never for more than a share of the time."""
        if self.step == self.spec.steps or (self.ranks.count > 1 and self.step % STEPS_BETWEEN_CLOCKS):
            return False
        if self.placement.checkpoint_every:
            return self.step % self.placement.checkpoint_every == 0
        often = self.placement.checkpoint_seconds
        wait = max(often, saving / SAVING_SHARE) if often else -1.0
        return any(self.ranks.gather(time.monotonic() - saved > wait))

    def _note(self, loss: float) -> None:
        """One more training loss for the curve. On a trunk points lie equally far apart whoever trains it."""
        whole = self.spec.steps if self.spec.warmup_steps is None else self.spec.warmup_steps
        self.recent.append(loss)
        if self.step - self.pointed >= max(1, whole // CURVE_POINTS) or self.step == self.spec.steps:
            self.curve.append((self.step * self.spec.tokens // self.spec.steps, sum(self.recent) / len(self.recent)))
            self.recent.clear()
            self.pointed = self.step

    def _became(self, loss: float) -> str:
        spec = self.spec
        return f"the training loss became {loss} at step {self.step - 1} of {spec.steps} (learning rate {spec.lr:.3g})"


def thinned(curve: list[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """At most CURVE_POINTS points: neighbours are averaged, at the tokens of the last of them."""
    each = -(-len(curve) // CURVE_POINTS) if curve else 1
    groups = [curve[start : start + each] for start in range(0, len(curve), each)]
    return tuple((group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups)
