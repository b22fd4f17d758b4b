"""Classifiers by their logits (n, K): how often right, how sure, and how rightly sure (docs/math.md, V10 to V14)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit, log_softmax, softmax
from torch import Tensor

from flops_fit.errors import InputError
from flops_fit.evaluate.metric import DRAWS, Metric, Statistic, bootstrapped, centred, mean_of, share_of
from flops_fit.flow.loss import check_finite

BINS = 15  # of the calibration error, as in Guo et al.
TEMPERATURES = (0.01, 100.0)  # cosines as logits need .01 (CLIP); what needs more than these is no classifier
GRADIENT = 1e-10  # of a mean loss along a line of unit logits, at which it is at its least
SCORE_DRAWS = 400  # each takes a mean of all probabilities

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


def classification(logits: Tensor, labels: Tensor) -> list[Metric]:
    """accuracy, balanced_accuracy, negative_log_likelihood and calibration_error of logits (n, K), labels (n,).

    Raises, as do all functions here:
        InputError: other shapes, fewer than two rows, labels that are not 0 to K - 1, or logits that are not finite.
    """
    measures = (accuracy, balanced_accuracy, negative_log_likelihood, calibration_error)
    return [measure(logits, labels) for measure in measures]


def accuracy(logits: Tensor, labels: Tensor) -> Metric:
    """Share of rows whose largest logit is that of the label; of equal ones the first counts."""
    scores, truth = _checked(logits, labels)
    return share_of("accuracy", scores.argmax(axis=1) == truth)


def balanced_accuracy(logits: Tensor, labels: Tensor) -> Metric:
    """Mean over the classes that occur of the share of their rows that are right (V10), rows resampled."""
    scores, truth = _checked(logits, labels)
    right = scores.argmax(axis=1) == truth

    def mean_recall(rows: Rows) -> float:
        number = np.bincount(truth[rows])
        hits = np.bincount(truth[rows], weights=right[rows])
        return float((hits[number > 0] / number[number > 0]).mean())

    return bootstrapped("balanced_accuracy", mean_recall, len(truth))


def confusion(logits: Tensor, labels: Tensor) -> NDArray[np.int64]:
    """(K, K) numbers of rows: of class i (down) taken for class j (across)."""
    scores, truth = _checked(logits, labels)
    classes = scores.shape[1]
    places = truth * classes + scores.argmax(axis=1)
    return np.bincount(places, minlength=classes**2).reshape(classes, classes).astype(np.int64)  # (K^2,) -> (K, K)


def per_class(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> list[Metric]:
    """recall_NAME, the accuracy within a class, and precision_NAME, the share of what is called so and is so.

    A class that came, or was named, fewer than 2 times has none: that is not measured.
    """
    scores, truth = _checked(logits, labels)
    different, columns = len(set(classes)), scores.shape[1]
    if not different == len(classes) == columns:
        raise InputError(
            f"classes: got {len(classes)} names, {different} of them different, for {columns} columns of logits; "
            "give each its own"
        )
    said, found = scores.argmax(axis=1), []
    for place, name in enumerate(classes):
        for kind, chosen in (("recall", truth == place), ("precision", said == place)):
            if chosen.sum() >= 2:
                found.append(share_of(f"{kind}_{name}", (said == truth)[chosen]))
    return found


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Metric:
    """Mean of -log p(label | row) in nats; log K for who knows nothing."""
    scores, truth = _checked(logits, labels)
    return mean_of("negative_log_likelihood", -log_softmax(scores, axis=1)[np.arange(len(truth)), truth])


def calibration_error(logits: Tensor, labels: Tensor) -> Metric:
    """Expected calibration error (V11; Guo et al. 2017, arXiv 1706.04599, Eq. 3): `BINS` bins of equal width.

    The interval is of what n rows show: more than 0 even of a classifier that is rightly sure, the more the fewer.
    """
    scores, truth = _checked(logits, labels)
    sure = softmax(scores, axis=1).max(axis=1)
    bins = np.digitize(sure, np.arange(1, BINS) / BINS, right=True)  # ((b - 1) / 15, b / 15]
    gaps = (scores.argmax(axis=1) == truth) - sure

    def error(rows: Rows) -> float:
        return float(np.abs(np.bincount(bins[rows], weights=gaps[rows])).sum() / len(rows))

    return _spread("calibration_error", error, len(truth), DRAWS)


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T for which softmax(logits / T) tells the labels best (V12; Guo et al. 2017, section 4.2), no label being
    quite sure, as in `line_of_odds`: few rows that are all right must not make it infinitely sure.

    Within `TEMPERATURES`: where rows are wrong more than by chance it would be infinite; then the end is returned. 1
    where no T changes the loss. Fit it on rows that no score is taken of.
    """
    scores, truth = _checked(logits, labels)
    n, classes = scores.shape
    above = scores - scores[np.arange(n), truth][:, None]  # (n, K), over the label's
    above -= above.sum(axis=1, keepdims=True) / ((classes - 1) * (n + 2))  # over what the targets of V12 hope for

    def slope(log_temperature: float) -> float:
        """Of the loss along 1 / T, along which it is convex."""
        sharp = math.exp(-log_temperature)
        return float((softmax(sharp * above, axis=1) * above).sum(axis=1).mean())

    low, high = (math.log(end) for end in TEMPERATURES)
    if slope(0.0) == 0:
        return 1.0
    if slope(low) <= 0:  # the loss still falls as T does
        return TEMPERATURES[0]
    if slope(high) >= 0:
        return TEMPERATURES[1]
    return math.exp(brentq(slope, low, high))


