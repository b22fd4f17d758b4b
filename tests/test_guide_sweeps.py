"""docs/guide/sweeps.md: its code runs, what it points to is there, and its figures are those of the equation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flops_fit.train.options import BRANCHED

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guide" / "sweeps.md"
TEXT = GUIDE.read_text(encoding="utf-8")
THREE_DIGITS = 0.0005  # as the guide rounds
BRANCHES = 10_000     # as good as many


def test_its_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    exec(compile(code, str(GUIDE), "exec"), {"__name__": "guide"})
    assert "runs of a size share their beginning" in capsys.readouterr().out


def test_what_it_points_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT) + [f"../../{name}" for name in re.findall(r"`python (\S+\.py)", TEXT)]
    links += [f"../../{name}" for name in re.findall(r"`(tests/\S+\.py)`", TEXT)]
    links += [f"../../src/flops_fit/{name}" for name in re.findall(r"`(runs/\S+\.py)`", TEXT)]
    assert len(links) >= 8
    for link in links:
        assert (GUIDE.parent / link).exists(), link


def test_what_branches_save_is_what_the_equation_says() -> None:
    """Eq. P7, summed run by run: each pays its own C without the part that the one before it has already done."""
    said = re.search(r"at a ratio of ([\d.]+) many branches cost ([\d.]+) .*?, at (\d+) ([\d.]+), at (\d+) ([\d.]+) \(",
                     TEXT)  # fmt: skip
    assert said is not None
    numbers = [float(number) for number in said.groups()]
    for ratio, share in zip(numbers[::2], numbers[1::2], strict=True):
        costs = [ratio ** (k - BRANCHES) for k in range(BRANCHES)]
        spent = sum(costs) - (1 - BRANCHED.decay) * sum(costs[:-1])
        assert spent / sum(costs) == pytest.approx(share, abs=THREE_DIGITS)
