"""A line for those who wait: on a terminal alone, and it changes nothing of the work."""

from __future__ import annotations

import io
import sys

import pytest

from flops_fit.progress import shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "quiet"), [(io.StringIO(), False), (Terminal(), True), (Terminal(), False)])
def test_all_parts_come_and_a_terminal_is_told(
    stream: io.StringIO, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    assert list(shown(iter("abc"), 3, "drawing 3 pictures", quiet)) == ["a", "b", "c"]
    assert ("drawing 3 pictures" in stream.getvalue()) == (stream.isatty() and not quiet)