def line_of_odds(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """(a, b) for which sigmoid(a z + b) tells yes from no best, of logits z (n,) and labels (n,) of 0 or 1 (V14; Platt
    1999, section 2.2). Finite where all rows are right too, since no answer counts as quite sure; (1, b) where all
    logits are equal. Fit it on rows that no score is taken of.
    """
    if logits.ndim != 1:
        raise InputError(f"logits: got shape {tuple(logits.shape)}; allowed are (n,)")
    scores, truth = _checked(torch.stack((torch.zeros_like(logits), logits), dim=1), labels)
    z, yes = scores[:, 1], int(truth.sum())
    target = np.where(truth == 1, (yes + 1) / (yes + 2), 1 / (len(truth) - yes + 2))
    centre, unit = float(z.mean()), float(z.std()) or 1.0
    x = np.stack(((z - centre) / unit, np.ones(len(z))))  # (2, n)

    def loss(line: Floats) -> float:
        return float((np.logaddexp(0, line @ x) - target * (line @ x)).mean())

    found = minimize(
        loss, np.zeros(2), method="trust-exact", jac=lambda line: x @ (expit(line @ x) - target) / len(z),
        hess=lambda line: (x * expit(line @ x) * expit(-(line @ x))) @ x.T / len(z), options={"gtol": GRADIENT},
    )  # fmt: skip
    slope = float(found.x[0]) / unit if np.ptp(z) else 1.0
    return slope, float(found.x[1]) - slope * centre


def class_score(logits: Tensor) -> Metric:
    """exp of the mean KL divergence of p(y | x) from p(y), 1 to K (V13; Salimans et al. 2016, arXiv 1606.03498).

    The inception score where the logits (n, K) are Inception's; of all rows at once, not the mean of ten parts. High
    where each row is surely of a class and all classes come equally often: neither needs rows that look real.
    """
    scores = _checked_logits(logits)
    log_p = log_softmax(scores, axis=1)
    p = np.exp(log_p)
    certain = (p * log_p).sum(axis=1)  # (n,), minus the entropy of each

    def information(rows: Rows) -> float:
        counts = np.bincount(rows, minlength=len(p)) / len(rows)
        mean = counts @ p  # (K,)
        return float(counts @ certain - (mean * np.log(mean, where=mean > 0, out=np.zeros_like(mean))).sum())

    nats = _spread("class_score", information, len(p), SCORE_DRAWS)
    value, lo, hi = (math.exp(one) for one in (nats.value, nats.lo, nats.hi))
    return Metric(name="class_score", value=value, lo=lo, hi=hi, n=len(p))


def _checked(logits: Tensor, labels: Tensor) -> tuple[Floats, Rows]:
    """Logits (n, K) and labels (n,) as arrays."""
    scores = _checked_logits(logits)
    n, classes = scores.shape
    if labels.dim() != 1 or len(labels) != n or labels.is_floating_point():
        raise InputError(
            f"labels: got {labels.dtype} of shape {tuple(labels.shape)} for logits of shape ({n}, {classes}); "
            f"allowed are whole numbers of shape ({n},): one for each row"
        )
    truth: Rows = labels.detach().cpu().numpy().astype(np.int64)
    wrong = np.flatnonzero((truth < 0) | (truth >= classes))
    if len(wrong):
        raise InputError(
            f"labels: got {truth[wrong[0]]} in row {wrong[0]}; allowed are 0 to {classes - 1}, the columns of logits: "
            "leave out rows without a label"
        )
    return scores, truth


def _checked_logits(logits: Tensor) -> Floats:
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise InputError(f"logits: got shape {tuple(logits.shape)}; allowed is (n, K) with K >= 2 classes")
    if len(logits) < 2:
        raise InputError(f"logits: got {len(logits)} rows; an interval needs at least 2")
    check_finite("logits", logits)
    scores: Floats = logits.detach().cpu().double().numpy()
    return scores


def _spread(name: str, statistic: Statistic, n: int, draws: int) -> Metric:
    """A number >= 0 that repeated rows raise or lower, with the spread of its resamples about itself."""
    dice = np.random.default_rng(0)
    return centred(name, statistic(np.arange(n)), [statistic(dice.integers(0, n, n)) for _ in range(draws)], n)
