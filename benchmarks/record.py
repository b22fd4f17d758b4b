"""Writes the figures of one benchmark to results/NAME.json with machine and commit, and prints them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def record(name: str, figures: Mapping[str, Any]) -> None:
    document = {
        **figures,
        "machine": f"{cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "commit": commit(),
        "command": command(),
    }
    text = json.dumps(document, indent=2) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    print(text, end="")


def command() -> str:
    """What was typed, with the name instead of the place of every file."""
    words = [Path(word).name if Path(word).exists() else word for word in sys.argv[1:]]
    return " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *words])


def cpu() -> str:
    """Its name and widest vectors, which explain most of the difference between two machines' times."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    lines = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in told.splitlines())}
    vectors = [width for width in ("avx512f", "avx2") if width in lines.get("flags", "").split()]
    return " ".join([lines.get("model name", platform.machine()), *vectors[:1]])


def outcome(folder: Path) -> Any:
    """result.json of a study without what is of the machine: the clock and the memory of its processes."""
    machines = {"seconds", "cpu_seconds", "joules", "peak_memory_bytes"}
    return _without(json.loads((folder / "result.json").read_text()), machines)


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(member, names) for name, member in value.items() if name not in names}
    return [_without(member, names) for member in value] if isinstance(value, list) else value


def commit() -> str:
    """The commit that was measured; "+ changes" when the source tree differs from it."""
    here = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": False}
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **here)
    if head.returncode:
        return "not committed"
    changed = subprocess.run(["git", "status", "--porcelain", "--", "../src"], **here).stdout.strip()
    return head.stdout.strip() + (" + changes" if changed else "")
