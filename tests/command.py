"""The command line as a user calls it, in this process."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from flops_fit import cli


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["flops-fit", *words])
    code: Any = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code or 0, out, err
