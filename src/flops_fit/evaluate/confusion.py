"""Which class is taken for which, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

FILE = "confusion.svg"
CELL, NAMES = 34, 130  # units: of a cell, and of the names beside the cells


def confusion_svg(counts: NDArray[np.int64], classes: Sequence[str]) -> str:
    """(K, K) numbers of pictures of class i, down, taken for class j, across; darker is a larger share of the class."""
    size = NAMES + CELL * len(classes)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" font-family="sans-serif" font-size="12" '
        f'role="img" aria-label="which class is taken for which">',
        f'<rect width="{size}" height="{size}" fill="#ffffff"/>',
    ]
    for i, name in enumerate(classes):
        middle = NAMES + CELL * (i + 0.5)
        parts.append(f'<text x="{NAMES - 6}" y="{middle + 4}" text-anchor="end" fill="#222222">{escape(name)}</text>')
        parts.append(f'<text transform="translate({middle + 4} {NAMES - 6}) rotate(-90)" fill="#222222">'
                     f"{escape(name)}</text>")  # fmt: skip
        for j, count in enumerate(counts[i]):
            share = count / max(1, counts[i].sum())
            x, y = NAMES + CELL * j, NAMES + CELL * i
            ink = "#ffffff" if share > 0.5 else "#222222"  # to be read on what lies below
            parts.append(f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="#0b4f6c" '
                         f'fill-opacity="{share if count else 0.03:.3f}"/>')  # fmt: skip
            if count:
                parts.append(f'<text x="{x + CELL / 2}" y="{y + CELL / 2 + 4}" text-anchor="middle" fill="{ink}">'
                             f"{count}</text>")  # fmt: skip
    return "".join([*parts, "</svg>"])
