"""What to leave out of a fit, and why: duplicates, diverged runs, runs far from the optimum, single runs gone wrong.

Every rule spares what it is not sure of. They are held against the runs of Hoffmann et al. as published by Besiroglu
et al. 2024 (arXiv 2404.10102): the five runs that were left out there are found, the other 240 are all kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.special import ndtri

from flops_fit.errors import FitError, TableError
from flops_fit.records import LeftOut
from flops_fit.scaling.compute import FlopsPerToken, optimum
from flops_fit.scaling.forms import CHINCHILLA, Array, Form
from flops_fit.scaling.huber import minimise
from flops_fit.scaling.law import Law, centred, fit_law
from flops_fit.scaling.table import Runs

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]

SAME = 1e-5            # in log N and log D of duplicates; their losses are equal to the last digit, as no seeds are
DIVERGED = float(np.log(1.25))  # above what two smaller runs reached: far from sweeps with a tuned learning rate, and
                       # the lost corner of Step Law's grid of learning rates (arXiv 2503.04715)
QUANTILE = 0.7         # of |r| that gives the noise: steadier than the median, and deaf to 30% of lost runs
NORMAL_QUANTILE = float(ndtri((1 + QUANTILE) / 2))  # the same of a standard normal
EXTREME = 6.0          # times the noise, for a run that stands alone; a run +10% at a noise of 1% has 10
SUSPECT = 4.0          # the same before the law is fitted without it: among few runs, the law goes half way to meet it
NEIGHBOURS = 3         # nearest runs: where they miss the law likewise, the law is wrong there, not the run
SHARED = 0.5           # what they must have of its miss, in the median, for that
OWN_MODEL = 1e3        # stretch of log N that puts the other runs of the same model before all others
OFF_CENTRE = 5.0       # factor between N and the best N that counts as far. Distance alone is no fault
MISFIT = 11.0          # times the noise, far from the optimum, whatever the neighbours do. Set so that the five runs
                       # that Besiroglu et al. left out go and the 240 that they kept stay: a close call, held by tests
NEGLIGIBLE = 0.01      # a run within 1% of the law is kept, however exact the others are
LARGEST_SHARE = 0.1    # of the runs that may be left out for missing the law; above it the law is at fault
JUDGED_RUNS = 12       # fewer runs have no noise that can be known
JUDGE_DELTA = 1e-3     # Huber's delta here: nearly least absolute deviations, which one lost run does not bend
FIT_RUNS = 3000        # of more runs than these, so many give the law that all are held against
REFERENCES = 1000      # of more runs than these, so many are what the others are compared with for divergence
CHUNK = 2000           # runs compared with them at once
FEW_RUNS = 40          # up to these, the law is fitted without each in turn, as one of them can draw it to itself
DRAWN = 1 / 3          # of the misfit that is then left: such a run is suspect
ROUNDS = 6             # of leaving out and fitting again

UNIT_RATIO = 30.0      # C / 6 N D of honest tables: 0.3 to 10, whether attention and embeddings are counted or not
ABSURD_RATIO = 3e4    # more than samples of many tokens can explain: the table is wrong, not unusual
SAMPLE_RATIO = 1e5     # the same where D counts samples, each of up to this many tokens or positions
UNITS_NEAR = 3.0       # factor within which a power of a thousand is named
TOO_MUCH = {1e3: "params or tokens in thousands", 1e6: "params or tokens in millions",
            1e9: "params or tokens in billions", 1e12: "params and tokens both in millions, or one in trillions",
            1e15: "params in millions and tokens in billions", 1e18: "params and tokens both in billions"}
TOO_LITTLE = {1e3: "FLOPs in thousands", 1e6: "FLOPs in millions", 1e9: "FLOPs in billions (gigaFLOPs)",
              1e12: "teraFLOPs", 1e15: "petaFLOPs", 1e18: "exaFLOPs", 8.64e19: "petaFLOP/s-days"}
CONSTANT = 1e-6        # range of log loss below which all losses are one
CLEARLY = 3.0          # standard errors by which loss must grow with params and with tokens to be called nonsense


@dataclass(frozen=True, slots=True, eq=False)
class Screen:
    """Which runs a law should be fitted to."""

    keep: Mask                      # (n,)
    left_out: tuple[LeftOut, ...]   # the others, by row, each with a reason that begins with the name of its rule
    warnings: tuple[str, ...]


def screen(runs: Runs, form: Form = CHINCHILLA) -> Screen:
    """Rows to leave out by four rules: duplicate, diverged, off-centre, extreme. Eq. S25-S28.

    The last two need a law of `form`; where the runs do not determine one, or are fewer than 12, only the first two
    are asked. Raises nothing: tables that cannot be fitted at all are for `nonsense` and for the fit to refuse.
    """
    rows = np.lexsort((runs.loss, runs.tokens, runs.params))  # the answer must not depend on the order of the rows
    reasons: dict[int, str] = {}

    def leave_out(found: dict[int, str]) -> None:
        nonlocal rows
        reasons.update((int(rows[i]), reason) for i, reason in found.items())
        rows = np.delete(rows, list(found))

    leave_out(_duplicates(runs.subset(rows)))
    judge = _Judge.of(runs.subset(rows), form)
    lost = _diverged(runs.subset(rows), judge.against(np.ones(len(rows), dtype=bool)).noise if judge else 0.0)
    warnings = _many_diverged(len(lost), len(runs))
    if lost:
        leave_out(lost)
        judge = _Judge.of(runs.subset(rows), form)
    if judge:
        missed, warning = _misfits(judge)
        leave_out(missed)
        warnings += warning
    return Screen(np.isin(np.arange(len(runs)), rows),
                  tuple(LeftOut(row=row, reason=reasons[row]) for row in sorted(reasons)), warnings)


def _duplicates(runs: Runs) -> dict[int, str]:
    """Rows equal to one before in N, D, U and loss. Equal N and D with another loss are seeds, and data."""
    group = np.unique(runs.loss, return_inverse=True)[1]
    for column in (runs.params, runs.tokens, *([] if runs.unique is None else [runs.unique])):
        order = np.lexsort((column, group))
        apart = np.diff(np.log(column[order]), prepend=-np.inf) > SAME
        group[order] = np.cumsum(apart | (np.diff(group[order], prepend=-1) != 0))
    _, first, which = np.unique(group, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[which] != np.arange(len(runs)))
    return {int(row): f"duplicate: params {runs.params[row]:.4g}, tokens {runs.tokens[row]:.4g} and loss "
                      f"{runs.loss[row]:.6g} are those of another run" for row in again}


def _diverged(runs: Runs, noise: float) -> dict[int, str]:
    """Rows whose loss is far above what two runs with no more params and no more tokens reached. Eq. S26.

    No law is asked, only that more params and tokens do no harm; two runs, because one may be a lucky one. `noise` in
    log loss: where it is large, more is allowed.
    """
    n, d, z = runs.params, runs.tokens, np.log(runs.loss)
    few = _spread(len(runs), REFERENCES)
    limit = max(DIVERGED, EXTREME * noise)
    reached = np.full((len(runs), 2), np.inf)
    for start in range(0, len(runs) if len(few) > 1 else 0, CHUNK):
        part = np.arange(start, min(start + CHUNK, len(runs)))
        smaller = (n[few] <= n[part, None]) & (d[few] <= d[part, None]) & (few != part[:, None])
        reached[part] = np.partition(np.where(smaller, z[few], np.inf), 1, axis=1)[:, :2]
    return {int(i): f"diverged: loss {runs.loss[i]:.4g}, where two runs with no more params and tokens reached "
                    f"{np.exp(reached[i, 0]):.4g} and {np.exp(reached[i, 1]):.4g}; up to {np.expm1(limit):.0%} above "
                    "those is allowed" for i in np.flatnonzero(z - reached[:, 1] > limit)}


def _many_diverged(lost: int, count: int) -> tuple[str, ...]:
    said = f"{lost} of {count} runs diverged: train them again with a smaller learning rate, or check the losses"
    return (said,) if lost > LARGEST_SHARE * count else ()


def _spread(count: int, most: int) -> Rows:
    """At most so many of `count` positions, evenly: over N and then D, as the runs are in that order."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """n runs held against the law of those that are kept."""

    law: Law
    miss: Array     # (n,) log L - log L-hat
    noise: float    # robust standard deviation of the kept, Eq. S25

    def limit(self, times: float) -> float:
        """|miss| up to which a run is kept."""
        return max(times * self.noise, NEGLIGIBLE)


@dataclass(frozen=True, slots=True, eq=False)
class _Judge:
    """A law of `few` of the n runs, ready to be fitted again without some of them."""

    runs: Runs
    form: Form
    few: Rows
    theta: Array     # (p,) centred coefficients of the law of all of the few

    @classmethod
    def of(cls, runs: Runs, form: Form) -> _Judge | None:
        """None where the runs are too few, or do not determine a law."""
        if len(runs) < JUDGED_RUNS:
            return None
        few = _spread(len(runs), FIT_RUNS)
        try:
            return cls(runs, form, few, fit_law(runs.subset(few), JUDGE_DELTA, form=form).theta)
        except (FitError, np.linalg.LinAlgError):
            return None

    def drawn(self) -> Mask:
        """The run, if any, that draws the law to itself: without it the others fit far better."""
        problem, _ = centred(self.runs, self.form, JUDGE_DELTA)
        count = len(self.runs)
        weights = np.vstack([np.ones(count), 1 - np.eye(count)])
        miss = minimise(np.repeat(self.theta[None], count + 1, axis=0), problem, weights).objective
        return np.asarray((miss[1:] == miss.min()) & (miss[1:] < DRAWN * miss[0]))

    def against(self, keep: Mask) -> _Judged:
        """All n runs, held against the law of those in `keep` (n,)."""
        runs, form, theta = self.runs, self.form, self.theta[None]
        problem, centre = centred(runs.subset(self.few), form, JUDGE_DELTA)
        if not keep.all():
            theta = minimise(theta, problem, keep[self.few].astype(np.float64)[None]).theta
        law = Law.of(form, centre.undo(form, theta)[0])
        miss = np.log(runs.loss / law.loss(runs.params, runs.tokens, runs.unique))
        # The law goes through as many runs as it has coefficients: the smallest residuals say nothing.
        size = np.sort(np.abs(miss[keep]))[len(form.names):]
        return _Judged(law, miss, float(np.quantile(size, QUANTILE)) / NORMAL_QUANTILE)


def _misfits(judge: _Judge) -> tuple[dict[int, str], tuple[str, ...]]:
    """Rows that the law of the others misses: off-centre or extreme. Eq. S27, S28.

    A lost run bends the law that it is held against, so the law is fitted again without it, and all judged anew.
    """
    runs = judge.runs
    out = np.zeros(len(runs), dtype=bool)
    for times in (SUSPECT, *[EXTREME] * ROUNDS):
        judged, before = judge.against(~out), out
        far, alone = _far(runs, judged), _alone(runs, judged, times)
        if times == SUSPECT and len(runs) <= FEW_RUNS:
            alone = alone | judge.drawn()
        out = far | alone
        if times == EXTREME and out.sum() > max(1.0, LARGEST_SHARE * len(runs)):
            return {}, (f"the law does not describe these runs: {out.sum()} of {len(runs)} lie more than {EXTREME:g} "
                        f"times the noise ({judged.noise:.1%}) from it, and none was left out for that; look at how "
                        "they were trained, or fit another law",)
        if (out == before).all():
            break
    return {int(i): _say(runs, judged, int(i), bool(far[i])) for i in np.flatnonzero(out)}, ()


def _off(runs: Runs, law: Law, rows: Rows) -> Array:
    """N over the N that the law calls best at equal N x D, of some rows. Eq. S8, S9."""
    part = runs.subset(rows)
    return part.params / optimum(law, 6 * part.params * part.tokens, FlopsPerToken.six_n())[0]


def _far(runs: Runs, judged: _Judged) -> Mask:
    """Far from the best N, and missed by the law by much. Eq. S27."""
    far = np.abs(judged.miss) > judged.limit(MISFIT)
    rows = np.flatnonzero(far)
    far[rows] = np.abs(np.log(_off(runs, judged.law, rows))) > np.log(OFF_CENTRE)
    return far


def _alone(runs: Runs, judged: _Judged, times: float) -> Mask:
    """Missed by the law, while less than half of the miss is shared by the runs near by, or of the same N. Eq. S28."""
    alone = np.abs(judged.miss) > judged.limit(times)
    rows = np.flatnonzero(alone)
    if len(rows):
        shared = [_of_neighbours(runs, judged.miss, rows, stretch) for stretch in (1.0, OWN_MODEL)]
        alone[rows] = np.max(shared, axis=0) < SHARED
    return alone


def _of_neighbours(runs: Runs, miss: Array, rows: Rows, stretch: float) -> Array:
    """Median miss of the nearest other runs as a share of the own, for some rows; log N is stretched. Eq. S28."""
    places = np.column_stack([stretch * np.log(runs.params), np.log(runs.tokens)])
    near = KDTree(places).query(places[rows], k=NEIGHBOURS + 1)[1]
    # The run itself is put last and dropped: among runs at one place it need not come first.
    near = np.take_along_axis(near, np.argsort(near == rows[:, None], axis=1, kind="stable"), axis=1)
    return cast(Array, np.median(miss[near[:, :NEIGHBOURS]], axis=1) / miss[rows])


def _say(runs: Runs, judged: _Judged, row: int, far: bool) -> str:
    miss = judged.miss[row]
    limit = np.copysign(judged.limit(MISFIT if far else EXTREME), miss)
    said = (f"loss {runs.loss[row]:.4g} is {abs(np.expm1(miss)):.1%} {'above' if miss > 0 else 'below'} the law of the "
            f"other runs; {abs(np.expm1(limit)):.1%} is allowed, their noise is {judged.noise:.2%}")
    if not far:
        return f"extreme: {said}, and its neighbours do not share it"
    off = float(_off(runs, judged.law, np.array([row]))[0])
    where = f"{off:.2g} times" if off > 1 else f"1/{1 / off:.2g} of"
    return f"off-centre: {where} the params that spend its compute best, and {said}"


def unit_warnings(runs: Runs) -> tuple[str, ...]:
    """Sentences about columns that seem to be in other units than they should. Eq. S29.

    FLOPs are held against 6 N D (Kaplan et al. 2020, arXiv 2001.08361): 2 N D is a convention, 10^6 N D is not.
    Raises TableError where no convention can explain them: every answer would be off by such a factor.
    """
    said = [f"{name}: the smallest is {least:.3g}, less than one; give the count itself, not millions or billions"
            for name, least in (("params", runs.params.min()), ("tokens", runs.tokens.min())) if least < 1]
    if said:
        raise TableError("; ".join(said))
    ratio = float(np.median(runs.flops / (6 * runs.params * runs.tokens)))
    if 1 / UNIT_RATIO <= ratio <= (SAMPLE_RATIO if runs.unit == "samples" else UNIT_RATIO):
        return ()
    factor, units = (ratio, TOO_MUCH) if ratio > 1 else (1 / ratio, TOO_LITTLE)
    near = min(units, key=lambda unit: abs(np.log(unit / factor)))
    guess = f"that looks like {units[near]}" if 1 / UNITS_NEAR <= near / factor <= UNITS_NEAR else \
        "no unit explains it, so look whether the columns belong together"
    samples = "; if D counts samples of many tokens, name that column samples" if 1 < ratio <= SAMPLE_RATIO else ""
    text = f"flops: in the median {ratio:.3g} times 6 x params x tokens, where about 1 is expected; {guess}{samples}"
    if factor > ABSURD_RATIO:
        raise TableError(f"{text}; correct the column")
    return (text,)


def nonsense(runs: Runs) -> None:
    """FitError, in one sentence, when the losses cannot be those of a scaling law: constant, or growing. Eq. S29."""
    z = np.log(runs.loss)
    if len(runs) > 1 and np.ptp(z) < CONSTANT:
        raise FitError(f"loss: all {len(runs)} runs have the loss {runs.loss[0]:.6g}; a law needs losses that fall "
                       "with params and tokens, so give the held-out loss at the end of each run")
    x = np.column_stack([np.log(runs.params), np.log(runs.tokens)])
    x, free = x - x.mean(axis=0), len(runs) - 3
    inverse = np.linalg.pinv(x, rcond=1e-6)  # N and D in a fixed ratio share one slope; on one budget they have none
    slopes = inverse @ (z - z.mean())
    error = np.sqrt(((z - z.mean() - x @ slopes) ** 2).sum() / max(free, 1) * (inverse**2).sum(axis=1))
    if free > 0 and (slopes > CLEARLY * error).all() and (slopes > 0).all():
        raise FitError(f"loss: it grows with params and with tokens, as N^{slopes[0]:.2g} D^{slopes[1]:.2g}, where a "
                       "law needs it to fall; give the loss, not a score such as accuracy, and look whether the "
                       "columns are in the right order")
