"""The stated rules of training: learning rate in N and D, batch size in D, and what short runs say about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flops_fit.errors import FitError, InputError
from flops_fit.records import Record

LR_START = 0.4                           # coefficient of the built-in GPT; where lr="auto" begins to search
LR_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of that coefficient, tried first
LR_MOST_EXTENSIONS = 6                   # more factors tried, one by one, while the best lies at an end


@dataclass(frozen=True, slots=True)
class LrRule(Record):
    """Peak learning rate = coefficient x N^n_exponent x D^d_exponent (Eq. P3).

    Exponents: Li et al. 2025 (Step Law, arXiv 2503.04715), -0.713 and 0.307. The coefficient depends on the model;
    `lr="auto"` measures it.
    """

    coefficient: float
    n_exponent: float = -0.713
    d_exponent: float = 0.307

    @classmethod
    def of(cls, lr: str | float | LrRule) -> LrRule:
        """A rule as it is; "auto" the rule with the starting coefficient; a number the same rate for every run."""
        if isinstance(lr, LrRule):
            return lr
        if lr == "auto":
            return cls(LR_START)
        if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < math.inf:
            raise InputError(f'lr: got {lr!r}; allowed are "auto", a positive number or an LrRule')
        return cls(float(lr), n_exponent=0.0, d_exponent=0.0)

    def __call__(self, params: float, tokens: float) -> float:
        return float(self.coefficient * params**self.n_exponent * tokens**self.d_exponent)

    def bent(self, params: float, larger: float, factor: float) -> LrRule:
        """The rule that equals this one at N = `params` and is `factor` times this one at `larger` (Eq. P9)."""
        turn = math.log(factor) / math.log(larger / params)
        return LrRule(self.coefficient * params**-turn, self.n_exponent + turn, self.d_exponent)

    def __str__(self) -> str:
        return f"{self.coefficient:.4g} N^{self.n_exponent:.4g} D^{self.d_exponent:.4g}"


@dataclass(frozen=True, slots=True)
class BatchRule(Record):
    """Tokens a step = coefficient x D^exponent (Eq. P2), or a fixed number of samples.

    Exponent: Li et al. 2025 (Step Law), 0.571. Their coefficient .58 was fitted at N >= 10^8; at 10^4..10^6
    parameters smaller batches win, see experiments/gpt-python.
    """

    coefficient: float = 0.35
    exponent: float = 0.571
    samples: int | None = None  # fixed batch size in samples

    @classmethod
    def of(cls, batch_size: str | int | BatchRule) -> BatchRule:
        """A rule as it is; "auto" the rule of this class, and where "measure" begins; a number that many samples."""
        if isinstance(batch_size, BatchRule):
            return batch_size
        if batch_size in ("auto", "measure"):
            return cls()
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(
                f'batch_size: got {batch_size!r}; allowed are "auto", "measure", a whole number from 1 on '
                "or a BatchRule"
            )
        return cls(samples=batch_size)

    def __call__(self, tokens: float, tokens_per_sample: int) -> int:
        """Samples a step for a run of D `tokens`."""
        if self.samples is not None:
            return self.samples
        return max(1, int(0.5 + self.coefficient * tokens**self.exponent / tokens_per_sample))

    def __str__(self) -> str:
        if self.samples is not None:
            return f"{self.samples} samples"
        return f"{self.coefficient:g} D^{self.exponent:g} tokens"


def stable_steps(steps: int, decay: float) -> int:
    """Steps of a run before its learning rate begins to fall, `decay` the fraction over which it does (Eq. P7)."""
    return math.floor((1 - decay) * steps)


def search_factor(
    losses_of: Callable[[Sequence[float]], Sequence[float | None]],
    factors: Sequence[float] = LR_FACTORS,
    most_extensions: int = LR_MOST_EXTENSIONS,
) -> float:
    """The factor of a learning rate with the least loss (Eq. P3).

    Args:
        losses_of: trains one short run for each factor given (None: it failed).
        factors: ascending in steps of 2, tried first.

    Raises:
        FitError: every run failed.
    """
    tried: dict[float, float] = {}
    ask = factors
    for _ in range(1 + most_extensions):
        tried |= {f: math.inf if loss is None else loss for f, loss in zip(ask, losses_of(ask), strict=True)}
        best = min(tried, key=lambda factor: tried[factor])
        if not math.isfinite(tried[best]):
            raise FitError('lr="auto": no learning rate tried led to a finite loss; pass lr= and check the loss')
        if best not in (min(tried), max(tried)):
            break
        ask = [best / 2] if best == min(tried) else [best * 2]
    return best_factor(tried)


def best_factor(losses: Mapping[float, float]) -> float:
    """Vertex of the parabola in log factor through the best of `losses` {factor: loss} and its neighbours (Eq. P3)."""
    factors = sorted(losses)
    best = min(range(len(factors)), key=lambda i: losses[factors[i]])
    if not 0 < best < len(factors) - 1:
        return factors[best]
    x = [math.log(factors[i]) for i in (best - 1, best, best + 1)]
    y = [losses[factors[i]] for i in (best - 1, best, best + 1)]
    if not all(map(math.isfinite, y)):
        return factors[best]
    left, right = (y[0] - y[1]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])  # both >= 0: y[1] is the least
    if left + right == 0:
        return factors[best]
    vertex = x[1] + 0.5 * (left - right) / (left + right) * (x[2] - x[0]) / 2
    return math.exp(vertex)
