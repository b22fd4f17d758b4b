"""The source text of Python's own standard library: real data that every machine with Python already holds.

Files are split by a hash of their name, so that no file is on both sides, and read in one order everywhere.
Licence: PSF; nothing is copied into this repository. The text differs between Python versions, so the data hash
and the version are recorded with every result.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from flops_fit.data.windows import Windows
from flops_fit.errors import InputError

HELD_OUT = 0.06  # share of the files that are held out
OUTSIDE = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3", "ensurepip"}


def python_source(context: int) -> tuple[Windows, Windows]:
    """(training windows, held-out windows) over the standard library's own source."""
    training, held_out = _texts()
    return Windows(training, context), Windows(held_out, context)


def describe() -> str:
    training, held_out = _texts()
    return (
        f"source text of the standard library of Python {platform.python_version()}: "
        f"{len(training):,} bytes to train on, {len(held_out):,} held out by file"
    )


@cache
def _texts() -> tuple[Tensor, Tensor]:
    root = Path(sysconfig.get_paths()["stdlib"])
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        if OUTSIDE.isdisjoint(path.relative_to(root).parts):
            share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
            sides[share < HELD_OUT].append(path.read_bytes() + b"\0")
    if not all(sides):
        raise InputError(f"dataset: no Python source under {root}; install Python's standard library as source files")
    training, held_out = (torch.frombuffer(bytearray(b"".join(side)), dtype=torch.uint8) for side in sides)
    return training, held_out
