"""The learning rate over one run: warmup, stable, decay to zero (Eq. P4), and where a branch leaves its trunk (P7)."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["linear", "1-sqrt"]


def wsd(step: int, steps: int, warmup: float, decay: float, shape: Shape = "linear") -> float:
    """Factor of the peak learning rate at `step` (0-based) of `steps`.

    Warmup-stable-decay (Hu et al. 2024, arXiv 2404.06395; Haegele et al. 2024, arXiv 2405.18392): linear up over
    the first `warmup` steps, 1, down over the last `decay` steps to end at zero after the last step: linearly, or as
    1 - sqrt(x) with x the share of the decay that is done, which loses less when the decay is short (Haegele et al.).
    """
    rising = (step + 1) / max(1.0, warmup)
    left = min(1.0, (steps - step) / max(1.0, decay))
    falling = left if shape == "linear" else 1.0 - math.sqrt(1.0 - left)
    return min(1.0, rising, falling)
