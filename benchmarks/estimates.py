"""What a plan says that a sweep will take, beside what it took: time until the report, and memory.

    python benchmarks/estimates.py CIFAR10    about 15 minutes on 2 idle cores; CIFAR10: what vit-cifar's --data takes

The three smallest budgets of each recipe, planned and then run in a fresh folder. Bar: both within 20%.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

from demo import CLI, off, watched
from record import record

from flops_fit.recipes import load

BUDGETS = 3


def estimated(recipe: str, data: str | None) -> dict[str, Any]:
    budgets = ",".join(f"{budget:g}" for budget in load(recipe, data).compute_budgets[:BUDGETS])
    words = [recipe, "--budgets", budgets, *(["--data", data] if data else [])]
    plan = json.loads(watched([*CLI, "plan", *words, "--json"])[0])
    with tempfile.TemporaryDirectory() as folder:
        _, seconds, peak = watched([*CLI, "find", *words, "--output", folder])
    return {
        "budgets": budgets, "runs": len(plan["experiments"]),
        "seconds": round(seconds, 1), "seconds_off": off(plan["seconds"], seconds),
        "peak_memory_gb": round(peak / 1e9, 3), "memory_off": off(plan["peak_memory_bytes"], peak),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="CIFAR10")
    images = parser.parse_args().data
    record("estimates", {"gpt-python": estimated("gpt-python", None), "vit-cifar": estimated("vit-cifar", images)})


if __name__ == "__main__":
    main()
