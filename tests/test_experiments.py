"""experiments/sentences: the whole study on a few vectors, from training to its tables."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flops_fit.data import parquet

ROOT = Path(__file__).resolve().parents[1]
DIM = 16


def script() -> ModuleType:
    """experiments/sentences/study.py, which is no package."""
    spec = importlib.util.spec_from_file_location("sentences_study", ROOT / "experiments" / "sentences" / "study.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with two networks, one seed and short runs."""
    module = script()
    for name, value in {
        "ARCHS": ("mlp", "unet"), "FLOWS": ("icfm", "reflow"), "SIZES": (100,), "SEEDS": (0,), "SEEN": 200,
        "SAMPLES": 30, "AT_ONCE": 99, "HERE": tmp_path, "OUTPUTS": tmp_path / "outputs",
        "SOLVERS": [("euler", 2), ("heun", 16)],
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, value)
    return module


def test_the_matrix_has_no_configuration_twice_and_at_least_fifty() -> None:
    names = [one.name for one in script().matrix()]
    assert len(names) == len(set(names)) >= 50


def test_from_training_to_tables(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = torch.randn(260, DIM, generator=torch.Generator().manual_seed(0))
    data = {"embedding": list(rows.numpy()), "split": ["train"] * 200 + ["val"] * 60}
    parquet.write(tmp_path / "rows.parquet", data)
    for verb in ("train", "judge", "show"):
        monkeypatch.setattr(sys, "argv", ["study.py", verb, "--data", str(tmp_path / "rows.parquet")])
        study.main()
    told = capsys.readouterr().out
    results = study.read("results.csv")
    assert [row["name"] for row in results] == [one.name for one in study.matrix()]
    assert len(study.read("solvers.csv")) == len(results) * len(study.SOLVERS)
    assert all(row["loss"] > 0 and row["energy"] > 0 for row in results)
    assert f"{len(results)} configurations" in told and "mlp - unet:" in told and "p = " in told
    assert "learned nothing beyond Gaussian" in told  # on Gaussian data nobody can
