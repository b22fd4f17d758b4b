"""What `flops-fit bench BUNDLE` times, by the kind of bundle. What could not be timed is absent, with the reason.

    torch          the bundle as it was loaded
    compiled       the same, its network through torch.compile, for each batch size anew; what is around the network
                   stays as it was
    onnxruntime    model.onnx of the bundle's folder, on inputs as it asks for them

The home of onnxruntime.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flops_fit.data.codecs import Embedded
from flops_fit.errors import InputError, MissingExtra
from flops_fit.evaluate.latency import MS, TOLD, Call, Timing, check_rounds, latencies, needed
from flops_fit.flow.solvers import FIXED
from flops_fit.models import weights
from flops_fit.recipes import cats, codec
from flops_fit.recipes.works import KINDS, Kind, Works
from flops_fit.train.machine import cpu_threads, device_of, forget_peak, out_of_memory, peak_memory

PLAIN, COMPILED, ONNX = "torch", "compiled", "onnxruntime"
ONNX_FILE = "model.onnx"
NUMBERS = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
}  # fmt: skip
MOST_RUNS, SECONDS = 100, 10.0  # where nobody says how many runs
MOST_AT_ONCE = 2**20


@dataclass(frozen=True)
class Conditions:
    """How a bundle is timed.

    Args:
        batch_sizes: what goes in at once.
        runs: of each; None: as many rounds as fit into 10 seconds, 2 to 100, and no longer warm-up than that.
        warmup: runs of each before them.
        threads: of the CPU; None: as torch has it.
        steps: of the solver; None: the bundle's own.
        compiled: through torch.compile too.
        device: cpu, cuda, cuda:N, or auto.

    Raises:
        InputError: a number that cannot be.
    """

    batch_sizes: tuple[int, ...] = (1, 8, 32)
    runs: int | None = None
    warmup: int = 3
    threads: int | None = None
    steps: int | None = None
    compiled: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_rounds(MOST_RUNS if self.runs is None else self.runs, self.warmup)
        wrong = [size for size in self.batch_sizes if not 0 < size <= MOST_AT_ONCE]
        if wrong or not self.batch_sizes:
            got = wrong[0] if wrong else "none"
            raise InputError(f"batch_sizes: got {got}; allowed are whole numbers from 1 to {MOST_AT_ONCE:,}")
        for name in ("threads", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: got {value}; allowed is a whole number from 1 on")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of work by one backend."""

    work: str
    batch_size: int
    backend: str
    timing: Timing
    first_ms: float  # the first call of this row, with compiling, unless torch or a row before had that in a cache
    times_faster: float | None  # than plain torch in the same rounds; of compiled, which is known to do the same

    def to_json(self) -> dict[str, Any]:
        faster = {} if self.times_faster is None else {"times_faster": self.times_faster}
        return {
            "work": self.work, "batch_size": self.batch_size, "backend": self.backend, **self.timing.to_json(),
            "items_per_second": self.timing.per_second(self.batch_size), **faster, "first_ms": self.first_ms,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What was timed of a bundle, where, and what is absent."""

    bundle: str
    kind: str
    item: str  # what there is a number of a second
    model_sha256: str  # of weights and config
    parameters: int
    files: Mapping[str, Mapping[str, Any]]  # bytes and sha256 of each
    sampling: Mapping[str, Any]  # method and steps of the solver, and what else; empty where nothing is sampled
    machine: Mapping[str, Any]
    rows: tuple[Row, ...]
    peak_memory_bytes: int  # in runs that count: of the process with all its backends, or what it has on the GPU
    absent: Mapping[str, str]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle, "kind": self.kind, "item": self.item, "model_sha256": self.model_sha256,
            "parameters": self.parameters, "files": {name: dict(told) for name, told in self.files.items()},
            "sampling": dict(self.sampling),
            "machine": dict(self.machine), "timings": [row.to_json() for row in self.rows],
            "peak_memory_bytes": self.peak_memory_bytes, "absent": dict(self.absent), "notes": list(self.notes),
        }  # fmt: skip

    def __str__(self) -> str:
        at = self.machine
        size = self.files[weights.WEIGHTS]["bytes"] / 1e6
        lines = [
            f"{self.bundle}: {self.parameters:,} parameters, weights of {size:.1f} MB, {self.model_sha256[:12]}",
            f"{at['name']}, threads: {at['threads']}, load before: {at['load']:.1f}, torch {at['torch']}",
            *_table(self.rows, self.item),
            f"peak memory: {self.peak_memory_bytes / 1e6:,.0f} MB",
        ]
        if self.sampling:
            lines.append("sampling: " + ", ".join(f"{name} {value}" for name, value in self.sampling.items()))
        lines += [f"{name} absent: {reason}" for name, reason in self.absent.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _table(rows: Sequence[Row], item: str) -> list[str]:
    """Aligned columns; a dash for what a row has too few runs for."""
    times = [f"p{100 * share:.0f} ms" for share in TOLD]
    cells = [["work", "batch", "backend", *times, f"{item}s/s", "faster", "runs", "first ms"]]
    for row in rows:
        told = [row.timing.quantile(share) for share in TOLD]
        cells.append([
            row.work, str(row.batch_size), row.backend, *("-" if ms is None else f"{ms:,.2f}" for ms in told),
            f"{row.timing.per_second(row.batch_size):,.1f}",
            "-" if row.times_faster is None else f"{row.times_faster:.2f}x", str(row.timing.runs),
            f"{row.first_ms:,.0f}",
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = (0, 2)  # columns of these; the others are numbers
    return [
        "  ".join(f"{cell:{'<' if i in words else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in cells
    ]


def benchmark(
    bundle: str, conditions: Conditions | None = None, tell: Callable[[str], object] = lambda _: None
) -> Benchmark:
    """Time what a bundle does, all backends in every round.

    Args:
        bundle: a folder, or the name of a bundle that comes with flops-fit.
        tell: hears what is timed next.

    Raises:
        InputError: a bundle of an unknown kind, conditions that do not go with it, or too little memory.
    """
    asked, folder = conditions or Conditions(), weights.located(bundle)
    name = str(weights.read(folder)[1].get("kind"))
    if name not in KINDS:
        raise InputError.unknown(f"kind of {bundle}", name, KINDS)
    kind, device = KINDS[name], _device(asked.device, name)
    loaded = kind.load(folder)
    sampling = _sampling(bundle, name, kind.sampling(loaded), asked.steps)
    with cpu_threads(asked.threads), torch.no_grad():
        machine, turns = _machine(device), _Turns(asked, device, tell)
        turns.add(PLAIN, lambda: kind.works(_on(device, loaded), sampling))
        if asked.compiled:
            turns.add(COMPILED, lambda: _compiled(kind, folder, device, sampling))
        else:
            turns.absent[COMPILED] = "not asked for (--no-compile)"
        turns.add(ONNX, lambda: _onnx(folder / ONNX_FILE, kind.network, sampling, device))
        turns.run()
    if name == cats.KIND and device.type != "cpu":
        turns.absent["sample"] = "pictures are sampled on the CPU; leave --device out"
    ran = ONNX in {row.backend for row in turns.rows}
    notes = (f"{ONNX_FILE} ran on random inputs; that it does the work of the weights was not checked",) if ran else ()
    return Benchmark(
        bundle=bundle, kind=name, item=kind.item, model_sha256=weights.digest(folder),
        parameters=sum(p.numel() for p in _module(loaded).parameters()),
        files={path.name: _named(path) for path in sorted(folder.iterdir()) if path.is_file()},
        sampling=sampling, machine=machine, rows=tuple(turns.rows), peak_memory_bytes=turns.peak,
        absent=turns.absent | turns.too_few(), notes=notes,
    )  # fmt: skip


def _named(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


class _Turns:
    """The backends of a bundle beside each other: what they took, or why one is absent."""

    def __init__(self, asked: Conditions, device: torch.device, tell: Callable[[str], object]) -> None:
        self.asked, self.device, self.tell = asked, device, tell
        self.backends: dict[str, Works] = {}
        self.absent: dict[str, str] = {}
        self.rows: list[Row] = []
        self.peak = 0

    def add(self, backend: str, works: Callable[[], Works]) -> None:
        try:
            self.backends[backend] = works()
        except Exception as error:  # compilers and onnxruntime have errors of their own
            self._without(backend, "", error)

    def run(self) -> None:
        """All works with all batch sizes; in the end rows of one work stand together."""
        works = list(self.backends[PLAIN])
        for size in self.asked.batch_sizes:
            if COMPILED in self.backends:
                torch.compiler.reset()  # torch would stop compiling after eight shapes
            for work in works:
                self.tell(f"{work}, batch size {size}: {', '.join(self.backends)}")
                self.rows += self._timed(work, size)
        self.rows.sort(key=lambda row: works.index(row.work))

    def _timed(self, work: str, size: int) -> list[Row]:
        calls, first = dict[str, Call](), dict[str, float]()
        for backend in [name for name, works in self.backends.items() if work in works]:
            try:
                call = _finished(self.backends[backend][work](size), self.device)
                begun = time.perf_counter_ns()
                call()
                calls[backend], first[backend] = call, (time.perf_counter_ns() - begun) / MS
            except Exception as error:  # as in `add`
                self._without(backend, f"{work}, batch size {size}: ", error)
        runs, seconds = (MOST_RUNS, SECONDS) if self.asked.runs is None else (self.asked.runs, math.inf)
        found = latencies(calls, runs, self.asked.warmup, seconds, ready=partial(forget_peak, self.device))
        self.peak = max(self.peak, peak_memory(self.device))
        return [
            Row(work=work, batch_size=size, backend=backend, timing=timing, first_ms=first[backend],
                times_faster=timing.times_faster(found[PLAIN]) if backend == COMPILED else None)
            for backend, timing in found.items()
        ]  # fmt: skip

    def _without(self, backend: str, where: str, error: Exception) -> None:
        """On without that backend, unless it is plain torch."""
        if backend == PLAIN and out_of_memory(error):
            raise InputError(f"batch_sizes: {where}too little memory; give smaller ones") from error
        if backend == PLAIN:
            raise error
        reason = " ".join(str(error).strip().split("\n\n")[0].split())  # torch goes on with how to find bugs in it
        self.absent[backend] = where + (reason or type(error).__name__)
        self.backends.pop(backend, None)

    def too_few(self) -> dict[str, str]:
        """Quantiles that some rows have too few runs for."""
        absent = {}
        for share in TOLD:
            few = sum(row.timing.quantile(share) is None for row in self.rows)
            if few:
                told = f"{few} of {len(self.rows)} rows have fewer than {needed(share)} runs, of which one is beyond it"
                absent[f"p{100 * share:.0f}"] = f"{told}; give --runs {needed(share)}"
        return absent


def _device(name: str, kind: str) -> torch.device:
    device, allowed = device_of(name), ("cpu",) if kind == codec.KIND else ("cpu", "cuda")
    if device.type not in allowed:
        raise InputError(f"device: got {name!r}; allowed for a bundle of kind {kind!r}: {' and '.join(allowed)}")
    return device


def _sampling(bundle: str, kind: str, own: Mapping[str, Any], steps: int | None) -> Mapping[str, Any]:
    """The bundle's own, but for the steps. Raises InputError where it takes none."""
    if steps is None:
        return own
    if not own:
        raise InputError(f"steps: got {steps}, but {bundle} is a {kind}, which samples nothing; leave it out")
    if own["method"] not in FIXED:
        told = f"steps: got {steps}, but {bundle} is sampled by {own['method']}, which finds its own"
        raise InputError(f"{told}; leave it out")
    return {**own, "steps": steps}


def _module(bundle: Any) -> nn.Module:
    return bundle.model if isinstance(bundle, Embedded) else cast(nn.Module, bundle)


def _on(device: torch.device, bundle: Any) -> Any:
    _module(bundle).to(device)
    return bundle


def _finished(call: Call, device: torch.device) -> Call:
    """A call that returns when its work is done."""
    if device.type == "cpu":
        return call

    def waited() -> None:
        call()
        torch.cuda.synchronize(device)

    return waited


def _compiled(kind: Kind, folder: Path, device: torch.device, sampling: Mapping[str, Any]) -> Works:
    """Of the bundle loaded once more; its network is compiled when it is first called."""
    twin = _on(device, kind.load(folder))
    kind.compile(twin)
    return kind.works(twin, sampling)


def _onnx(path: Path, work: str | None, sampling: Mapping[str, Any], device: torch.device) -> Works:
    """The network alone, on as many rows as plain torch gives it. Raises InputError or MissingExtra."""
    if not path.exists():
        raise InputError(f"the bundle has no {path.name}")
    if work is None or device.type != "cpu":
        raise InputError(f"{path.name} is of one network, on the CPU")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra.of("onnxruntime", "onnx", f"to run {path.name}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or idle threads slow whose turn is next
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    guided = sampling.get("guidance", 1) != 1  # with and without the class, in one batch (F10)

    def run(n: int) -> Call:
        given = {one.name: _given(one.name, one.type, one.shape, n * (1 + guided)) for one in session.get_inputs()}
        return partial(session.run, None, given)

    return {work: run}


def _given(name: str, numbers: str, shape: Sequence[int | str | None], rows: int) -> NDArray[Any]:
    """Random pixels or numbers from 0 to 1, which times are too; integers, which are labels, 0."""
    whole = tuple(rows if i == 0 and not isinstance(size, int) else size for i, size in enumerate(shape))
    if numbers not in NUMBERS or not all(isinstance(size, int) for size in whole) or (whole and whole[0] != rows):
        told = f"{ONNX_FILE} asks for {name}, {numbers} of {list(shape)}"
        raise InputError(f"{told}; allowed are numbers for {rows} rows, or any, with all other sizes known")
    dice, dtype, sizes = np.random.default_rng(0), NUMBERS[numbers], cast(tuple[int, ...], whole)
    if dtype is np.uint8:
        return dice.integers(0, 256, sizes, dtype=np.uint8)
    return dice.random(sizes).astype(dtype)  # of integers: rounded down to 0


def _machine(device: torch.device) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        name = found[1] if found else name
    return {
        "device": device.type, "name": torch.cuda.get_device_name(device) if device.type == "cuda" else name,
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}", "torch": torch.__version__,
        "python": platform.python_version(),
    }  # fmt: skip
