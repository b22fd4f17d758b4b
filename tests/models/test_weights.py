"""Weights go to the disk and come back, and nothing else passes for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from flops_fit.errors import InputError
from flops_fit.models import weights


def model(width: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))


def test_there_and_back(tmp_path: Path) -> None:
    one = model()
    weights.save(tmp_path, one.state_dict(), {"size": 3})
    tensors, config = weights.read(tmp_path)
    other = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    weights.fill(other, tensors, "here")
    assert config == {"size": 3}
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_half_precision_is_half_the_size_where_nothing_is_lost(tmp_path: Path) -> None:
    one = nn.Linear(200, 200).half().float()
    for half in (False, True):
        weights.save(tmp_path / str(half), one.state_dict(), {}, half=half)
    small, large = ((tmp_path / str(half) / weights.WEIGHTS).stat().st_size for half in (True, False))
    assert small == pytest.approx(large / 2, rel=0.01)  # a header of some 200 bytes
    found = weights.read(tmp_path / "True")[0]["weight"]
    assert found.dtype == torch.float32 and torch.equal(found, one.weight.detach())
    weights.save(tmp_path, {"whole": torch.tensor([1 / 3])}, {}, half=True)
    assert weights.read(tmp_path)[0]["whole"].item() == torch.tensor(1 / 3).item()


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    weights.save(tmp_path, model(3).state_dict(), {})
    tensors, _ = weights.read(tmp_path)
    with pytest.raises(InputError, match=r"here: weights of another architecture: .* instead of \(5.* and 5 more"):
        weights.fill(model(5), tensors, "here")
    with pytest.raises(InputError, match=r"has 1\.bias, which this model has not"):
        weights.fill(nn.Sequential(nn.Linear(4, 3)), tensors, "here")
    with pytest.raises(InputError, match=r"lacks 2\.bias"):
        weights.fill(nn.Sequential(*model(3), nn.Linear(3, 3)), tensors, "here")


def test_what_is_missing_or_damaged_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no {weights.CONFIG} in it"):
        weights.read(tmp_path)
    weights.save(tmp_path, model().state_dict(), {})
    whole = (tmp_path / weights.WEIGHTS).read_bytes()
    (tmp_path / weights.WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"damaged"):
        weights.read(tmp_path)
    (tmp_path / weights.WEIGHTS).unlink()
    with pytest.raises(InputError, match=f"no {weights.WEIGHTS} in it"):
        weights.read(tmp_path)


def test_a_save_that_fails_leaves_the_old_weights(tmp_path: Path) -> None:
    weights.save(tmp_path, model().state_dict(), {"step": 1})
    with pytest.raises(TypeError):
        weights.save(tmp_path, model().state_dict(), {"step": object()})
    assert weights.read(tmp_path)[1] == {"step": 1}
    assert not list(tmp_path.glob("*.new"))


def test_what_no_model_can_use_is_told(tmp_path: Path) -> None:
    weights.save(tmp_path, model().state_dict(), {})
    (tmp_path / weights.CONFIG).write_text("[]")
    with pytest.raises(InputError, match=r"damaged \(config.json holds list, not an object\)"):
        weights.read(tmp_path)
    broken = {name: value / 0 if name == "0.bias" else value for name, value in model().state_dict().items()}
    weights.save(tmp_path, broken, {})
    with pytest.raises(InputError, match=r"0.bias holds NaN or infinity; train it again"):
        weights.read(tmp_path)
