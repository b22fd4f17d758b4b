"""The numbers that a run multiplies: float32, or bfloat16 under autocast over weights in float32."""

from __future__ import annotations

import time
from functools import cache

import torch

from flops_fit.errors import InputError

PRECISIONS = ("auto", "fp32", "fast")  # auto: bfloat16 on CUDA; fast: also on CPUs that multiply it faster
HALF = "bf16 autocast"
SIZE, TIMES = 768, 8  # of the matrices that are multiplied to see it, and how often: a tenth of a second or two
FASTER = 1.5  # so much at least, since casts cost too


def precision_of(asked: str, device: torch.device) -> str:
    """"fp32", or HALF. Raises InputError for an unknown name."""
    if asked not in PRECISIONS:
        raise InputError.unknown("precision", asked, PRECISIONS)
    if asked == "fp32":
        return asked
    return HALF if device.type == "cuda" or (asked == "fast" and half_is_faster()) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == HALF)


@cache
def half_is_faster() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 faster than of float32 (AVX-512 BF16 and AMX do), measured."""
    square = {kind: torch.ones(SIZE, SIZE, dtype=kind) for kind in (torch.float32, torch.bfloat16)}
    taken = [{kind: _seconds(a) for kind, a in square.items()} for _ in range(TIMES)]  # in turns: others run here too
    fastest = {kind: min(one[kind] for one in taken) for kind in square}
    return fastest[torch.float32] > FASTER * fastest[torch.bfloat16]


def _seconds(a: torch.Tensor) -> float:
    began = time.perf_counter()
    a @ a
    return time.perf_counter() - began
