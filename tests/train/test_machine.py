"""What a process says of its own memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flops_fit.train.machine import Counter, Meter, Spent, energy_counters, forget_peak, peak_memory

CPU = torch.device("cpu")
BIG = 400_000_000      # bytes that the allocator asks of the system at once
SLACK = 50_000_000     # what else comes and goes: pages of imported modules, other tensors


def touched() -> int:
    """Peak while BIG bytes are held."""
    held = torch.ones(BIG // 4)
    assert held.sum() > 0
    return peak_memory(CPU)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that of the process's life")
def test_a_peak_is_forgotten_when_asked() -> None:
    forget_peak(CPU)
    before = peak_memory(CPU)
    assert touched() >= before + BIG - SLACK
    forget_peak(CPU)
    assert peak_memory(CPU) <= before + SLACK


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child's peak may be its parent's")
def test_a_child_does_not_begin_with_the_peak_of_its_parent() -> None:
    parent = touched()
    code = "import torch; from flops_fit.train.machine import peak_memory; print(peak_memory(torch.device('cpu')))"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert child < parent - BIG / 2, "Popen starts by vfork, and ru_maxrss passes through exec"


def test_energy_is_counted_over_counters_that_begin_anew() -> None:
    """A counter of 100 joules that is asked often enough: two turns of it are all there."""
    told = iter([90.0, 30.0, 95.0, 40.0, 60.0])
    meter = Meter([Counter(lambda: next(told), 100.0)])
    assert [meter.spent().joules for _ in range(4)] == [40.0, 105.0, 150.0, 170.0]


def test_sittings_add_up_and_what_one_does_not_know_none_does() -> None:
    first, second = Spent(2.0, 3.0, 5.0), Spent(1.0, 1.0, 7.0)
    assert first.and_then(second) == Spent(3.0, 4.0, 12.0)
    assert first.and_then(Spent(1.0, 1.0, None)) == Spent(3.0, 4.0, None)
    spent = Meter([]).spent()
    assert spent.joules is None and 0 <= spent.cpu_seconds < 60 and spent.seconds >= 0


def test_packages_are_read_where_all_may_be(tmp_path: Path) -> None:
    assert energy_counters(CPU, tmp_path) == []
    for number in (0, 1):
        package = tmp_path / f"intel-rapl:{number}"
        package.mkdir()
        (package / "max_energy_range_uj").write_text("262143328850\n")
        (package / "energy_uj").write_text(f"{number + 1}000000\n")
    found = energy_counters(CPU, tmp_path)
    assert [one.read() for one in found] == [1.0, 2.0] and found[0].wraps == pytest.approx(262143.32885)
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("")  # as of one that may not be read
    assert energy_counters(CPU, tmp_path) == []
