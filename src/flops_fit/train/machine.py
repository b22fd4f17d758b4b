"""The machine that a run is on: threads, memory, what can change the last digits, and how fast it multiplies."""

from __future__ import annotations

import gc
import math
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from flops_fit.errors import InputError
from flops_fit.train.precision import precision_of

ASK_SECONDS = 60.0  # between two looks at counters that begin anew after a quarter of an hour or more
MICRO, MILLI = 1e6, 1e3  # of what counters count, to a joule


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
    """What is spent from its making on. Ask at least every few minutes: counters of energy begin anew after some."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self.counters = counters
        self.begun = time.perf_counter(), time.process_time()
        self.seen = [one.read() for one in counters]
        self.joules = 0.0
        self.asked = self.begun[0]

    def spent(self) -> Spent:
        for place, one in enumerate(self.counters):
            now = one.read()
            self.joules += (now - self.seen[place]) % one.wraps if one.wraps else now - self.seen[place]
            self.seen[place] = now
        self.asked = time.perf_counter()
        began, cpu = self.begun
        return Spent(self.asked - began, time.process_time() - cpu, self.joules if self.counters else None)

    def keep_up(self) -> None:
        """Ask if it is time."""
        if self.counters and time.perf_counter() - self.asked > ASK_SECONDS:
            self.spent()


class Counter(NamedTuple):
    """Joules since some time, and the count at which it begins anew; 0: it never does."""

    read: Callable[[], float]
    wraps: float


def energy_counters(device: torch.device, powercap: Path = Path("/sys/class/powercap")) -> list[Counter]:
    """Of each package of the CPU by Linux's powercap, which only root may read on most machines, and of the CUDA device
    by NVML. Empty where one of them does not tell: a part of the energy is not the energy."""
    found = []
    try:
        for package in sorted(powercap.glob("intel-rapl:?")):
            wraps = int((package / "max_energy_range_uj").read_text()) / MICRO
            one = Counter(partial(_microjoules, package / "energy_uj"), wraps)
            one.read()
            found.append(one)
    except (OSError, ValueError):
        return []
    if not found or device.type != "cuda":
        return found
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # not installed, or a device or driver without a counter: NVML has errors of its own
        return []
    return [*found, Counter(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / MILLI, 0.0)]


def _microjoules(file: Path) -> float:
    return int(file.read_text()) / MICRO


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


def environment(device: torch.device, precision: str) -> dict[str, str]:
    """Where a run ran: what can change its last digits."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "precision": precision,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def matmul_peak(threads: int, size: int = 1536, seconds: float = 1.0, kind: torch.dtype = torch.float32) -> float:
    """FLOP/s of a large matrix product on `threads` CPU threads, the best of repeated products."""
    a = torch.randn(size, size, dtype=kind)
    best, until = math.inf, time.perf_counter() + seconds
    with cpu_threads(threads):
        while time.perf_counter() < until:
            started = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def device_report() -> dict[str, str]:
    """What training would run on, and how fast the CPU multiplies matrices."""
    device = device_of("auto")
    where = environment(device, precision_of("auto", device))
    found = {"device": where["device"], "precision": where["precision"]}
    for threads in sorted({1, torch.get_num_threads()}):
        for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            peak = matmul_peak(threads, kind=kind)
            found[f"{name} {threads} thread{'s' * (threads > 1)}"] = f"{peak / 1e9:.0f} GFLOP/s"
    return found
