"""Rows of measurements in a CSV file beside the scripts: added as they come, so that finished ones stay."""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from flops_fit.train.engine import TrainingRun
from flops_fit.train.measure import count_flops

Work = tuple[Callable[..., Sequence[Any]], tuple[Any, ...]]  # a function that gives rows, and its arguments


def add(file: Path, rows: Sequence[Any]) -> None:
    """Dataclasses of one kind."""
    fresh = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as opened:
        table = csv.DictWriter(opened, list(asdict(rows[0])), lineterminator="\n")
        if fresh:
            table.writeheader()
        table.writerows(asdict(row) for row in rows)


def read(file: Path) -> list[Mapping[str, Any]]:
    """Numbers where they are numbers."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(opened)]


def work_off(file: Path, works: Sequence[Work], workers: int) -> None:
    """All of them, some at a time, each in a process with one thread; rows into the file."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(function, *arguments) for function, arguments in works]):
            add(file, done.result())
            print(done.result()[-1], flush=True)


def step_flops(run: TrainingRun) -> float:
    """Of one step of a run in flight: loss, gradients and the optimiser's own products, which laws do not count."""
    steps = run.steps()
    return count_flops(lambda: next(steps))


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; of one value it alone."""
    off = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{off}"


def command(about: str | None, train: Callable[[str], None], show: Callable[[], None]) -> None:
    """`train --data FILE` and `show`, as the scripts here are called."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("train").add_argument("--data", required=True)
    verbs.add_parser("show")
    asked = parser.parse_args()
    if asked.verb == "train":
        train(asked.data)
    show()


def _value(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
