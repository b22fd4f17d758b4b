"""The command line, each verb: one JSON document on stdout, one line for bad input, exit codes, interruption."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from contracts.executor import gone, heed_ctrl_c
from flops_fit import cli
from flops_fit.errors import FlopsFitError
from flops_fit.recipes import BUILT_IN
from flops_fit.runs.beacon import Beacon
from flops_fit.runs.journal import Journal
from flops_fit.runs.watch import Quiet
from flops_fit.scaling.law import Law

ROOT = Path(__file__).resolve().parents[1]
WAIT_SECONDS = 120.0  # generous: asserted is that it happens at all
LAW = Law(E=1.0, A=10.0, B=33.0, alpha=0.4, beta=0.4)

RECIPES = """
import time
import torch
from torch import nn
from torch.utils.data import TensorDataset
from flops_fit.scaling.law import Law
from flops_fit.study import Study
from flops_fit.train.synthetic import SyntheticTrainer

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
    def num_params(self):
        return sum(p.numel() for p in self.parameters())
    def forward(self, x):
        return self.net(x)

def squared(out, y):
    return ((out - y) ** 2).mean()

def waits(out, y):
    time.sleep(0.02)
    return squared(out, y)

def study(trainer=SyntheticTrainer(Law(1.0, 10.0, 33.0, 0.4, 0.4)), loss_fn=squared, budgets=(1e8, 3e8, 1e9)):
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    return Study(model_cls=Net, model_size_param="width", dataset=TensorDataset(x, x[:, :1]), loss_fn=loss_fn,
                 compute_budgets=budgets, size_multiple=4, max_epochs=1e9, lr=0.01, trainer=trainer)

def real():
    return study(trainer=None, budgets=(1e6, 2e6, 4e6))

def slow():
    return study(trainer=None, loss_fn=waits)

def nothing():
    return None

