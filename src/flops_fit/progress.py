"""How far long work is and how long it will take yet, on a terminal; nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Part = TypeVar("Part")


def shown(parts: Iterable[Part], total: int, what: str, quiet: bool = False) -> Iterator[Part]:
    """The parts, while a line on standard error tells how many of `total` are done; it is gone when all are.

    Args:
        quiet: tell nothing, such as of little work, or while another line is there.
    """
    if quiet or not sys.stderr.isatty():
        yield from parts
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(parts, what, total=total, console=Console(stderr=True), transient=True)
