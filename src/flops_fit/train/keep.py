"""What a run keeps beside its newest weights: their average, looks at the held-out loss, the best weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flops_fit.errors import InputError
from flops_fit.models import weights
from flops_fit.records import RunSpec
from flops_fit.train.ema import PowerEMA, shares
from flops_fit.train.options import TrainOptions
from flops_fit.train.parallel import Ranks

BEST, LAST, SNAPSHOTS = "best", "last", "snapshots"  # folders of weights
KEPT_LENGTHS = (0.05, 0.10)  # of the averages in snapshots, of which others are made (Karras et al. 2024)


def averaged_after(folder: Path, step: int, length: float) -> dict[str, Tensor]:
    """The average of `length` at `step`, from the snapshots that a run left in its folder (T1c).

    Raises:
        InputError: it left none.
    """
    found = [weights.read(one) for one in sorted((folder / SNAPSHOTS).glob("*"))]
    of = shares([(about["step"], about["length"]) for _, about in found], step, length)
    names = found[0][0]
    return {
        name: sum((x * tensors[name] for x, (tensors, _) in zip(of.tolist(), found, strict=True)), torch.tensor(0.0))
        if value.is_floating_point() else value
        for name, value in names.items()
    }  # fmt: skip


class Keeper:
    """Follows one run. Without an average, looks or a folder it does nothing."""

    def __init__(self, model: nn.Module, spec: RunSpec, options: TrainOptions, folder: Path | None,
                 ranks: Ranks) -> None:  # fmt: skip
        self.model, self.spec, self.patience = model, spec, options.patience
        self.folder = folder if ranks.rank == 0 else None
        if ranks.sharded and (options.ema or folder is not None):
            raise InputError("ema, weights: not with a model that is split over ranks; give shard=False, or do without")
        self.ema = PowerEMA(model, options.ema) if options.ema else None
        looks = options.looks
        self.looks = {math.ceil(spec.steps * k / looks) for k in range(1, looks + 1)} if looks else set()
        some = options.snapshots if self.folder is not None else 0
        self.shots = {math.ceil(spec.steps * k / some) for k in range(1, some + 1)} if some else set()
        self.tracked = [PowerEMA(model, length) for length in KEPT_LENGTHS] if some else []
        self.seen: list[tuple[int, float]] = []  # (D, held-out loss) of every look
        self.best = math.inf
        self.waited = 0  # looks since the best one

    def after(self, step: int, evaluate: Callable[[], float]) -> str:
        """After optimiser step `step`, counted from 1. Returns "" or why the run should end here."""
        if self.ema is not None:
            self.ema.update(self.model, step)
        for average in self.tracked:
            average.update(self.model, step)
        if step in self.shots:
            self._snapshot(step)
        if step not in self.looks:
            return ""
        loss = evaluate()
        self.seen.append((step * self.spec.tokens // self.spec.steps, loss))
        if loss < self.best:
            self.best, self.waited = loss, 0
            self._write(BEST, step, loss)
        else:
            self.waited += 1
        if self.patience and self.waited >= self.patience:
            return f"the held-out loss has not fallen below {self.best:.4g} in {self.waited} looks"
        return ""

    def finish(self, step: int, loss: float) -> None:
        """Keep the last weights; without looks they are the best as well."""
        self._write(LAST, step, loss)
        if not self.looks:
            self._write(BEST, step, loss)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights inside, if there is an average."""
        if self.ema is None:
            yield
            return
        with self.ema.applied(self.model):
            yield

    def state(self) -> dict[str, Any]:
        average = {} if self.ema is None else self.ema.average
        tracked = [one.average for one in self.tracked]
        return {"seen": self.seen, "best": self.best, "waited": self.waited, "average": average, "tracked": tracked}

    def restore(self, state: dict[str, Any], own: bool) -> None:
        """`own`: the state is of this very run, not of a shorter one of its trunk, which looked at other steps."""
        if own:
            self.seen = [(int(tokens), float(loss)) for tokens, loss in state["seen"]]
            self.best, self.waited = state["best"], state["waited"]
        if self.ema is not None:
            self.ema.restore(state["average"])
        for one, average in zip(self.tracked, state.get("tracked", ()), strict=True):
            one.restore(average)

    def _snapshot(self, step: int) -> None:
        assert self.folder is not None
        for length, one in zip(KEPT_LENGTHS, self.tracked, strict=True):
            with one.applied(self.model):
                about = {"step": step, "length": length}
                weights.save(self.folder / SNAPSHOTS / f"{step}-{length:g}", self.model.state_dict(), about)

    def _write(self, name: str, step: int, loss: float) -> None:
        if self.folder is None:
            return
        with self.averaged():
            weights.save(self.folder / name, self.model.state_dict(), {"step": step, "held_out_loss": loss})
