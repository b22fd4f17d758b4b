"""What a process says of its own memory."""

import subprocess
import sys

import pytest
import torch

from flops_fit.train.machine import forget_peak, peak_memory

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
