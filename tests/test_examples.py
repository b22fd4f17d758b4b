"""The scripts that users copy: each runs with --quick, offline, in an empty folder, and leaves a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flops_fit.scaling.result import Result

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MOST_LINES = 60  # what is read before it is copied


def run(example: Path, folder: Path, *words: str) -> str:
    """stdout of the example; on one core, so that it asks for no more of a busy machine than is free."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip
    one_core = {min(os.sched_getaffinity(0))}
    done = subprocess.run([sys.executable, "-W", "error", example, "--quick", *words], cwd=folder, env=environment,
                          text=True, capture_output=True, check=False,
                          preexec_fn=lambda: os.sched_setaffinity(0, one_core))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_examples_of_a_readable_length() -> None:
    assert len(EXAMPLES) >= 3
    assert {example.name: len(example.read_text().splitlines()) for example in EXAMPLES
            if len(example.read_text().splitlines()) > MOST_LINES} == {}  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_it_runs_and_answers(example: Path, tmp_path: Path) -> None:
    as_json = ["--json"] if '"--json"' in example.read_text() else []
    out = run(example, tmp_path, *as_json)
    [file] = tmp_path.glob("outputs/*/result.json")
    text = file.read_text()
    result = Result.from_json(text)
    if as_json:
        assert json.loads(out) == json.loads(text)
    else:
        assert out.startswith(result.verdict())
    assert not result.synthetic
    assert len(result.budgets) >= 2  # used by the law, which may leave the smallest out
    losses: dict[float, list[float]] = {}
    for one in json.loads(text)["experiments"]:
        assert one["status"] == "ok"
        losses.setdefault(one["spec"]["budget"], []).append(one["loss"])
    best = [min(losses[budget]) for budget in sorted(losses)]
    assert best == sorted(best, reverse=True)  # more compute, less loss
    assert {path.name for path in tmp_path.iterdir()} <= {"outputs", "cache"}


@pytest.mark.parametrize("example", [e for e in EXAMPLES if '"--plan"' in e.read_text()], ids=lambda e: e.stem)
def test_a_plan_trains_nothing(example: Path, tmp_path: Path) -> None:
    assert "runs" in run(example, tmp_path, "--plan")
    assert not (tmp_path / "outputs").exists()
