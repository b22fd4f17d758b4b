"""How a sweep stands, asked from outside: from its journal, its beacon and its result. Changes nothing."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from flops_fit.errors import FlopsFitError
from flops_fit.records import Record, RunResult
from flops_fit.runs.beacon import FORMAT, PROGRESS, Phase
from flops_fit.runs.journal import LOCK, Journal
from flops_fit.runs.pace import Running, clock

RESULT = "result.json"
LAST = 5  # failures and messages that are told

State = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Best(Record):
    """The lowest loss of a budget so far."""

    budget: float
    size: int
    params: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure(Record):
    """A run that came to no loss."""

    role: str
    budget: float
    size: int
    status: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(Record):
    """How the sweep in `folder` stands."""

    folder: str
    state: State                       # failed: the driver told why it gave up; stopped: it is gone without a word
    phase: Phase | None                # what the driver does, or did last; None: unknown
    error: str | None                  # why it gave up, when the state is "failed"
    driver: str | None                 # "pid 1 on host x"; None: nobody is at work
    runs: dict[str, int]               # done, total, reused, of the part that is (or was last) worked off; {}: unknown
    cost: dict[str, float]             # done, total, FLOPs of that part
    updated: str | None                # when that was told, UTC
    seconds_left: float | None         # None: nobody is at work, or no pace yet
    running: tuple[Running, ...]
    counts: dict[str, dict[str, int]]  # runs in the journal: role -> status -> how many
    spent: float                       # FLOPs in the journal, done for each run alone
    best: tuple[Best, ...]             # by budget
    failures: tuple[Failure, ...]      # the last ones
    messages: tuple[str, ...]          # what the sweep has said, and what is wrong with the files
    verdict: str | None                # of result.json or a training; of an earlier one unless "finished"

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def status(folder: str | os.PathLike[str]) -> Status:
    """How the sweep in `folder` stands; changes nothing and waits for nobody.

    Raises InputError when there is no journal, JournalError when a line other than its last is damaged. The other
    files are there to be looked at: when one cannot be read, `messages` says so.
    """
    folder = Path(folder)
    driver = _driver(folder)  # before all else: when it is gone by now, what is read below does not change any more
    told, trouble = _progress(folder)
    results = list(Journal.read(folder).results.values())
    verdict, more = _verdict(folder)
    verdict = verdict or _trained(results, told)
    state = _state(driver, told, verdict)
    ours = driver is not None and driver == f"pid {told.get('pid')} on host {told.get('host')}"
    tells = ours or driver is None  # else they are the last words of a driver before this one
    counts: dict[str, Counter[str]] = {}
    for result in results:
        counts.setdefault(result.spec.role, Counter())[result.status] += 1
    return Status(
        folder=str(folder), state=state, phase=told.get("phase") if tells else None,
        error=told.get("error") if tells else None, driver=driver,
        runs=told.get("runs", {}), cost=told.get("cost", {}), updated=told.get("updated"),
        seconds_left=told["seconds_left"] if ours else None, running=told["running"] if ours else (),
        counts={role: dict(count) for role, count in counts.items()},
        spent=sum(r.flops if r.spent is None else r.spent for r in results),
        best=_best(results), failures=_failures(results),
        messages=(*told.get("messages", ()), *trouble, *more), verdict=verdict,
    )  # fmt: skip


def _state(driver: str | None, told: Mapping[str, Any], verdict: str | None) -> State:
    if driver:
        return "running"
    if told.get("error") is not None:
        return "failed"
    finished = told.get("phase", "finished") == "finished"  # else result.json is of an earlier sweep in this folder
    return "finished" if finished and verdict is not None else "stopped"


def _driver(folder: Path) -> str | None:
    """Who holds the lock. A free one is taken, shared, for a moment only when a driver was killed and left its name."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        holder = os.pread(lock, 4096, 0).decode(errors="replace").strip()
        if holder:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder
    finally:
        os.close(lock)  # gives the lock back
    return None


