"""Laws of the learning rate and the batch size from a grid of runs: lr = c N^a D^b, batch = d D^e.

Form: Li et al. 2025 (Step Law, arXiv 2503.04715). The optimum of an (N, D) is the vertex of a quadratic surface through
its runs of lowest loss (Eq. S40, S41), not its lowest run, with which noise scatters exponents several times as much.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from flops_fit.errors import FitError, InputError, TableError
from flops_fit.records import LeftOut
from flops_fit.scaling.bootstrap import symmetric
from flops_fit.scaling.rules import BatchRule, LrRule
from flops_fit.scaling.table import NAMES

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

COLUMNS = {name: NAMES[name] for name in ("params", "tokens", "loss")} | {
    "lr": ("lr", "learning_rate", "peak_lr"), "batch": ("batch", "batch_tokens", "bs_tokens")}
SAMPLES = ("bs", "batch_size", "batch_sequences")  # a batch that is not in tokens: refused, not guessed
EXPONENTS = {"lr": {"lr_n_exponent": "params", "lr_d_exponent": "tokens"}, "batch": {"batch_d_exponent": "tokens"}}
SAME = {"params": 1.01, "tokens": 1.05, "lr": 1.01, "batch": 1.01}  # smaller gaps are none: D is in whole steps
LEAST = 3                 # (N, D), and values of lr or batch at each: the law of lr and a parabola have 3 coefficients
LOWEST = (1.5, 0.25)      # runs that set a surface's width: 1.5 a coefficient, or if that is more a quarter of all
CUT = 5.0                 # widths above the lowest loss from which on a run has no weight: it may have diverged
RUNS_A_CUBIC = 2          # runs a coefficient from which on a cubic surface tells how lopsided the bowl is
FARTHEST = 1.0            # log of a shift beyond which a cubic has no minimum of its own near the vertex
FLAT = 1e-9               # of the largest curvature or singular value, and of 1 - leverage: what is below is rounding
SPREAD = 0.1              # of log N or log D, below which an exponent is not determined
MIN_DRAWS = 100


@dataclass(frozen=True, slots=True)
class RulePoint:
    """The best learning rate and batch of one (N, D); one that was not fitted is that of the runs."""

    params: float
    tokens: float
    lr: float            # peak learning rate
    batch: float | None  # tokens a step; None: the table does not say
    loss: float          # of the surface at its vertex; of the lowest run at an edge
    runs: int            # with a finite loss
    edge: str | None     # why it was not used: "lr low", "lr high", "batch low", "batch high", "no minimum"


@dataclass(frozen=True, slots=True)
class RuleFit:
    """The fitted rules, ready for `lr=` and `batch_size=` of the training engine."""

    lr: LrRule | None              # None: lr did not vary
    batch: BatchRule | None        # None: batch did not vary
    intervals: dict[str, tuple[float, float]]  # 95%: lr_coefficient, lr_n_exponent, ... batch_d_exponent
    points: tuple[RulePoint, ...]  # all of them, used or not
    left_out: tuple[LeftOut, ...]  # runs, by their row from 0 on
    rms: dict[str, float]          # root mean square of the log residuals of "lr" and of "batch"
    shift: dict[str, float]        # factor on every vertex because bowls are lopsided (Eq. S42); 1: none measured
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; an unbounded end of an interval is None."""
        return asdict(self) | {"intervals": {name: [end if math.isfinite(end) else None for end in band]
                                             for name, band in self.intervals.items()}}

    def summary(self) -> str:
        used = [point.runs for point in self.points if point.edge is None]
        lines = [f"{sum(used)} runs at {len(used)} of {len(self.points)} (N, D), 95% intervals:"]
        for name, law in {"lr": self.lr, "batch": self.batch}.items():
            if law is not None:
                lines.append(f"  {name} = {law}, rms of the log residuals {self.rms[name]:.3f}")
                lines += [f"    {key:<18}{low:.4g} to {high:.4g}"
                          for key, (low, high) in self.intervals.items() if key.startswith(name)]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def fit_rules(
    table: str | Path | Mapping[str, Any] | Any,  # CSV file, mapping of columns or DataFrame
    *,
    bootstrap: int = 1000, seed: int = 0,         # draws behind the intervals
) -> RuleFit:
    """lr = c N^a D^b and batch = d D^e through the best lr and batch of each (N, D). Eq. S40 to S43.

    Columns: params, tokens, loss, lr, and batch in tokens a step. Without batch, or where it does not vary, only lr is
    fitted; where lr does not vary, only batch. A run whose loss is NaN or infinite has diverged and is left out.

    Raises:
        TableError: a missing column, text, or a number that is not above zero.
        FitError: fewer than 3 (N, D) with an optimum inside their grid, or an exponent that they do not determine.
    """
    if isinstance(bootstrap, bool) or not isinstance(bootstrap, int) or bootstrap < MIN_DRAWS:
        raise InputError(f"bootstrap: got {bootstrap!r}; allowed are whole numbers from {MIN_DRAWS} on")
    columns = _read(table)
    finite = np.flatnonzero(np.isfinite(columns["loss"]))
    groups = _split(columns, "tokens", _split(columns, "params", [finite]))
    names = tuple(name for name in EXPONENTS if name in columns and sum(
        len(_split(columns, name, [rows])) >= LEAST for rows in groups) >= LEAST)
    if not names:
        raise FitError(f"rules: of {len(groups)} (N, D) fewer than {LEAST} have {LEAST} values of lr, or of "
                       f"batch; run a grid of {LEAST} values or more at each of {LEAST} (N, D) or more")
    for name in EXPONENTS.keys() - set(names) & columns.keys():  # too few values: each is a point of its own
        groups = _split(columns, name, groups)
    bowls = [_bowl(np.log(np.stack([columns[name][rows] for name in names], axis=1)), columns["loss"][rows], names)
             for rows in groups]
    reasons = {row: f"no optimum inside its grid: {bowl.edge}" for rows, bowl in zip(groups, bowls, strict=True)
               if bowl.edge for row in rows.tolist()}
    reasons |= dict.fromkeys(np.flatnonzero(~np.isfinite(columns["loss"])).tolist(), "diverged: no finite loss")
    left_out = tuple(LeftOut(row=row, reason=reasons[row]) for row in sorted(reasons))
    return _laws(*_points(columns, groups, bowls, names), left_out, bootstrap, np.random.default_rng(seed))


