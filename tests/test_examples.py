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


def run(example: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The example, ended; on one core, so that it asks for no more of a busy machine than is free."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip
    one_core = {min(os.sched_getaffinity(0))}
    return subprocess.run([sys.executable, "-W", "error", example, *words], cwd=folder, env=environment,
                          text=True, capture_output=True, check=False,
                          preexec_fn=lambda: os.sched_setaffinity(0, one_core))  # fmt: skip


def test_there_are_examples_of_a_readable_length() -> None:
    assert len(EXAMPLES) >= 3
    assert {example.name: len(example.read_text().splitlines()) for example in EXAMPLES
            if len(example.read_text().splitlines()) > MOST_LINES} == {}  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_it_runs_and_answers(example: Path, tmp_path: Path) -> None:
    as_json = ["--json"] if '"--json"' in example.read_text() else []
    done = run(example, tmp_path, "--quick", *as_json)
    assert done.returncode == 0, done.stderr
    [file] = tmp_path.glob("outputs/*-quick/result.json")  # another folder than that of the study in earnest
    text = file.read_text()
    result = Result.from_json(text)
    if as_json:
        assert json.loads(done.stdout) == json.loads(text)
    else:  # no warning that the verdict speaks of is left out, and no answer far from what was run is given
        assert done.stdout == f"{result.summary()}\nreport: {file.parent.relative_to(tmp_path)}/report.html\n"
        assert " * |" not in done.stdout
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
    done = run(example, tmp_path, "--quick", "--plan")
    assert done.returncode == 0, done.stderr
    assert "runs" in done.stdout
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("stem", "words"), [
    ("gpt_tinystories", ["--data", "absent.txt"]), ("vit_cifar", ["--data", "absent.parquet"]),
    ("size_cli", ["--budgets", "1e6,2e6"]),
])  # fmt: skip
def test_what_was_asked_wrongly_is_told_in_one_line(stem: str, words: list[str], tmp_path: Path) -> None:
    done = run(ROOT / "examples" / f"{stem}.py", tmp_path, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