def _progress(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(what the beacon told, {} for nothing; what is wrong with it)."""
    try:
        told = json.loads((folder / PROGRESS).read_bytes())
        if told["format"] != FORMAT:
            raise ValueError(f"format {told['format']}, this version reads {FORMAT}")
        told["running"] = tuple(Running.from_dict(run) for run in told["running"])
        for name, kinds in (("runs", ("done", "total", "reused")), ("cost", ("done", "total"))):
            told[name] = {kind: told[name][kind] + 0 for kind in kinds}
        datetime.fromisoformat(told["updated"])
        if told.setdefault("phase", "finished") not in get_args(Phase):
            raise ValueError(f"phase {told['phase']!r}")
        told["error"] = None if told.get("error") is None else str(told["error"])
        told["messages"] = tuple(map(str, told["messages"]))
        left = told["seconds_left"]
        told["seconds_left"] = None if left is None else float(left)
    except FileNotFoundError:
        return {}, ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, (f"{folder / PROGRESS} is of no use ({type(error).__name__}: {error}); "
                    "the sweep writes it anew when it goes on",)  # fmt: skip
    return told, ()


def _verdict(folder: Path) -> tuple[str | None, tuple[str, ...]]:
    """(the sentence of result.json, None for none; what is wrong with the file)."""
    try:
        text = (folder / RESULT).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None, ()
    except (OSError, ValueError) as error:
        return None, (f"{folder / RESULT} cannot be read: {error}",)
    from flops_fit.scaling.result import Result  # scipy only when there is a law

    try:
        return Result.from_json(text).verdict(), ()
    except FlopsFitError as error:
        return None, (f"{folder / RESULT}: {error}",)


def _trained(results: Sequence[RunResult], told: Mapping[str, Any]) -> str | None:
    """What `flops-fit train` came to, which ends without a law: how many runs, the loss of the last."""
    runs = told.get("runs", {})
    if not results or any(result.spec.role != "train" for result in results) or runs.get("done") != runs.get("total"):
        return None
    last = results[-1]
    loss = "no loss" if last.loss is None else f"loss {last.loss:.4f}"
    good = sum(result.ok for result in results)
    return f"trained: {good} of {len(results)} runs, the last with {last.spec.params:,} parameters and {loss}"


def _best(results: Iterable[RunResult]) -> tuple[Best, ...]:
    lowest: dict[float, Best] = {}
    for result in results:
        spec = result.spec
        if result.loss is None or spec.role != "sweep":
            continue
        if spec.budget not in lowest or result.loss < lowest[spec.budget].loss:
            lowest[spec.budget] = Best(budget=spec.budget, size=spec.size, params=spec.params, loss=result.loss)
    return tuple(lowest[budget] for budget in sorted(lowest))


def _failures(results: Iterable[RunResult]) -> tuple[Failure, ...]:
    failed = [result for result in results if not result.ok][-LAST:]
    return tuple(
        Failure(role=r.spec.role, budget=r.spec.budget, size=r.spec.size, status=r.status, reason=r.reason)
        for r in failed
    )


def _lines(found: Status) -> Iterable[str]:
    doing = f" while {found.phase}" if found.phase in ("fitting", "verifying") else ""
    yield f"{found.folder}: {found.state}{doing}" + (f", {found.driver}" if found.driver else "")
    if found.runs:
        done, total = found.cost["done"], found.cost["total"]
        share = f", {done / total:.0%} of {total:.3g} FLOPs" if total else ""  # none: all runs are reused
        left = f", {clock(found.seconds_left)} left" if found.driver and done < total else ""
        yield (f"{found.runs['done']}/{found.runs['total']} runs ({found.runs['reused']} reused){share}{left}; "
               f"told {found.updated}")  # fmt: skip
    recorded = "; ".join(
        f"{role} " + ", ".join(f"{count} {status}" for status, count in counts.items())
        for role, counts in found.counts.items()
    )
    yield f"journal: {recorded or 'no runs yet'}; {found.spent:.3g} FLOPs"
    if found.running:
        yield from _columns([run.cells() for run in found.running])
    if found.best:
        yield from _columns([{"best of budget": f"{b.budget:.3g}", "size": str(b.size), "N": f"{b.params:,}",
                              "loss": f"{b.loss:.4f}"} for b in found.best])  # fmt: skip
    yield from (f"{f.status}: {f.role} {f.budget:.3g} FLOPs, size {f.size}: {f.reason}" for f in found.failures)
    yield from (f"said: {text}" for text in found.messages[-LAST:])
    if found.verdict:
        yield found.verdict if found.state == "finished" else f"before: {found.verdict}"
    if found.state == "failed":
        yield f"failed: {found.error}"
    if found.state in ("stopped", "failed"):
        yield "nobody is at work: the same command goes on; finished runs are not repeated"


def _columns(rows: Sequence[Mapping[str, str]]) -> Iterable[str]:
    """Rows of a table under their header, set right."""
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
