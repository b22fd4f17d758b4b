"""The optimiser of every run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from flops_fit.errors import ContractError
from flops_fit.train.muon import Muon, hidden_matrices
from flops_fit.train.options import TrainOptions


def optimiser(model: nn.Module, options: TrainOptions) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), fused; weight decay on tensors of two or more dimensions. Or Muon on the
    matrices of blocks, and AdamW on everything else.

    A model may offer `lr_factors() -> {parameter name: factor of the run's learning rate}`, as maximal-update
    parameterisations need (Yang et al. 2022, arXiv 2203.03466); a name that it leaves out has factor 1.
    """
    muon = hidden_matrices(model) if options.optimizer == "muon" else frozenset()
    factors = lr_factors(model)
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim >= 2, factors.get(name, 1.0), name in muon].append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (not item[0][0], item[0][1:]))
    told: list[dict[str, Any]] = [
        {"params": alike, "weight_decay": options.weight_decay if decays else 0.0, "factor": factor, "muon": turned}
        for (decays, factor, turned), alike in ordered
    ]
    made = Muon if options.optimizer == "muon" else torch.optim.AdamW
    return made(told, lr=0.0, betas=(options.beta1, options.beta2), eps=options.eps, fused=True)


def lr_factors(model: nn.Module) -> dict[str, float]:
    """What the model's `lr_factors()` says, or {}. Raises ContractError for a name that the model does not have."""
    tell = getattr(model, "lr_factors", None)
    told = {} if tell is None else {str(name): float(factor) for name, factor in tell().items()}
    unknown = told.keys() - {name for name, _ in model.named_parameters()}
    wrong = [name for name, factor in told.items() if not 0 < factor < float("inf")]
    if unknown or wrong:
        name = min(unknown or set(wrong))
        what = "the model has no such parameter" if unknown else f"its factor is {told[name]}"
        raise ContractError(
            f"model_cls: lr_factors() names {name!r}: {what}; "
            "give a positive factor for names out of named_parameters()"
        )
    return told


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