def _read(source: str | Path | Mapping[str, Any] | Any) -> dict[str, Array]:
    """The columns of COLUMNS that the table has, checked, each (n,)."""
    if isinstance(source, str | Path):
        try:
            with Path(source).open(newline="", encoding="utf-8-sig") as file:
                header, *rows = (row for row in csv.reader(file) if any(row))
            cells: Mapping[str, Any] = dict(zip(header, zip(*rows, strict=True), strict=True))
            if len(cells) < len(header):
                raise ValueError("two columns have one name")
        except (OSError, ValueError, csv.Error) as error:  # ValueError: no header, no rows, or rows of other lengths
            raise TableError(f"rules: {str(source)!r} cannot be read ({error}); give a CSV with a header of params, "
                             "tokens, loss, lr and batch, and one cell a column in every row") from error
    elif isinstance(source, Mapping) or hasattr(source, "columns"):
        cells = {str(name): source[name] for name in getattr(source, "columns", source)}
    else:
        raise TableError(f"rules: got {type(source).__name__}; give a CSV path, a mapping of columns or a DataFrame")
    columns: dict[str, Array] = {}
    for role, allowed in COLUMNS.items():
        claims = [name for name in cells if name.strip().lower() in allowed]
        claims = [name for name in claims if name.strip().lower() == role] or claims  # the word beats its synonyms
        if len(claims) > 1 or (not claims and role != "batch"):
            raise TableError(f"rules: {len(claims)} columns for {role} (there: {', '.join(cells) or 'none'}); give one "
                             f"that is named {' or '.join(allowed)}")
        columns |= {role: _numbers(role, claims[0], cells[claims[0]])} if claims else {}
    if "batch" not in columns and (other := [name for name in cells if name.strip().lower() in SAMPLES]):
        raise TableError(f"rules: column {other[0]!r} is a batch in samples; give a column 'batch' in tokens a step, "
                         "samples times the tokens of one")
    if len({len(column) for column in columns.values()}) != 1 or not len(columns["loss"]):
        raise TableError("rules: the columns are empty or of different lengths; give each one value a run")
    return columns


def _numbers(role: str, name: str, cells: Any) -> Array:
    """Above zero and finite, (n,); a loss may be NaN or infinite."""
    try:
        numbers = np.array([float(cell) for cell in cells])
    except (TypeError, ValueError) as error:
        raise TableError(f"rules: column {name!r} is not all numbers ({error}); correct or drop the row") from None
    for row in np.flatnonzero((numbers <= 0) | (~np.isfinite(numbers) & (role != "loss"))).tolist():
        raise TableError(f"rules: row {row + 1}, column {name!r} holds {numbers[row]:g}; every {role} must be a number "
                         "above zero, so correct or drop the row")
    return numbers


