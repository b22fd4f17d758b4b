"""The machine that a run is on: threads, memory, what can change the last digits, and how fast it multiplies."""

from __future__ import annotations

import gc
import math
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch

from flops_fit.errors import InputError


def device_of(name: str) -> torch.device:
    """The device of that name; "auto": CUDA when there. Raises InputError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device: got {name!r}; allowed are 'auto', 'cpu', 'cuda', 'cuda:N'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device: got {name!r}, but this torch sees no CUDA device; use 'auto' or 'cpu'")
    return device


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """torch on that many threads inside; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory(device: torch.device) -> int:
    """Bytes since `forget_peak`: the most that CUDA allocated, or the largest resident size of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):  # not ru_maxrss: a process that was started by vfork and exec begins with its parent's
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: torch.device) -> None:
    """Count `peak_memory` from here on, so that what loading took once is in no run's account. Linux and CUDA only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # another system: the peak is that of the process's life, an upper bound
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets the peak resident set size


class Spent(NamedTuple):
    """What a run took of its machine."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0      # of all threads of this process
    joules: float | None = 0.0    # of the whole machine; None: it does not tell them

    def and_then(self, later: Spent) -> Spent:
        """Both together."""
        unknown = self.joules is None or later.joules is None
        joules = None if unknown else (self.joules or 0.0) + (later.joules or 0.0)
        return Spent(self.seconds + later.seconds, self.cpu_seconds + later.cpu_seconds, joules)


class Meter:
    """What is spent from its making on."""

    def __init__(self, device: torch.device) -> None:
        self.counters = energy_counters(device)
        self.begun = self._now()

    def spent(self) -> Spent:
        clock, cpu, joules = self._now()
        began, cpu_before, before = self.begun
        turns = zip(joules, before, self.counters, strict=True)
        used = sum((now - then) % wraps if wraps else now - then for now, then, (_, wraps) in turns)
        return Spent(clock - began, cpu - cpu_before, used if self.counters else None)

    def _now(self) -> tuple[float, float, list[float]]:
        return time.perf_counter(), time.process_time(), [read() for read, _ in self.counters]


def energy_counters(device: torch.device) -> list[tuple[Callable[[], float], float]]:
    """(joules since some time, the count at which it begins anew, or 0) of each part that counts them: packages of the
    CPU by Linux's powercap, if one may read it, and the CUDA device by NVML. Empty where a part does not tell."""
    found: list[tuple[Callable[[], float], float]] = []
    with suppress(OSError, ValueError):
        for package in sorted(Path("/sys/class/powercap").glob("intel-rapl:?")):
            file, wraps = package / "energy_uj", int((package / "max_energy_range_uj").read_text()) / 1e6
            file.read_text()
            found.append((lambda file=file: int(file.read_text()) / 1e6, wraps))  # type: ignore[misc]
    if device.type == "cuda":
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except Exception:  # not installed, or a device or driver without a counter: NVML has errors of its own
            return []
        found.append((lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0))
    return found


def free_memory() -> None:
    """Give back what the last run held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on a device, on the CPU (which torch tells by text alone), or in Python."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def environment(device: torch.device) -> dict[str, str]:
    """Where a run ran: what can change its last digits."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "precision": "bf16 autocast" if device.type == "cuda" else "fp32",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def matmul_peak(threads: int, size: int = 1536, seconds: float = 1.0) -> float:
    """FLOP/s of a large fp32 matrix product on `threads` CPU threads, the best of repeated products."""
    a = torch.randn(size, size)
    best, until = math.inf, time.perf_counter() + seconds
    with cpu_threads(threads):
        while time.perf_counter() < until:
            started = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def device_report() -> dict[str, str]:
    """What training would run on, and how fast the CPU multiplies matrices."""
    where = environment(device_of("auto"))
    found = {"device": where["device"], "precision": where["precision"]}
    for threads in sorted({1, torch.get_num_threads()}):
        found[f"fp32 {threads} thread{'s' * (threads > 1)}"] = f"{matmul_peak(threads) / 1e9:.0f} GFLOP/s"
    return found
