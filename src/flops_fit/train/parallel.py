"""One run shared by several processes ("ranks"): each takes a part of every batch, gradients are added up (Eq. P7c).

The processes are started by an executor with torchrun's environment. Parameters are held whole by every rank, or split
over them (FSDP2) when one device is too small. User code sees its own model, not a wrapper, and needs no change.
"""

from __future__ import annotations

import atexit
import os
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flops_fit.errors import ContractError, FlopsFitError, InputError
from flops_fit.train.machine import out_of_memory

BYTES_PER_PARAM = 16    # fp32 weight, gradient and two moments
SHARE_OF_DEVICE = 0.6   # of its memory, that these may fill; activations need the rest
PATIENCE = timedelta(minutes=30)  # for the other ranks' part of a step: a first compilation, a state on a slow disk


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is. `Ranks()` is the only one."""

    rank: int = 0
    count: int = 1
    sharded: bool = False

    def cuts(self, batch_size: int, micro_batch: int | None) -> tuple[slice, ...]:
        """The parts of a batch that go through the model here, one after the other; equally many on every rank."""
        ends = [batch_size * r // self.count for r in range(self.count + 1)]
        largest = max(high - low for low, high in pairwise(ends))
        pieces = -(-largest // min(micro_batch or largest, largest))
        low, high = ends[self.rank], ends[self.rank + 1]
        marks = [low + (high - low) * k // pieces for k in range(pieces + 1)]
        parts = tuple(slice(a, b) for a, b in pairwise(marks))
        if self.sharded and any(part.start == part.stop for part in parts):
            raise InputError(
                f"batch_size: {batch_size} samples leave nothing for one of {self.count} ranks, which sharded models "
                "need; give a larger batch or fewer ranks"
            )
        return tuple(part for part in parts if part.start < part.stop)

    def add_up(self, parameters: Sequence[nn.Parameter], loss: Tensor, trouble: Exception | None) -> Tensor:
        """Gradients and loss summed over the ranks, in one message, which tells them of this one's trouble too.

        Raises:
            Exception: `trouble`, or, when another rank has met some, what `_raise_together` says.
        """
        if self.count == 1:
            return loss
        if self.sharded and trouble is not None and not out_of_memory(trouble):
            raise trouble  # at once: the others wait inside the model, where no message reaches them
        tail = torch.stack([loss.float(), loss.new_tensor(float(trouble is not None), dtype=torch.float32)])
        if self.sharded:  # gradients were summed by the backward pass
            dist.all_reduce(tail)
            self._raise_together(tail[1], trouble)
            return tail[0]
        used = loss.new_tensor([p.grad is not None for p in parameters], dtype=torch.float32)  # (P,)
        zeros = (torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters)
        whole = torch.cat([*(part.float() for part in zeros), used, tail])  # (N + P + 2,)
        dist.all_reduce(whole)
        *gradients, used, ended = whole.split([*(p.numel() for p in parameters), len(parameters), 2])
        self._raise_together(ended[1], trouble)
        for p, gradient, ranks_that_used_it in zip(parameters, gradients, used.tolist(), strict=True):
            if ranks_that_used_it:  # else the optimiser leaves it alone, as it would in one process
                p.grad = torch.empty_like(p).copy_(gradient.view_as(p))  # laid out as p, or fused AdamW mixes them up
        summed: Tensor = ended[0]
        return summed

    def sum(self, values: Iterable[float], device: torch.device, trouble: Exception | None) -> list[float]:
        """Numbers summed over the ranks that hold different parts of the data. Raises as `add_up` does."""
        if self.sharded and trouble is not None:
            raise trouble
        if self.sharded or self.count == 1:
            return list(values)
        total = torch.tensor([*values, float(trouble is not None)], dtype=torch.float64, device=device)
        dist.all_reduce(total)
        self._raise_together(total[-1], trouble)
        return [float(value) for value in total[:-1]]

    def _raise_together(self, failed: Tensor, trouble: Exception | None) -> None:
        """In every rank when any has failed, and of one kind in all: what runs out of memory is tried again by all.

        Raises:
            Exception: this rank's own trouble; else torch.OutOfMemoryError or FlopsFitError, with another rank's words.
        """
        if not failed.item():
            return
        mine = None if trouble is None else (out_of_memory(trouble), _words(trouble))
        met = [(*one, rank) for rank, one in enumerate(self.gather(mine)) if one is not None]
        memory, words, rank = min(met)  # False first: an error that will come again is worse than a lack of memory
        if trouble is not None and out_of_memory(trouble) == memory:
            raise trouble
        told = f"rank {rank} of this run met {words}"
        raise torch.OutOfMemoryError(told) if memory else FlopsFitError(told)

    def mine(self, number: int) -> bool:
        """Whether this rank evaluates held-out batch `number`; sharded models need every rank in every forward."""
        return self.sharded or number % self.count == self.rank

    def described(self, pieces: int) -> dict[str, str]:
        """What a machine did differently that ran a batch by so many ranks in so many pieces: for the record."""
        found = {"ranks": str(self.count)} if self.count > 1 else {}
        if self.sharded:
            found["sharded"] = "FSDP2"
        return found | ({"micro batches": str(pieces)} if pieces > 1 else {})

    def average_buffers(self, model: nn.Module) -> None:
        """Running statistics, of which every rank has seen its own samples, made equal."""
        for buffer in model.buffers() if self.count > 1 else ():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.count

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in their order."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found


class Trouble:
    """`with trouble:` keeps an Exception of user code for the ranks' next message, without which the others would wait
    for this one for ever. Alone it goes through."""

    def __init__(self, ranks: Ranks) -> None:
        self.shared = ranks.count > 1
        self.met: Exception | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not self.shared or not isinstance(error, Exception):
            return False
        self.met = self.met or error  # the first explains those that follow from it
        return True


def join(expected: int, device: torch.device) -> tuple[Ranks, torch.device]:
    """This process among the `expected` ranks, and its device.

    Raises:
        InputError: the environment or torch.distributed knows another number of processes, which would train on
            another batch than was asked for.
    """
    told = int(os.environ.get("WORLD_SIZE", "1")) if expected > 1 else 1
    if told != expected:
        raise InputError(
            f"ranks: asked for {expected}, but WORLD_SIZE says {told}; use executor='ranks', which starts that many"
        )
    if expected == 1:
        return Ranks(), device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        atexit.register(_leave)
    if dist.get_world_size() != expected:
        raise InputError(f"ranks: asked for {expected}, torch.distributed holds {dist.get_world_size()}")
    return Ranks(dist.get_rank(), expected), device


def place(model: nn.Module, ranks: Ranks, device: torch.device, shard: bool | None) -> Ranks:
    """Check that all ranks start from the same model, and split it over them when asked or needed (FSDP2)."""
    if ranks.count == 1:
        return ranks
    sums = ranks.gather([float(p.detach().double().sum()) for p in model.parameters()])
    if any(one != sums[0] for one in sums):
        raise ContractError(
            "model_cls: the ranks built different weights from one seed; draw initial weights with torch's generator"
        )
    if shard is None:
        shard = device.type == "cuda" and _too_large(model, device)
    if not shard:
        return ranks
    from torch.distributed.fsdp import fully_shard

    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block)
    fully_shard(model)
    return Ranks(ranks.rank, ranks.count, sharded=True)


def states(model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> dict[str, Any]:
    """{"model", "optimizer"}, whole tensors; on the CPU of rank 0 when sharded."""
    if not ranks.sharded:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = get_state_dict(model, optimizer, options=whole)
    return {"model": weights, "optimizer": moments}


def load_states(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], ranks: Ranks) -> None:
    """What `states` gave, put back."""
    if not ranks.sharded:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )  # fmt: skip


def _too_large(model: nn.Module, device: torch.device) -> bool:
    needed = BYTES_PER_PARAM * sum(p.numel() for p in model.parameters())
    return needed > SHARE_OF_DEVICE * torch.cuda.get_device_properties(device).total_memory


def _words(error: Exception) -> str:
    """What was raised, and the file and line where."""
    *_, frame = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
