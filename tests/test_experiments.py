"""experiments/sentences: the whole study on a few vectors, from training to its tables."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flops_fit.data import parquet

ROOT = Path(__file__).resolve().parents[1]
DIM = 32


def script(name: str) -> ModuleType:
    """A file of experiments/sentences, which is no package."""
    path = ROOT / "experiments" / "sentences" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"sentences_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with two networks, one seed and short runs."""
    module = script("study")
    for name, value in {
        "ARCHS": ("mlp", "unet"), "FLOWS": ("icfm", "reflow"), "SIZES": (100,), "SEEDS": (0,), "SEEN": 200,
        "KERNEL_SEEN": 200, "SAMPLES": 30, "AT_ONCE": 99, "HERE": tmp_path, "OUTPUTS": tmp_path / "outputs",
        "SOLVERS": [("euler", 2), ("heun", 2)], "BEST": ("heun", 2), "SCALES": (1.0, 2.0),
        "SIZE": defaultdict(lambda: "tiny"),
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, value)
    return module


def test_the_matrix_has_no_configuration_twice_and_at_least_fifty() -> None:
    for most in (800, 5000):
        names = [one.name for one in script("study").matrix(most)]
        assert len(names) == len(set(names)) >= 50


def test_from_training_to_tables_and_pictures(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = torch.randn(260, DIM, generator=torch.Generator().manual_seed(0))
    data = {"embedding": list(rows.numpy()), "split": ["train"] * 200 + ["val"] * 60}
    parquet.write(tmp_path / "rows.parquet", data)
    for verb in ("train", "judge"):
        monkeypatch.setattr(sys, "argv", ["study.py", verb, "some", "--workers", "1",
                                         "--data", str(tmp_path / "rows.parquet")])  # fmt: skip
        study.main()
    show = script("show")
    monkeypatch.setattr(show, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["show.py", "some"])
    show.main()
    told, folder = capsys.readouterr().out, tmp_path / "some"
    results = show.read(folder / "results.csv")
    assert [row["name"] for row in results] == [one.name for one in study.matrix(200)]
    assert len(show.read(folder / "solvers.csv")) == len(results) * len(study.SOLVERS)
    assert all(row["loss"] > 0 and row["energy"] > 0 and row["straightness"] > 0 for row in results)
    unguided = {row["arch"]: row["energy"] for row in show.read(folder / "guidance.csv") if row["scale"] == 1}
    own = {row["arch"]: row["energy"] for row in results if row["block"] == "flows" and row["flow"] == "icfm"}
    assert unguided == pytest.approx(own, rel=1e-5)  # of six digits in the files
    assert f"{len(results)} configurations" in told and "mlp - unet:" in told and "p = " in told
    assert "learned nothing beyond Gaussian" in told  # on Gaussian data nobody can
    assert all((folder / f"{name}.png").stat().st_size > 10_000 for name in ("curves", "solvers", "map"))
