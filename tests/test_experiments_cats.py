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
from flops_fit.data.cats import CLASSES, cat_pictures
from flops_fit.data.pictures import drawn_shapes, png
from flops_fit.recipes.cats import CatFlow
from flops_fit.recipes.dit_cats import Preset, training
from flops_fit.runs.watch import Quiet
from flops_fit.study.training import train

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
    assert rows[0].loss < rows[0].untrained and f"{rows[0].loss:.4f}" in out and f"{rows[0].gaussian:.4f}" in out


def test_what_is_chosen_is_what_is_sampled_by(
    data: str, script: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choose = script("choose")  # type: ignore[operator]
    preset = Preset(steps=20, batch_size=4, lr=1e-3, warmup_steps=2)
    small = {"image_size": 16, "patch": 4, "hidden": 32, "layers": 1, "heads": 2}
    train(training(cat_pictures(data, 16), preset, network=small), tmp_path / "flow", watch=Quiet())
    setting = choose.Setting(method="euler", steps=2, guidance=3.0, low=0.1, high=0.9)
    monkeypatch.setattr(choose, "SETTINGS", (setting, choose.Setting(steps=1)))
    monkeypatch.setattr(choose, "SAMPLES", 26)
    for _ in range(2):  # what is measured is not measured again
        choose.measure(str(tmp_path / "flow"), data)
    choose.show()
    out = capsys.readouterr().out
    rows = choose.read(choose.FILE)
    assert len(rows) == 2 and all(0 <= row["agreement"] <= 1 for row in rows) and out.count("Setting(") == 2
    choose.keep(str(tmp_path / "flow"), setting)
    flow = CatFlow.load(tmp_path / "flow")
    assert flow.sampling == {"method": "euler", "steps": 2, "guidance": 3.0} and flow.led().interval == (0.1, 0.9)


def test_the_comparison_tells_who_is_lower_at_which_share_of_the_flops(
    data: str, script: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    against = script("against")  # type: ignore[operator]
    small = {"BATCH": 4, "STEPS": 20, "SEEDS": (0,), "RATES": (1e-3,), "FAR_RATES": (), "SHARES": (0.1, 0.5)}
    small |= {"AROUND": ("none",)}
    for name, value in small.items():
        monkeypatch.setattr(against, name, value)
    threads = torch.get_num_threads()
    for function, _, *rest in against.wanted():
        sys.modules["rows"].add(against.FILE, function(data, *rest))
    torch.set_num_threads(threads)
    against.show()
    out = capsys.readouterr().out
    assert "lr 0.001, weights averaged" in out and "lower in" in out
    few, half = (float(line.split()[3]) for line in out.splitlines() if "of the FLOPs" in line)
    assert half == pytest.approx(5 * few, abs=0.003)  # a step is a step; both are printed to three places
    assert half > 0.5  # the networks are of one size, and Muon's products count
