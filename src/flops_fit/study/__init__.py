"""A study: plan -> run -> law -> answer. `find_optimal` is the whole of it in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from flops_fit.runs.executors import Executor
from flops_fit.runs.watch import Watch, default_watch
from flops_fit.scaling.fit import DRAWS
from flops_fit.scaling.plan import SweepPlan
from flops_fit.scaling.result import Result
from flops_fit.scaling.rules import BatchRule, LrRule
from flops_fit.study.definition import Study
from flops_fit.study.sweep import Sweep
from flops_fit.train.options import TrainOptions
from flops_fit.train.synthetic import SyntheticTrainer

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Study", "Sweep", "find_optimal"]


def find_optimal(
    model_cls: Callable[..., nn.Module],
    model_size_param: str,
    model_kwargs: Mapping[str, Any] | None = None,
    dataset: Any = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    compute_budgets: Iterable[float] = (),
    *,
    objective: Callable[[nn.Module, Any], Tensor] | None = None,  # (model, batch) -> scalar, instead of loss_fn
    train: bool = True,                  # False: return the SweepPlan with its estimated cost, train nothing
    output_dir: str | os.PathLike[str] = "outputs",  # journal, result, plots and report go here
    resume: bool = True,                 # False: put an old journal aside and start anew
    held_out: Any = None,                # data to evaluate on; None: split off by hash
    sizes: Iterable[int] | None = None,  # these sizes at every budget; None: placed around the expected optimum
    size_multiple: int = 64,             # sizes are multiples of this
    sizes_per_budget: int = 5,
    tokens_per_param: float = 20.0,      # D/N around which the sizes are placed
    span: float = 3.0,                   # sizes reach from 1/span to span times that centre, in N
    max_epochs: float = 4.0,             # pairs that repeat the data more often are left out
    lr: Literal["auto"] | float | LrRule = "auto",         # "auto": coefficient of the rule measured by a probe
    batch_size: Literal["auto", "measure"] | int | BatchRule = "auto",  # samples a step, or a rule in D
    seed: int = 0,
    schedule: Literal["auto", "wsd", "wsd-branch"] = "auto",  # branches: all D of a size out of one run (Eq. P7)
    train_options: TrainOptions | None = None,
    micro_batch: int | None = None,      # samples through the model at once; gradients add up to the whole batch
    shard: bool | None = None,           # with ranks: split the parameters over them (FSDP2); None: when too large
    tokens_per_sample: int | None = None,  # units of D in a sample; None: T for integer inputs (B, T), else 1
    trainer: SyntheticTrainer | None = None,  # computes losses from a known law instead of training; openly marked
    executor: str | Executor = "local",  # "local" | "inline" | "processes" | "ranks" (share each run) | your own
    workers: int | None = None,          # processes; None: one for each core
    extend: int = 2,                     # rounds of extra sizes where an optimum lies at the edge of its group
    verify: float | None = None,         # train the predicted size at this many times the largest budget
    bootstrap: int = DRAWS,
    watch: Watch | None = None,          # None: progress on stderr
) -> Result | SweepPlan:
    """How big the model should be and how much data to train on, for each compute budget, from runs that happened.

    Args:
        model_cls: builds a `torch.nn.Module` with `num_params() -> int` from keyword arguments; no base class.
        model_size_param: name of the keyword argument that sets the size, for example "d_model".
        model_kwargs: the model's other arguments.
        dataset: map-style, iterable (never shuffled) or a DataLoader; samples of (inputs, targets) for `loss_fn`.
        loss_fn: (outputs, targets) -> scalar tensor. The model may return anything; the loss decides what it reads.
        compute_budgets: FLOPs of one training run each, forward and backward; at least three.

    Returns:
        Result with the law, the optima, `predict(compute)`, `chinchilla_table()`, `plot()` and `report()`;
        or, with `train=False`, the SweepPlan.

    Raises:
        InputError: the contract is broken or an argument cannot be used (nothing was trained).
        StudyMismatch: `output_dir` holds another study.
        FitError: too few runs succeeded for a law; they are in the journal.
    """
    study = Study(
        model_cls=model_cls, model_size_param=model_size_param, model_kwargs=dict(model_kwargs or {}), dataset=dataset,
        loss_fn=loss_fn, objective=objective, held_out=held_out, compute_budgets=tuple(compute_budgets),
        sizes=None if sizes is None else tuple(sizes), size_multiple=size_multiple, sizes_per_budget=sizes_per_budget,
        tokens_per_param=tokens_per_param, span=span, max_epochs=max_epochs, lr=lr, batch_size=batch_size, seed=seed,
        schedule=schedule, train_options=train_options, micro_batch=micro_batch, shard=shard,
        tokens_per_sample=tokens_per_sample, trainer=trainer,
    )  # fmt: skip
    sweep = Sweep(study, executor=executor, workers=workers, watch=watch or default_watch())
    if not train:
        return sweep.plan()
    return sweep.find(output_dir, resume=resume, extend=extend, verify=verify, bootstrap=bootstrap)
