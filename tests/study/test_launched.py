"""A script under torchrun: every process gets the answer of one process, and an error reaches all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flops_fit.study.launched import processes
from study.toy import content

SAME = 1e-5  # relative: two ranks add gradients in another order than one process, float32
TESTS = Path(__file__).parents[1]
SCRIPT = """
import json, os, sys
sys.path[:0] = [{tests!r}]
from study.toy import DRAWS, Net, samples, squared_error
import flops_fit

def loss(outputs, targets):
    if {broken}:
        raise ValueError("broken on purpose")
    return squared_error(outputs, targets)

result = flops_fit.find_optimal(
    Net, "width", dataset=samples(), loss_fn=squared_error if not {broken} else loss, compute_budgets=(1e7, 2e7, 4e7),
    size_multiple=4, max_epochs=1e9, lr=0.01, tokens_per_param=40, extend=0, bootstrap=DRAWS, output_dir="out")
rank = os.environ.get("RANK", "alone")
open(f"answer-{{rank}}.json", "w").write(json.dumps([r.loss for r in result.experiments] + [result.law.alpha]))
"""


def script(folder: Path, *, broken: bool = False) -> Path:
    path = folder / "script.py"
    path.write_text(SCRIPT.format(tests=str(TESTS), broken=broken))
    return path


def run(folder: Path, *launcher: str, broken: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(script(folder, broken=broken))]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_torchrun_gives_every_process_the_answer_of_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone = run(tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    both = run(tmp_path / "two", "-m", "torch.distributed.run", "--nproc_per_node", "2")
    assert both.returncode == 0, both.stderr
    expected = json.loads((tmp_path / "one" / "answer-alone.json").read_text())
    answers: list[Any] = [json.loads((tmp_path / "two" / f"answer-{rank}.json").read_text()) for rank in (0, 1)]
    assert answers[0] == answers[1]
    assert answers[0][:-1] == pytest.approx(expected[:-1], rel=SAME)
    runs = content(tmp_path / "two" / "out")["experiments"]
    assert {one["environment"]["ranks"] for one in runs} == {"2"}


def test_an_error_of_the_driver_ends_the_followers_too(tmp_path: Path) -> None:
    """The contract is broken in every process alike; none is left waiting."""
    done = run(tmp_path, "-m", "torch.distributed.run", "--nproc_per_node", "2", broken=True)
    assert done.returncode != 0
    assert "broken on purpose" in done.stderr


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes() == 1
