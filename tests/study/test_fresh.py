"""`resume=False` begins anew: it trains every step itself, and nothing of the sweep before can be read as its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from flops_fit.runs.journal import Journal
from flops_fit.runs.status import status
from flops_fit.scaling import plot
from flops_fit.scaling.result import Result
from flops_fit.study import Sweep
from study.toy import DRAWS, Listener, content, find, study

SMALL: dict[str, Any] = {
    "trainer": None, "compute_budgets": (5e5, 2e6, 8e6), "sizes": (4, 8, 16), "batch_size": 64, "lr": 0.03,
    "tokens_per_param": 100.0, "schedule": "wsd-branch",
}  # fmt: skip
PICTURES = ("sweep.png", "sweep.svg")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(folder of a sweep that ended, its result)."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "save", lambda result, folder: [(folder / name).touch() for name in PICTURES])
        patch.setattr(Result, "report", lambda result, path=None: "")
        result, _ = find(study(**SMALL), folder, extend=0)
    assert {path.name for path in folder.iterdir()} >= {"result.json", "progress.json", *PICTURES}
    assert {path.name.split("-")[0] for path in (folder / "checkpoints").iterdir()} == {"trunk"}
    return folder, result


def test_a_fresh_sweep_trains_every_step_itself(finished: tuple[Path, Any], tmp_path: Path) -> None:
    before, first = finished
    folder = shutil.copytree(before, tmp_path / "again")
    again, listener = find(study(**SMALL), folder, extend=0, resume=False)
    assert len(listener.finished) == len(again.experiments)
    assert [run.spent for run in again.experiments] == [run.spent for run in first.experiments]
    assert [run.spec.cost for run in again.experiments] == pytest.approx([run.spent for run in again.experiments])
    assert content(folder) == content(before)


class Stops(Listener):
    """Ctrl-C as soon as the first run goes on."""

    def event(self, event: Any) -> None:
        raise KeyboardInterrupt


def test_a_fresh_sweep_that_was_stopped_shows_no_answer_of_the_one_before(
    finished: tuple[Path, Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "stopped")
    (folder / "report.html").write_text("of before")
    sweep = Sweep(study(**SMALL), executor="inline", workers=1, watch=Stops())
    with pytest.raises(KeyboardInterrupt):
        sweep.find(folder, resume=False, extend=0, verify=None, bootstrap=DRAWS)
    assert not {path.name for path in folder.iterdir()} & {"result.json", *PICTURES}
    assert "of before" not in (folder / "report.html").read_text()  # the page of the running sweep
    assert list((folder / "checkpoints").iterdir()) == []
    found = status(folder)
    assert (found.state, found.verdict) == ("stopped", None)
    assert Journal.read(folder).results == {}
    assert (folder / "journal-1.jsonl").read_bytes() == (finished[0] / "journal.jsonl").read_bytes()  # never deleted
