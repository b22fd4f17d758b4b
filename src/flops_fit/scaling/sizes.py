"""Which sizes of a model to run: found by how many parameters they have, without training or importing torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Literal

from flops_fit.errors import InputError
from flops_fit.records import Measurement

if TYPE_CHECKING:
    from flops_fit.scaling.plan import PlanRules

SIZE_TRIES = 8           # neighbouring multiples tried when a size cannot be built
LARGEST_SIZE = 2**24     # where the search for a large enough size gives up


class Sizes:
    """Sizes of one model, found by how many parameters they have. Caches; remembers what could not be built."""

    def __init__(self, measure: Callable[[int], Measurement], count: Callable[[int], int], multiple: int) -> None:
        if multiple < 1:
            raise InputError(f"size_multiple: got {multiple}; allowed is a whole number from 1 on")
        self._measure, self._count, self.multiple = measure, count, multiple
        self._measured: dict[int, Measurement] = {}
        self._params: dict[int, int | None] = {}
        self.broken: dict[int, str] = {}

    @property
    def measured(self) -> tuple[Measurement, ...]:
        return tuple(self._measured[size] for size in sorted(self._measured))

    def at(self, size: int) -> Measurement | None:
        """The size, measured; None when it cannot be built (`broken` then holds the reason)."""
        if size not in self._measured and size not in self.broken:
            try:
                self._measured[size] = self._measure(size)
            except Exception as error:
                self.broken[size] = f"{type(error).__name__}: {error}".splitlines()[0]
        return self._measured.get(size)

    def params(self, size: int) -> int | None:
        if size not in self._params:
            try:
                self._params[size] = self._count(size)
            except Exception as error:
                self.broken[size] = f"{type(error).__name__}: {error}".splitlines()[0]
                self._params[size] = None
        return self._params[size]

    def near(self, params: float) -> int | None:
        """The multiple whose N is nearest to `params` on a log scale; None when no size can be built."""
        below, above = 1, 1
        while (at := self._buildable(above)) is not None and at[1] < params and at[0] < LARGEST_SIZE:
            below, above = above, above * 2
        while above - below > 1:  # N grows with the size: bisect on whole multiples
            middle = (below + above) // 2
            at = self._buildable(middle)
            below, above = (middle, above) if at is not None and at[1] < params else (below, middle)
        found = [at for at in (self._buildable(below), self._buildable(above)) if at is not None]
        return min(found, key=lambda at: abs(math.log(at[1] / params)))[0] if found else None

    def next_to(self, size: int, step: Literal[-1, 1]) -> int | None:
        """The next multiple in that direction that can be built."""
        multiples = range(size // self.multiple + step, size // self.multiple + step * (SIZE_TRIES + 1), step)
        return next((k * self.multiple for k in multiples if k > 0 and self.params(k * self.multiple)), None)

    def next_beyond(
        self, have: Sequence[int], edge: Literal["low", "high"] | None, shared: Collection[int] = ()
    ) -> int | None:
        """A size below the smallest or above the largest of `have`: the next one of `shared`, or else one that lies as
        far away in log N as the two outermost are apart."""
        further = [size for size in shared if (size < min(have) if edge == "low" else size > max(have))]
        if further:
            return max(further) if edge == "low" else min(further)
        known = sorted(((self.params(size) or 1), size) for size in have)
        if edge == "low":
            known.reverse()
        outer, inner = known[-1], known[-2] if len(known) > 1 else known[-1]
        size = self.near(outer[0] ** 2 / inner[0])
        beyond = size is not None and (size < outer[1] if edge == "low" else size > outer[1])
        return size if beyond else self.next_to(outer[1], -1 if edge == "low" else 1)

    def _buildable(self, index: int) -> tuple[int, int] | None:
        """(size, N) of the first multiple from `index` on that can be built."""
        for k in range(index, index + SIZE_TRIES):
            params = self.params(k * self.multiple)
            if params is not None:
                return k * self.multiple, params
        return None


def sizes_for(budget: float, sizes: Sizes, rules: PlanRules) -> list[int]:
    """About `sizes_per_budget` sizes around the centre D/N = tokens_per_param, log-spaced in N (Eq. P5).

    Where runs branch off trunks, they are rungs of one ladder, the same for all budgets (Eq. P7b): neighbouring budgets
    share sizes, and one that is added later changes nothing for the others.
    """
    if rules.sizes is not None:
        return [size for size in sorted(set(rules.sizes)) if sizes.at(size) is not None]
    centre, count = math.log(_centre(budget, sizes, rules.tokens_per_param)), rules.sizes_per_budget
    step = 2 * math.log(rules.span) / (count - 1)
    lowest = centre - math.log(rules.span)
    if rules.branch:
        lowest = step * round(lowest / step)
    found = {size for k in range(count) if (size := sizes.near(math.exp(lowest + k * step))) is not None}
    while found and len(found) < count:  # rounding made two the same: take the nearest neighbours
        around = [sizes.next_to(min(found), -1), sizes.next_to(max(found), 1)]
        new = [s for s in around if s is not None]
        if not new:
            break
        found.add(min(new, key=lambda s: abs(math.log(sizes.params(s) or 1) - centre)))
    return sorted(found)


def _centre(budget: float, sizes: Sizes, tokens_per_param: float) -> float:
    """N with C = f(N) N (D/N), by a few fixed-point steps from f = 6N."""
    params = math.sqrt(budget / (6 * tokens_per_param))
    for _ in range(4):
        size = sizes.near(params)
        measured = None if size is None else sizes.at(size)
        if measured is None:
            return params
        ratio = measured.flops_per_token / measured.params  # FLOPs per token and parameter, 6 in the textbook
        params = math.sqrt(budget / (ratio * tokens_per_param))
    return params
