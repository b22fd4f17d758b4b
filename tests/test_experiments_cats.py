"""experiments/cats: its scripts on a few pictures, from training to their tables."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flops_fit.data import parquet
from flops_fit.data.cats import CLASSES
from flops_fit.data.pictures import drawn_shapes, png

SCRIPTS = Path(__file__).resolve().parents[1] / "experiments" / "cats"
EACH = 4
FEW = 5e9  # FLOPs: some twenty steps of four pictures


@pytest.fixture
def data(tmp_path: Path) -> str:
    drawn = drawn_shapes(32, EACH * len(CLASSES), 0)
    file = tmp_path / "few.parquet"
    labels = [number % len(CLASSES) for number in range(len(drawn.pixels))]
    splits = ["val" if number < len(CLASSES) else "train" for number in range(len(drawn.pixels))]
    parquet.write(file, {"label": labels, "jpeg": [png(image) for image in drawn.pixels], "split": splits})
    return str(file)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """A file of the folder, which is no package; its rows go elsewhere."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        monkeypatch.setattr(module, "FILE", tmp_path / f"{name}.csv")
        return module

    yield load
    for name in ("rows", "textbook"):
        sys.modules.pop(name, None)


def test_a_pilot_is_a_row_of_its_table(
    data: str, script: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pilot = script("pilot")  # type: ignore[operator]
    small = {**pilot.PRESETS, "cpu-64": replace(pilot.PRESETS["cpu-64"], network="tinydit-32", batch_size=4)}
    monkeypatch.setattr(pilot, "PRESETS", small)
    threads = torch.get_num_threads()
    rows = pilot.run(data, pilot.Setting(flops=FEW, hidden=32, heads=2, precondition="none", skips=False))
    torch.set_num_threads(threads)
    sys.modules["rows"].add(pilot.FILE, rows)
    pilot.show()
    out = capsys.readouterr().out
    assert rows[0].loss < rows[0].untrained and f"{rows[0].loss:.4f}" in out and "Gaussian along frequencies" in out


def test_the_comparison_tells_who_is_lower_at_which_share_of_the_flops(
    data: str, script: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    against = script("against")  # type: ignore[operator]
    for name, value in {"BATCH": 4, "STEPS": 20, "LOOKS": 2, "SEEDS": (0,), "RATES": (1e-3,), "SHARES": (0.5,)}.items():
        monkeypatch.setattr(against, name, value)
    threads = torch.get_num_threads()
    for function, _, seed, lr, steps in against.wanted():
        sys.modules["rows"].add(against.FILE, function(data, seed, lr, steps))
    torch.set_num_threads(threads)
    against.show()
    out = capsys.readouterr().out
    assert "lr 0.001, weights averaged" in out and "lower in" in out
    share = float(out.split(" of the FLOPs")[0].split()[-1])
    assert 0.45 < share < 0.55  # the networks are of one size: half of the steps are half of the FLOPs
