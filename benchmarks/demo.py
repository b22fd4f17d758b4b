"""The demo measured as a user sees it: estimate, wall time, peak memory, quality of the law, verification.

    python benchmarks/demo.py              plans and runs `flops-fit find gpt-python --verify 4` in a fresh folder
    python benchmarks/demo.py --recipe vit-cifar --data cifar10.parquet      the same of another recipe
    python benchmarks/demo.py --refit      fits the runs of the folder again; times stay those of the last full run

Bars: <= 8 min until the report, >= 20 runs, <= 2 GB; residual rms <= 1%; alpha, beta in [.1, .9]; every group with an
interior optimum; prediction at 4 x the largest budget within 2% and inside the printed 95% interval; estimated time and
memory within 20%.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from record import RESULTS, record

CLI = [sys.executable, "-m", "flops_fit.cli"]


def resident(root: int) -> int:
    """Resident bytes of a process and all its descendants, shared pages counted in each (Linux)."""
    children: dict[int, list[int]] = {}
    pages: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            pages[int(entry.name)] = int((entry / "statm").read_text().split()[1])
        except OSError:
            continue  # it ended while we looked
        children.setdefault(int(after_name[1]), []).append(int(entry.name))
    total, stack = 0, [root]
    while stack:
        pid = stack.pop()
        total += pages.get(pid, 0)
        stack += children.get(pid, [])
    return total * 4096


def watched(command: list[str]) -> tuple[str, float, int]:
    """(stdout, wall seconds, peak resident bytes of the process tree)."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out: list[str] = []
    reader = threading.Thread(target=lambda: out.append(process.stdout.read() if process.stdout else ""))
    reader.start()
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.2)
    reader.join()
    assert process.returncode == 0, command
    return out[0], time.perf_counter() - started, peak


def off(estimate: float, measured: float) -> float:
    return round(estimate / measured - 1, 3)


def figures_of(result: dict[str, Any]) -> dict[str, Any]:
    law, verify = result["law"], result["verify"]
    low, high = verify["interval"]
    return {
        "runs": sum(e["spec"]["role"] == "sweep" for e in result["experiments"]),
        "runs_fitted": len(result["used"]),
        "budgets": len({e["spec"]["budget"] for e in result["experiments"]}),
        "residual_rms": result["fit"]["rms"],
        "alpha": law["alpha"],
        "beta": law["beta"],
        "n_opt_exponent": result["n_opt_exponent"],
        "groups_with_edge_optimum": sum(o["edge"] is not None for o in result["isoflop"]["optima"]),
        "verify": verify,
        "measured_inside_interval": low <= verify["measured_loss"] <= high,
        "warnings": result["warnings"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="gpt-python")
    parser.add_argument("--data")
    parser.add_argument("--refit", action="store_true")
    given = parser.parse_args()
    name = "demo" if given.recipe == "gpt-python" else given.recipe
    folder = Path("outputs") / f"benchmark-{name}"
    recipe = [given.recipe, *(["--data", given.data] if given.data else [])]
    find = [*CLI, "find", *recipe, "--output", str(folder)]
    if given.refit:  # after a change of the fit alone
        out, _, _ = watched([*find, "--verify", "4", "--json"])
        before = json.loads((RESULTS / f"{name}.json").read_text())
        timed = before.get("timed_at_commit", before["commit"])
        record(name, {**before, **figures_of(json.loads(out)), "timed_at_commit": timed})
        return
    shutil.rmtree(folder, ignore_errors=True)
    plan = json.loads(watched([*CLI, "plan", *recipe, "--json"])[0])
    _, seconds, peak = watched(find)
    out, verify_seconds, _ = watched([*find, "--verify", "4", "--json"])
    result = json.loads(out)
    record(
        name,
        {
            **figures_of(result),
            "seconds_until_report": round(seconds, 1),
            "seconds_of_verify": round(verify_seconds, 1),
            "peak_memory_gb": round(peak / 1e9, 3),
            "estimated_seconds": round(plan["seconds"], 1),
            "estimated_seconds_off": off(plan["seconds"], seconds),
            "estimated_memory_off": off(plan["peak_memory_bytes"], peak),
            "plan_flops": plan["total_flops"],
            "plan_flops_of_separate_runs": plan["separate_flops"],
            "spent_flops": sum(run["spent"] for run in result["experiments"]),  # also of sizes that were added
        },
    )


if __name__ == "__main__":
    main()
