"""States of unfinished runs on the disk: a killed run goes on bit-identically, and a branch starts from its trunk.

    run-<key>.pt      the newest state of one run
    trunk-<lane>.pt   the furthest state at which a run of that lane began to decay: the next, longer one begins there;
                      or a mark, without weights, of the step at which the lane diverged: there the longer one ends too

A state that is missing, torn, of another version or of another number of ranks only costs time: the run begins at an
earlier one, or anew.
"""

from __future__ import annotations

import contextlib
import os
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flops_fit.records import RunSpec, content_hash

FORMAT = 3

State = dict[str, Any]
"""format, by (key of the run that saved it), and what the run tells: place (how many ranks on what: generators are kept
for each), step (steps done), curve, ..., and either weights, moments and generators or `diverged`, the loss it had."""


@dataclass(frozen=True)
class Checkpoints:
    """The states under one folder. Saving and loading never raise for a bad disk: a state is a convenience."""

    folder: Path

    def newest(self, spec: RunSpec, trunk_until: int, device: torch.device, place: str) -> State | None:
        """The state with the most steps from which `spec` can go on here; of its trunk up to step `trunk_until`."""
        paths = [self._run(spec), *([self._trunk(spec)] if spec.lane else [])]
        found = [state for path in paths if (state := _load(path, device, place)) is not None]
        usable = [state for state in found if state["by"] == spec.key or state["step"] <= trunk_until]
        return max(usable, key=lambda state: int(state["step"]), default=None)

    def save(self, spec: RunSpec, state: State, *, trunk: bool) -> None:
        """Replace the newest state of this run, or that of its trunk unless that lies further on."""
        path = self._trunk(spec) if trunk else self._run(spec)
        if trunk:
            before = _load(path, torch.device("cpu"), state["place"], mmap=True)  # its numbers, not its tensors
            if before is not None and before["step"] > state["step"]:
                return  # of a longer run, which was there first
        try:
            _write(path, {"format": FORMAT, "by": spec.key, **state})
        except (OSError, RuntimeError) as error:  # torch's writer tells a full disk as RuntimeError
            warnings.warn(f"a run's state could not be kept ({error}); it goes on without", UserWarning, stacklevel=2)

    def forget(self, spec: RunSpec) -> None:
        """The run is recorded: its own state is no longer needed."""
        self._run(spec).unlink(missing_ok=True)

    def kept(self, spec: RunSpec) -> bool:
        """Whether there is a state of the run's own to go on from."""
        return self._run(spec).exists()

    def tidy(self, failed: Sequence[RunSpec] = ()) -> None:
        """The study is finished, but for runs that failed: the next call goes on with those. Trunks stay: a budget that
        is added later goes on from them; 12 bytes a parameter."""
        self._remove("run-*", "*.new", but=[self._run(spec) for spec in failed])

    def clear(self) -> None:
        """The study begins anew: no state and no mark of before may be used."""
        self._remove("run-*", "trunk-*", "*.new")

    def _remove(self, *patterns: str, but: Sequence[Path] = ()) -> None:
        for left in (path for pattern in patterns for path in self.folder.glob(pattern)):
            if left not in but:
                left.unlink(missing_ok=True)

    def _run(self, spec: RunSpec) -> Path:
        return self.folder / f"run-{spec.key}.pt"

    def _trunk(self, spec: RunSpec) -> Path:
        return self.folder / f"trunk-{content_hash(spec.lane)}.pt"


def random_state(device: torch.device) -> dict[str, Any]:
    """Python's, numpy's and torch's global generators, that of `device` too, as plain values and tensors."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), keys.tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def _load(path: Path, device: torch.device, place: str, *, mmap: bool = False) -> State | None:
    try:
        state: State = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except Exception:  # torn, foreign or absent: whatever torch says of it, the run can begin without
        return None
    usable = isinstance(state, dict) and (state.get("format"), state.get("place")) == (FORMAT, place)
    return state if usable else None


def _write(path: Path, state: State) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.new")
    try:
        with unfinished.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)  # a kill leaves the old state or the new one, never half of one
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
