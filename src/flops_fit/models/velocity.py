"""Velocity networks by name and size: the table of what there is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from flops_fit.errors import InputError
from flops_fit.models.dit import DiTVelocityNetwork
from flops_fit.models.mlp import SimpleMLP
from flops_fit.models.ssm import StateSpaceNetwork
from flops_fit.models.unet import UNetMLP


class Architecture(NamedTuple):
    """A class with `hidden` as its size parameter, and arguments by name of size; "base" is the class's defaults."""

    model: Callable[..., nn.Module]
    sizes: Mapping[str, Mapping[str, int]]


ARCHITECTURES = {
    "mlp": Architecture(SimpleMLP, {"tiny": {"hidden": 64}, "small": {"hidden": 128}, "base": {"hidden": 256}}),
    "dit": Architecture(DiTVelocityNetwork, {
        "tiny": {"hidden": 96, "layers": 2, "heads": 2}, "small": {"hidden": 192, "heads": 4}, "base": {"hidden": 384},
    }),
    "dit-chunked": Architecture(partial(DiTVelocityNetwork, tokens=16), {
        "tiny": {"hidden": 96, "layers": 2, "heads": 2}, "small": {"hidden": 192, "heads": 4}, "base": {"hidden": 384},
    }),
    "unet": Architecture(UNetMLP, {"tiny": {"hidden": 128}, "small": {"hidden": 304}, "base": {"hidden": 608}}),
    "ssm": Architecture(StateSpaceNetwork, {
        "tiny": {"hidden": 64, "layers": 2}, "small": {"hidden": 128}, "base": {"hidden": 256},
    }),
}  # fmt: skip


COUNTS = ("hidden", "dim", "layers", "heads", "tokens")  # arguments that are whole numbers


def create_model(name: str, size: str = "base", **arguments: Any) -> nn.Module:
    """A fresh velocity network: `forward(x (B, D), t (B,)) -> (B, D)`, `num_params()`.

    Args:
        name: mlp | dit | dit-chunked | unet | ssm.
        size: tiny | small | base.
        arguments: of the class, instead of those of the size: hidden, dim, ...

    Raises:
        InputError: an unknown name, size or argument (the nearest ones are named), or values that do not go together.
    """
    if name not in ARCHITECTURES:
        raise InputError.unknown("architecture", name, ARCHITECTURES)
    model, sizes = ARCHITECTURES[name]
    if size not in sizes:
        raise InputError.unknown("size", size, sizes)
    allowed = list(inspect.signature(model).parameters)
    for argument in arguments:
        if argument not in allowed:
            raise InputError.unknown(f"argument of {name}", argument, allowed)
    chosen = {**sizes[size], **arguments}
    for argument, value in chosen.items():
        if argument in COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{argument} of {name}: got {value!r}; allowed is a whole number from 1 on")
    try:
        return model(**chosen)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from error