def _split(columns: Mapping[str, Array], name: str, groups: Sequence[Rows]) -> list[Rows]:
    """Each group of rows in parts, cut where its column has a gap larger than SAME, in increasing order."""
    ordered = (rows[np.argsort(columns[name][rows], kind="stable")] for rows in groups)
    return [part for rows in ordered for part in np.split(rows, 1 + np.flatnonzero(
        np.diff(np.log(columns[name][rows])) > math.log(SAME[name])))]


class _Bowl(NamedTuple):  # the optimum of one (N, D), in logs of the q columns that are fitted
    at: Array               # (q,) vertex, or the lowest run at an edge
    loss: float
    edge: str | None
    lopsided: Array | None  # (q,) from the vertex to the minimum of a cubic; None: not known


def _bowl(x: Array, loss: Array, names: Sequence[str]) -> _Bowl:
    """Vertex of the quadratic surface through the lowest of the runs x (n, q), loss (n,). Eq. S40, S41."""
    q, lowest = len(names), int(loss.argmin())
    k = min(len(loss), max(int(LOWEST[0] * math.comb(q + 2, 2)), math.ceil(LOWEST[1] * len(loss))))
    excess = loss - loss[lowest]
    width = float(np.partition(excess, k - 1)[k - 1]) or 1.0  # from the loss itself: its unit does not matter
    near = excess <= CUT * width
    close, low, weights = x[near], loss[near], np.exp(-excess[near] / width)
    middle = np.average(close, axis=0, weights=weights)
    surface = _surface(close - middle, low, weights, 2)
    step = _newton(surface, q)
    edge = (_edge(x, x[lowest], names) or "no minimum") if step is None else _edge(close, middle + step, names)
    if surface is None or step is None or edge:
        return _Bowl(x[lowest], float(loss[lowest]), edge, None)
    return _Bowl(middle + step, float(surface[0] + step @ surface[1:1 + q] / 2), None,
                 _lopsided(close - middle - step, low, weights))


def _surface(x: Array, loss: Array, weights: Array, degree: int) -> Array | None:
    """Weighted least squares of a polynomial in x (n, q): coefficients by degree; None when undetermined."""
    terms = [t for power in range(degree + 1) for t in combinations_with_replacement(range(x.shape[1]), power)]
    scale = np.sqrt(weights)
    design = np.stack([x[:, list(term)].prod(axis=1) for term in terms], axis=1) * scale[:, None]
    answer, _, rank, _ = np.linalg.lstsq(design, loss * scale, rcond=FLAT)
    return cast(Array, answer) if rank == len(terms) else None


def _newton(surface: Array | None, q: int) -> Array | None:
    """Step (q,) from x = 0 to the vertex of a surface's terms up to degree 2; None where they are no bowl. Eq. S41."""
    if surface is None:
        return None
    hessian = np.zeros((q, q))
    hessian[np.triu_indices(q)] = surface[1 + q:math.comb(q + 2, 2)]
    hessian += hessian.T
    low, high = np.linalg.eigvalsh(hessian)[[0, -1]]
    return cast(Array, -np.linalg.solve(hessian, surface[1:1 + q])) if low > FLAT * abs(high) else None


def _edge(x: Array, at: Array, names: Sequence[str]) -> str | None:
    """The first side of the runs x (n, q) on which, or beyond which, `at` lies."""
    for name, low, high, here in zip(names, x.min(axis=0), x.max(axis=0), at, strict=True):
        if low < high and not low < here < high:
            return f"{name} low" if here <= low else f"{name} high"
    return None


def _lopsided(x: Array, loss: Array, weights: Array) -> Array | None:
    """(q,) from x = 0, the vertex, to the minimum of a cubic, by two Newton steps; None: too few runs. Eq. S42."""
    at = np.zeros(x.shape[1])
    if len(x) < RUNS_A_CUBIC * math.comb(len(at) + 3, 3):
        return None
    for _ in range(2):
        step = _newton(_surface(x - at, loss, weights, 3), len(at))
        if step is None or np.abs(at + step).max() > FARTHEST:
            return None
        at = at + step
    return at


