"""A script under torchrun: every process gets the answer of one process, and an error reaches all of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flops_fit.study.launched import processes
from study.toy import content

SAME = 1e-5  # relative: two ranks add gradients in another order than one process, float32
HANG = 120.0  # seconds after which processes that wait for each other are ended
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
    size_multiple=4, max_epochs=1e9, lr=0.01, batch_size=64, tokens_per_param=40, sizes_per_budget=4,
    extend=0, bootstrap=DRAWS, output_dir="out")
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


FEW = """
import json, os, sys, time
from datetime import timedelta
from pathlib import Path
sys.path[:0] = [{tests!r}]
import torch
from flops_fit.study import launched
from flops_fit.train import parallel
from flops_fit.train.loss import Objective
from train.test_engine import data, spec, squared, trainer

parallel.PATIENCE = launched.PATIENCE = timedelta(seconds={patience})
rank = int(os.environ["RANK"])

def loss(outputs, targets):
    if rank and len(outputs) == 5 and torch.is_grad_enabled():
        raise ValueError("bad sample")
    return squared(outputs, targets)

one = trainer(dataset=data(4000), objective=Objective(loss_fn=loss)).on(ranks=2)
runs = [spec(seed=1), spec(batch_size=10, tokens=300), spec(seed=2)]  # the second leaves 5 samples for each process

def call():
    time.sleep({plans})  # plans, or fits, for longer than anybody waits in training
    results = launched.LaunchedExecutor(2).run(runs, one, lambda event: None)
    return [(result.status, result.reason) for result in results]

Path(f"here-{{rank}}").touch()
while not Path(f"here-{{1 - rank}}").exists():
    time.sleep(0.01)  # imports take as long as the machine is busy
Path(f"answer-{{rank}}").write_text(json.dumps(launched.together(one, call)))
"""
PATIENCE, PLANS = 5.0, 6.0  # seconds; a step of these runs takes milliseconds


def test_a_follower_waits_for_a_slow_driver_and_tells_it_of_its_own_errors(tmp_path: Path) -> None:
    """The run that fails in the second process alone is recorded with its reason, and the next one is trained."""
    script = tmp_path / "few.py"
    script.write_text(FEW.format(tests=str(TESTS), patience=PATIENCE, plans=PLANS))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, env=os.environ | launch | {"RANK": rank})
        for rank in ("0", "1")
    ]
    try:
        assert [process.wait(timeout=HANG) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
            process.wait()
    answers = [json.loads((tmp_path / f"answer-{rank}").read_text()) for rank in (0, 1)]
    assert answers[0] == answers[1]
    assert [status for status, _ in answers[0]] == ["ok", "failed", "ok"]
    assert "rank 1 of this run met ValueError: bad sample" in answers[0][1][1]
