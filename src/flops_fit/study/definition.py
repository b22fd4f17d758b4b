"""What a study is: everything the user chose, checked before anything trains, with an identity and conventions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from flops_fit.data.batches import MapSource, StreamSource, prepare
from flops_fit.errors import ContractError, InputError
from flops_fit.scaling.plan import SCHEDULES, PlanRules, check_budgets
from flops_fit.scaling.rules import BatchRule, LrRule
from flops_fit.train.contract import check_class, check_probe
from flops_fit.train.identity import code_hash
from flops_fit.train.loss import Objective, unit_of
from flops_fit.train.measure import Measurer
from flops_fit.train.options import BRANCHED, TrainOptions
from flops_fit.train.precision import precision_of
from flops_fit.train.synthetic import SyntheticTrainer

if TYPE_CHECKING:
    from torch import Tensor, nn

PROBE_SAMPLES = 2

@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that `find_optimal` takes, checked and described once. See there for the members."""

    model_cls: Callable[..., nn.Module]
    model_size_param: str
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    dataset: Any
    loss_fn: Callable[[Any, Any], Tensor] | None = None
    objective: Callable[[nn.Module, Any], Tensor] | None = None
    held_out: Any = None
    compute_budgets: tuple[float, ...]
    sizes: tuple[int, ...] | None = None
    size_multiple: int = 64
    sizes_per_budget: int = 5
    tokens_per_param: float = 20.0
    span: float = 3.0
    max_epochs: float = 4.0
    lr: Literal["auto"] | float | LrRule = "auto"
    batch_size: Literal["auto", "measure"] | int | BatchRule = "auto"
    seed: int = 0
    schedule: Literal["auto", "wsd", "wsd-branch"] = "auto"
    train_options: TrainOptions | None = None
    micro_batch: int | None = None
    shard: bool | None = None
    tokens_per_sample: int | None = None
    trainer: SyntheticTrainer | None = None
    describe_data: str = ""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A study that passed its checks, with all that planning and training need."""

    study: Study
    budgets: tuple[float, ...]
    source: MapSource | StreamSource
    objective: Objective
    measurer: Measurer
    unit: Literal["tokens", "samples"]
    device: torch.device
    options: TrainOptions
    branch: bool

    def scheduled(self, *, branch: bool) -> Prepared:
        """The same study with one trunk a size and branches off it, or with runs of their own."""
        default = BRANCHED if branch else TrainOptions()
        return replace(self, branch=branch, options=self.study.train_options or default)

    @property
    def identity(self) -> dict[str, Any]:
        """All that makes two studies different; budgets, sizes, batch and learning rate are in each RunSpec."""
        study = self.study
        return {
            "model": {"name": _name(study.model_cls), "code": code_hash(study.model_cls)},
            "size_param": study.model_size_param,
            "model_kwargs": {name: _value(value) for name, value in sorted(self.measurer.model_kwargs.items())},
            "loss": {"name": _name(self.objective.function), "code": code_hash(self.objective.function)},
            "data": self.source.fingerprint,
            "collate": code_hash(self.source.collate),
            "held_out": self.source.held_out_from,
            "schedule": "wsd-branch" if self.branch else "wsd",
            "train_options": {**self.options.identity(), "device": self.device.type},
            "tokens_per_sample": self.measurer.tokens_per_sample,
            "trainer": repr(study.trainer) if study.trainer else "engine",
        }

    def conventions(self, rules: PlanRules, longest: int, counted: Iterable[str], lr_note: str) -> dict[str, str]:
        """How the numbers came about, for the checklist that every result prints.

        `longest` is the largest D of the sweep, `counted` how FLOPs were.
        """
        options, passes = self.options, longest / rules.unique_tokens
        data = self.study.describe_data or type(self.study.dataset).__name__
        return {
            "params N": "every trainable parameter, embeddings included, by num_params()",
            "FLOPs": f"forward and backward, a multiply-add is 2, {' / '.join(sorted(set(counted)))}; C = f(N) D",
            "D": f"{self.unit} trained on, after rounding to whole steps"
            + (f"; the longest run passes {passes:.2g} times over the data" if passes else ""),
            "loss": f"mean {_name(self.objective.function)} on held-out samples, the same for all runs",
            "data set": f"{data}; hash {self.source.fingerprint}",
            "held out": self.source.held_out_from,
            "optimizer": f"AdamW, betas {options.beta1:g} {options.beta2:g}, weight decay {options.weight_decay:g} on "
            f"matrices, gradient norm <= {options.clip:g}",
            "schedule": self._schedule,
            "learning rate": f"{rules.lr}{lr_note}",
            "batch": str(rules.batch),
            "precision": precision_of(options.precision, self.device),
            "seed": str(self.study.seed),
        }

    @property
    def _schedule(self) -> str:
        options = self.options
        fall = "linear" if options.shape == "linear" else "as 1 - sqrt"
        end = f"stable, {fall} to 0 in the last {options.decay:.0%}"
        if self.branch:
            return f"a trunk for each size, warmup {options.warmup:.0%} of its shortest run; a branch for each D, {end}"
        return f"warmup {options.warmup:.0%} of the run, {end}"


def prepare_study(study: Study) -> Prepared:
    """Check everything that can be checked without training.

    Raises:
        ContractError: with all breaches of class, data, loss and budgets, one a line.
    """
    found: dict[str, Any] = {}
    breaches: list[str] = []
    checks: dict[str, Callable[[], Any]] = {
        "class": lambda: check_class(study.model_cls, study.model_size_param, study.model_kwargs),
        "data": lambda: prepare(study.dataset, study.held_out),
        "loss": lambda: Objective(study.loss_fn, study.objective),
        "seed": lambda: _check_seed(study.seed),
        "schedule": lambda: _check_schedule(study.schedule),
        "budgets": lambda: check_budgets(study.compute_budgets),
    }
    for name, check in checks.items():
        try:
            found[name] = check()
        except InputError as error:
            breaches.append(str(error))
    if breaches:
        raise ContractError("\n".join(breaches))
    batch = next(found["data"].batches(PROBE_SAMPLES, seed=0))
    unit, tokens_per_sample = unit_of(batch)
    kwargs = {key: value for key, value in study.model_kwargs.items() if key != study.model_size_param}
    if study.tokens_per_sample is not None:
        unit, tokens_per_sample = "tokens", study.tokens_per_sample
    measurer = Measurer(study.model_cls, study.model_size_param, kwargs, found["loss"], batch, tokens_per_sample)
    options = study.train_options or (TrainOptions() if study.schedule == "wsd" else BRANCHED)
    device = options.torch_device()
    check_probe(measurer, study.sizes or [study.size_multiple * k for k in (1, 2, 4)], device)
    return Prepared(
        study=study, budgets=found["budgets"], source=found["data"], objective=found["loss"], measurer=measurer,
        unit=unit, device=device, options=options, branch=study.schedule != "wsd",
    )  # fmt: skip


def _value(value: Any) -> str:
    """A model argument in the identity: plain values as written, all else by a hash of its code and content."""
    return repr(value) if isinstance(value, (int, float, str, bool, type(None))) else code_hash(value)


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed: got {seed!r}; allowed is a whole number from 0 on")


def _check_schedule(schedule: str) -> None:
    if schedule not in SCHEDULES:
        raise InputError(
            f'schedule: got {schedule!r}; allowed are "wsd" (each run by itself), "wsd-branch" (a trunk for each size, '
            'a decay branched off it for each D) and "auto" (branches where they save)'
        )


def _name(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))