def _points(columns: Mapping[str, Array], groups: Sequence[Rows], bowls: Sequence[_Bowl], names: tuple[str, ...],
            ) -> tuple[tuple[RulePoint, ...], dict[str, float]]:
    """The points, and the factor that moved all their vertices: none where fewer than half know it. Eq. S42."""
    known = [bowl.lopsided for bowl in bowls if bowl.lopsided is not None]
    enough = known and 2 * len(known) >= sum(bowl.edge is None for bowl in bowls)
    shift = np.median(known, axis=0) if enough else np.zeros(len(names))
    points = []
    for rows, bowl in zip(groups, bowls, strict=True):
        middle = {name: float(np.median(columns[name][rows])) for name in columns}
        best = np.exp(bowl.at if bowl.edge else bowl.at + shift).tolist()
        chosen = {"batch": None} | middle | dict(zip(names, best, strict=True)) | {"loss": bowl.loss}
        points.append(RulePoint(**chosen, runs=len(rows), edge=bowl.edge))
    return tuple(points), dict(zip(names, np.exp(shift).tolist(), strict=True))


def _laws(points: tuple[RulePoint, ...], shift: dict[str, float], left_out: tuple[LeftOut, ...], draws: int,
          rng: np.random.Generator) -> RuleFit:
    """The rules through the points inside their grids, of those that `shift` names."""
    used = [point for point in points if point.edge is None]
    edges = ", ".join(sorted({point.edge for point in points if point.edge}))
    if len(used) < LEAST:
        raise FitError(f"rules: {len(used)} of {len(points)} (N, D) have an optimum inside their grid, {LEAST} "
                       f"are needed (others: {edges or 'none'}); add (N, D), or lr and batch beyond those edges")
    fits = {name: _power_law(EXPONENTS[name], name, used, draws, rng) for name in shift}
    intervals = {key: band for name, (_, bands, _) in fits.items()
                 for key, band in zip((f"{name}_coefficient", *EXPONENTS[name]), bands, strict=True)}
    warnings = [f"{len(points) - len(used)} of {len(points)} (N, D) have no optimum inside their grid ({edges}): run "
                "values of lr and batch beyond those edges"] if edges else []
    warnings += [f"{name}: {len(used)} (N, D) for as many coefficients, so no interval is known; add (N, D)"
                 for name, (law, _, _) in fits.items() if len(used) == len(law)]
    if "batch" not in fits:
        warnings.append("batch did not vary enough for a law: the rule of lr is that of the batch sizes that were run")
    return RuleFit(LrRule(*fits["lr"][0]) if "lr" in fits else None,
                   BatchRule(fits["batch"][0][0], fits["batch"][0][1]) if "batch" in fits else None, intervals, points,
                   left_out, {name: rms for name, (_, _, rms) in fits.items()}, shift, tuple(warnings))


def _power_law(exponents: Mapping[str, str], name: str, points: Sequence[RulePoint], draws: int,
               rng: np.random.Generator) -> tuple[list[float], list[tuple[float, float]], float]:
    """Least squares in logs: coefficient and exponents, their 95% intervals, rms of the residuals. Eq. S43.

    Residuals are drawn, not points: of 4 to 9 points, drawn points cover too seldom.
    """
    x = np.log([[getattr(point, column) for column in exponents.values()] for point in points])
    y = np.log([getattr(point, name) for point in points])
    design, (n, p) = np.column_stack([np.ones(len(x)), x - x.mean(axis=0)]), (len(x), len(exponents) + 1)
    for column, exponent in enumerate(exponents, start=1):
        others = np.delete(design, column, axis=1)
        if np.ptp(design[:, column] - others @ np.linalg.pinv(others) @ design[:, column]) < SPREAD:
            letter = "N" if exponents[exponent] == "params" else "D"
            raise FitError(f"rules: {exponent} is not determined, {letter} does not vary by itself between the (N, D); "
                           f"add runs at another {letter}, a factor 4 away or more, with the other one held")
    inverse = np.linalg.pinv(design)
    residuals = y - design @ (inverse @ y)
    solve = np.vstack([inverse[0] - x.mean(axis=0) @ inverse[1:], inverse[1:]])  # level at N = D = 1, not at the mean
    law, ends = solve @ y, np.tile([[-np.inf], [np.inf]], (1, p))
    if n > p:
        free = np.maximum(1 - np.einsum("ij,ji->i", design, inverse), FLAT)
        scale = np.sqrt((n - p) / rng.chisquare(n - p, (draws, 1)))  # n - p residuals know their own size so well
        ends = np.stack(symmetric(law + (residuals / np.sqrt(free))[rng.integers(0, n, (draws, n))] * scale @ solve.T,
                                  law))
    law[0], ends[:, 0] = np.exp(law[0]), np.exp(ends[:, 0])
    return law.tolist(), list(zip(*ends.tolist(), strict=True)), float(np.sqrt((residuals**2).mean()))