number = 5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the user's recipes in it."""
    (tmp_path / "mine.py").write_text(RECIPES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def call(*words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command, in this process, as `main` ends it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["flops-fit", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    code = ended.value.code
    return (0 if code is None else int(code)), out.getvalue(), err.getvalue()


def document(*words: str) -> Any:
    """The one JSON document on stdout."""
    code, out, err = call(*words, "--json")
    assert code == 0, err
    assert out.endswith("\n") and out.count("\n") == 1
    return json.loads(out)


def refused(*words: str) -> str:
    """The one line on stderr."""
    code, out, err = call(*words)
    assert code == 2, (out, err)
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith("error: ")
    return line


def table(path: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    rows = rows if rows is not None else [
        {"params": n, "tokens": c / (6 * n), "loss": float(LAW.loss(n, c / (6 * n))), "flops": c}
        for c in (1e9, 1e10, 1e11, 1e12) for n in [(c / 120) ** 0.5 * 2.0**k for k in (-2, -1, 0, 1, 2)]]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


# --- documents -----------------------------------------------------------------------------------------------------


def test_plan(folder: Path) -> None:
    found = document("plan", "mine:real", "--executor", "inline")
    assert {"experiments", "total_flops", "seconds", "peak_memory_bytes", "skipped"} <= set(found)
    for run in found["experiments"]:
        assert {"budget", "size", "params", "tokens", "flops", "seconds"} <= set(run)
        assert run["seconds"] > 0
    assert found["total_flops"] == pytest.approx(sum(run["cost"] for run in found["experiments"]))
    assert found["separate_flops"] == pytest.approx(sum(run["flops"] for run in found["experiments"]))
    assert found["seconds"] >= sum(run["seconds"] for run in found["experiments"])
    assert found["peak_memory_bytes"] > 0
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {"mine.py"}  # nothing was written


def test_data_reach_the_recipe(folder: Path) -> None:
    with (folder / "mine.py").open("a") as file:
        file.write("\ndef told(data='its own'):\n    from dataclasses import replace\n"
                   "    return replace(study(), describe_data=data)\n")
    for words, data in {(): "its own", ("--data", "stories.txt"): "stories.txt"}.items():
        assert document("plan", "mine:told", *words)["conventions"]["data set"].startswith(f"{data}; hash ")
    found = document("find", "mine:told", "--data", "x", "--bootstrap", "40", "--executor", "inline")
    assert found["checklist"]["data set"].startswith("x; hash ")
    assert "--data: got 'x', but mine:study takes no data from outside" in refused("plan", "mine:study", "--data", "x")


def test_help_names_the_built_in_recipes() -> None:
    for verb in ("plan", "find"):
        shown = " ".join(CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "200"}).output.split())
        assert f"{', '.join(BUILT_IN)}, or module:function" in shown


def test_plan_with_other_budgets_and_sizes(folder: Path) -> None:
    found = document("plan", "mine:study", "--budgets", "1e8, 2e8,4e8", "--sizes", "50,100,200")
    assert {(run["budget"], run["size"]) for run in found["experiments"]} == {
        (budget, size) for budget in (1e8, 2e8, 4e8) for size in (50, 100, 200)}  # fmt: skip


def test_find_verify_predict_and_again(folder: Path) -> None:
    words = ("find", "mine:study", "--output", "out", "--verify", "4", "--bootstrap", "40", "--executor", "inline")
    found = document(*words)
    assert {"law", "isoflop", "predictions", "experiments", "verify", "synthetic"} <= set(found)
    assert found["synthetic"] is True
    assert {"compute", "params", "tokens", "loss", "intervals"} <= set(found["predictions"][0])
    assert {"compute", "params", "tokens", "predicted_loss", "measured_loss", "relative_error"} <= set(found["verify"])
    assert found["law"]["E"] == pytest.approx(LAW.E, rel=1e-3)  # noise-free
    assert json.loads(Path("out/result.json").read_text()) == found
    for given in ("out", "out/result.json"):
        answers = document("predict", given, "1e12", "3e12")["predictions"]
        assert [answer["compute"] for answer in answers] == [1e12, 3e12]
    code, out, err = call(*words)
    assert code == 0
    assert "SYNTHETIC" in out and out.rstrip().endswith("report: out/report.html")
    assert "already in the journal" in err
    check_status(found)


def check_status(found: dict[str, Any]) -> None:
    """What is told of the finished sweep in `out`; and that its law is not taken for that of runs which ended later."""
    told = document("status", "out")
    assert {"folder", "state", "driver", "runs", "cost", "running", "counts", "failures", "verdict"} <= set(told)
    assert (told["state"], told["driver"], told["running"]) == ("finished", None, [])
    assert told["counts"] == {"sweep": {"ok": len(found["experiments"])}, "verify": {"ok": 1}}
    lowest: dict[float, float] = {}
    for run in found["experiments"]:
        budget = run["spec"]["budget"]
        lowest[budget] = min(run["loss"], lowest.get(budget, run["loss"]))
    assert {best["budget"]: best["loss"] for best in told["best"]} == lowest
    code, out, _ = call("status", "out", "--follow")  # nothing to wait for
    assert code == 0 and out.startswith("out: finished\n") and out.endswith(f"{told['verdict']}\n")
    assert told["verdict"].startswith("SYNTHETIC") and 'http-equiv="refresh"' not in Path("out/report.html").read_text()
    Beacon("out", Quiet()).begin([], reused=0)  # of a driver that came later and was killed
    told = document("status", "out")
    assert told["state"] == "stopped" and f"before: {told['verdict']}" in call("status", "out")[1]


def test_fit_and_predict_from_its_output(folder: Path) -> None:
    found = document("fit", str(table(folder / "runs.csv")), "--bootstrap", "40")
    assert found["law"]["alpha"] == pytest.approx(LAW.alpha, rel=1e-3)
    assert found["synthetic"] is False
    (folder / "law.json").write_text(json.dumps(found))
    [answer] = document("predict", "law.json", "1e13")["predictions"]
    assert answer["params"] == pytest.approx((1e13 / 120) ** 0.5, rel=0.02)  # D/N is 3.3^2.5 = 19.8 at the optimum
    code, out, _ = call("predict", "law.json", "1e13")
    assert code == 0
    assert out.startswith("1e+13 FLOPs: ") and "extrapolated 10x" in out


def test_fit_options_and_the_report(folder: Path) -> None:
    words = ("fit", str(table(folder / "runs.csv")), "--bootstrap", "40")
    found = document(*words, "--law", "tied", "--resampling", "cases", "--report", "law.html")
    assert found["law"]["name"] == "tied" and found["law"]["alpha"] == found["law"]["beta"]
    assert [row["law"] for row in found["backtest"] if row["chosen"]] == ["tied"]
    assert "draws of runs within each budget" in found["checklist"]["intervals"]
    assert "<h1>flops-fit</h1>" in Path("law.html").read_text()
    assert "law: got 'hofmann'; allowed are auto, chinchilla" in refused(*words, "--law", "hofmann")
    assert "resampling: got 'x'" in refused(*words, "--resampling", "x")
    code, out, _ = call(*words, "--onset", "3e9")
    assert code == 0 and "the onset that was asked for" in out and "with all " in out


def test_predict_answers_beyond_compute_optimal(folder: Path) -> None:
    (folder / "law.json").write_text(json.dumps(document("fit", str(table(folder / "runs.csv")), "--bootstrap", "40")))
    asked = ("predict", "law.json", "1e13", "--served", "1e9", "--unique", "1e5", "--smaller", "1,2",
             "--flops-per-second", "1e12", "--price-per-hour", "2")
    found = document(*asked)
    assert set(found) == {"predictions", "serving", "data_limited", "overtraining", "price"}
    best = found["predictions"][0]
    assert found["serving"][0]["params"] < best["params"]          # it will be asked much: a smaller one
    assert found["data_limited"][0]["loss"] > best["loss"]         # tokens run out
    assert [row["factor"] for row in found["overtraining"]] == [1, 2]
    assert found["price"][0]["hours"] == pytest.approx(1e13 / 1e12 / 3600)
    needed = document("predict", "law.json", "--loss", str(best["loss"]))
    assert needed["predictions"] == []
    assert needed["compute_for"][0]["compute"] == pytest.approx(1e13, rel=1e-3)
    code, out, _ = call(*asked)
    assert code == 0 and len(out.splitlines()) == 6
    assert "loss: got 0.1" in refused("predict", "law.json", "--loss", "0.1")
    assert "COMPUTE: got none" in refused("predict", "law.json")


def test_doctor() -> None:
    found = document("doctor")
    assert {"flops-fit", "python", "torch", "cores", "device"} <= set(found)


VERBS = ("plan", "find", "fit", "predict", "status", "doctor", "train sentences", "train codec", "train dit-cats",
         "sample", "evaluate", "bench", "data get", "data info")  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    shown = CliRunner().invoke(cli.app, [*verb.split(), "--help"])
    assert shown.exit_code == 0
    assert f"Example: flops-fit {verb}" in shown.output
    assert "--json" in shown.output


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "told"), [
    ("plan gpt-pyhton", f"got 'gpt-pyhton'; allowed are {', '.join(BUILT_IN)} or module:function; did you mean gpt-py"),
    ("plan mine:stduy", "RECIPE: mine:stduy: module 'mine' has no 'stduy'"),
    ("plan nomodule:study", "RECIPE: nomodule:study: no module 'nomodule'"),
    ("plan mine:nothing", "RECIPE: mine:nothing returned NoneType"),
    ("plan mine:number", "'number' is not a function"),
    ("plan mine:study --budgets 1e8,x", "--budgets: got '1e8,x'; give numbers separated by commas"),
    ("plan mine:study --budgets ,", "compute_budgets: got none"),
    ("plan mine:study --budgets 1e8,-2e8,3e8", "compute_budgets: got -200000000.0"),
    ("plan mine:study --budgets 1e8,nan,3e8", "compute_budgets: got nan"),
    ("plan mine:study --budgets 1e8,2e8", "a law needs at least 3"),
    ("plan mine:study --sizes 1.5", "--sizes: got 1.5; sizes are whole numbers"),
    ("plan mine:study --sizes 0", "--sizes: got 0"),
    ("plan mine:study --sizes inf", "--sizes: got inf"),
    ("plan mine:study --sizes nan", "--sizes: got nan"),
    ("plan mine:study --executor procceses", 'did you mean "processes"'),
    ("find mine:study --output mine.py", "output folder 'mine.py' cannot be used"),
    ("fit none.csv", "none.csv"),
    ("status none", "no journal can be read at 'none/journal.jsonl'"),
    ("status . --follow", "no journal can be read"),
    ("predict none.json 1e21", "RESULT: none.json: No such file"),
    ("predict mine.py 1e21", "RESULT: mine.py is not a result"),
], ids=lambda value: value if " " in value else "")  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(words: str, told: str, folder: Path) -> None:
    assert told in refused(*words.split())


@pytest.mark.parametrize(("change", "told"), [
    ({"loss": None}, "loss"), ({"params": "many"}, "params"), ({"tokens": 0}, "tokens"), ({"loss": "nan"}, "loss"),
    ({"tokens": -3}, "tokens"), ({"loss": ""}, "loss"),
], ids=str)  # fmt: skip
def test_tables_that_cannot_be_fitted(change: dict[str, Any], told: str, folder: Path) -> None:
    with table(folder / "good.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    [(column, value)] = change.items()
    if value is None:
        rows = [{name: cell for name, cell in row.items() if name != column} for row in rows]
    else:
        rows[3][column] = value
    assert told in refused("fit", str(table(folder / "bad.csv", rows)))


def test_predict_without_compute_above_zero(folder: Path) -> None:
    (folder / "law.json").write_text(json.dumps(document("fit", str(table(folder / "r.csv")), "--bootstrap", "40")))
    assert "COMPUTE: got 'much'" in refused("predict", "law.json", "much")
    assert "compute: got" in refused("predict", "law.json", "0")


def test_a_contract_with_several_breaches_stays_exit_code_2(folder: Path) -> None:
    (folder / "mine.py").write_text(RECIPES.replace("model_size_param=\"width\"", "model_size_param=\"widht\""))
    code, out, err = call("plan", "mine:study", "--budgets", "1e8")
    assert (code, out) == (2, "")
    assert "did you mean 'width'" in err and "a law needs at least 3" in err


def test_a_journal_with_a_damaged_middle_is_named_by_line(folder: Path) -> None:
    words = ("find", "mine:study", "--output", "out", "--bootstrap", "40")
    assert call(*words)[0] == 0
    journal = Path("out/journal.jsonl")
    lines = journal.read_bytes().split(b"\n")
    lines[4] = lines[4].replace(b'"loss":', b'"lots":')
    journal.write_bytes(b"\n".join(lines))
    assert "journal.jsonl, line 5: the line is damaged" in refused(*words)


def test_errors_of_ours_and_only_those_become_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(error: Exception) -> Any:
        def examine() -> Any:
            raise error

        return examine

    monkeypatch.setattr(cli.sizing, "_examine", raises(FlopsFitError("told")))
    assert call("doctor")[::2] == (2, "error: told\n")
    monkeypatch.setattr(cli.sizing, "_examine", raises(RuntimeError("a bug")))
    monkeypatch.setattr(sys, "argv", ["flops-fit", "doctor"])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


# --- interruption --------------------------------------------------------------------------------------------------


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for child processes in /proc")
def test_ctrl_c_ends_with_130_and_leaves_a_journal_to_resume_and_no_child(folder: Path) -> None:
    """The runs of this recipe would take minutes; it is interrupted after the first of them."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flops_fit.cli", "find", "mine:slow", "--output", "out", "--executor", "processes",
               "--workers", "2", "--sizes", "48,100", "--json"]  # fmt: skip
    with subprocess.Popen(command, cwd=folder, env=environment, preexec_fn=heed_ctrl_c,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as driver:  # fmt: skip
        journal, deadline = folder / "out" / "journal.jsonl", time.monotonic() + WAIT_SECONDS
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 1) and driver.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = children_of(driver.pid)
        driver.send_signal(signal.SIGINT)
        out, err = driver.communicate(timeout=WAIT_SECONDS)
    assert driver.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "stopped; finished runs are kept, the same command goes on from out"
    assert "Traceback" not in err
    assert len(workers) == 2
    assert all(gone(pid) for pid in workers)
    assert len(Journal.read(folder / "out").results) >= 1


def follow(folder: Path, *words: str) -> tuple[subprocess.Popen[str], int]:
    """`status --follow` of `folder` in a process of its own, and its terminal, after it has drawn a running sweep."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "flops_fit.cli", "status", str(folder), "--follow", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TERM": "xterm", "COLUMNS": "200"}  # a long path fits
    watcher = subprocess.Popen(command, env=environment, preexec_fn=heed_ctrl_c, stdout=subprocess.PIPE, stderr=theirs,
                               text=True)  # fmt: skip
    os.close(theirs)
    drawn = b""
    while b"running" not in drawn:
        drawn += os.read(ours, 4096)
    return watcher, ours


def test_following_ends_with_ctrl_c_or_with_the_sweep(tmp_path: Path) -> None:
    with Journal.open(tmp_path, {"study": 1}):
        watcher, terminal = follow(tmp_path)
        watcher.send_signal(signal.SIGINT)
        out, _ = watcher.communicate(timeout=WAIT_SECONDS)
        os.close(terminal)
        assert (watcher.returncode, out.splitlines()[0]) == (0, f"{tmp_path}: running, pid {os.getpid()} on host "
                                                                f"{socket.gethostname()}")  # fmt: skip
        watcher, terminal = follow(tmp_path, "--json")
    out, _ = watcher.communicate(timeout=WAIT_SECONDS)
    os.close(terminal)
    assert watcher.returncode == 0 and json.loads(out)["state"] == "stopped"
